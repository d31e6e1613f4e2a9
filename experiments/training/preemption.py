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

    def remember(number: int, frame: FrameType | None) -> None:
        del number, frame
        received.set()

    def is_requested(step: int) -> bool:
        del step
        return received.is_set()

    if threading.current_thread() is not threading.main_thread():
        yield is_requested
        return
    before = signal.signal(signal.SIGTERM, remember)
    try:
        yield is_requested
    finally:
        signal.signal(signal.SIGTERM, before)
    if received.is_set():
        signal.raise_signal(signal.SIGTERM)
