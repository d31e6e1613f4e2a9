"""The signal by which a machine is taken away: a run then saves, and ends."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import jax
from jax.experimental import multihost_utils

EXIT_STATUS = 128 + signal.SIGTERM


class Terminated(KeyboardInterrupt):
    """A run was told to end, and has saved what it had."""


@contextlib.contextmanager
def catch_termination() -> Iterator[Callable[[int], bool]]:
    """Catch SIGTERM until the end of the block, which saves what there is when it is told to end.

    Of several processes all end at the same step, whichever got the signal: JAX's coordination
    service hands it on. In a thread that is not the main one no signal can be caught. A signal that
    comes too late for the block has its effect behind it.

    Yields:
        A function from the number of steps taken to whether the run is to end there.
    """
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    received = threading.Event()

    def is_requested(step: int) -> bool:
        del step
        return received.is_set()

    with _at_termination(received.set):
        yield is_requested
    if received.is_set():
        signal.raise_signal(signal.SIGTERM)


@contextlib.contextmanager
def end_at_termination(message: str) -> Iterator[None]:
    """Let SIGTERM end the block at once, where all that could be saved is saved.

    Several processes go on to the end of the block: JAX has their signals.

    Args:
        message: What happened, and what is kept.

    Yields:
        Nothing.

    Raises:
        Terminated: At the signal.
    """

    def end() -> None:
        raise Terminated(message)

    with contextlib.nullcontext() if jax.process_count() > 1 else _at_termination(end):
        yield


@contextlib.contextmanager
def _at_termination(act: Callable[[], None]) -> Iterator[None]:
    """Call something at SIGTERM, where signals can be caught: in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        del number, frame
        act()

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
