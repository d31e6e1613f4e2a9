"""A worker: takes runs from the queue and carries them out, until none is left."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as ProgressBar
from rich.text import Text

from experiments.config import TrainConfig
from experiments.errors import ExperimentError, StorageError
from experiments.sweep.outcome import CarryOut, Outcome, RunFunction, carry_out
from experiments.sweep.queue import Claim, Progress, RunQueue

POLL_SECONDS = 10.0
PATIENCE_SECONDS = 300.0

T = TypeVar("T")


def work(
    queue: RunQueue,
    selected_by: str,
    run: RunFunction,
    console: Console,
    poll_seconds: float = POLL_SECONDS,
    patience_seconds: float = PATIENCE_SECONDS,
    carry_out: CarryOut = carry_out,
    wait: Callable[[float], None] = time.sleep,
) -> Progress:
    """Carry out runs until all are done, by this worker or by others.

    While others have the last runs, it waits, to take them up again should their workers die. It
    waits too for a database that is away for a while.

    Args:
        queue: The queue.
        selected_by: Which number of a result a point of the grid is chosen by.
        run: Carries out one run.
        console: Where progress is shown.
        poll_seconds: Time between two looks at the queue while no run waits, or it does not answer.
        patience_seconds: Time for which a queue that does not answer is asked again.
        carry_out: Carries out a run with ``run``, unless that was done before.
        wait: Waits for so many seconds while there is nothing to do.

    Returns:
        How far the runs are: all done.

    Raises:
        ExperimentError: If a run can not be carried out, or its result lacks ``selected_by``. The
            run waits behind the others.
        StorageError: If the database stays away.
    """
    patience = _Patience(patience_seconds, poll_seconds, console)
    with _progress_bar(console) as bar:
        task = bar.add_task("sweep", diverged=0, running=0, left="")
        while True:
            claim = patience.ask(queue.claim)
            progress = patience.ask(queue.progress)
            _show(bar, task, progress)
            if claim is not None:
                # Said beside the bar, for a log that has no bar.
                place = f"{progress.done + progress.running} of {progress.total}"
                line = Text.assemble(
                    (f"Run {place}:", "bold"), f" {claim.run.key} {_time_left(progress)}"
                )
                console.print(
                    line,
                    highlight=False,
                    soft_wrap=True,
                )
                _work_on(
                    queue,
                    claim,
                    selected_by,
                    lambda config: carry_out(config, run, console),
                    patience,
                )
            elif progress.running == progress.waiting == 0:
                return progress
            else:
                wait(poll_seconds)


def _work_on(
    queue: RunQueue,
    claim: Claim,
    selected_by: str,
    carry_out: Callable[[TrainConfig], Outcome],
    patience: "_Patience",
) -> None:
    """Carry out a run and record what came of it.

    Raises:
        ExperimentError: If the result lacks ``selected_by``.
        StorageError: If what came of it can not be recorded.
    """
    console = patience.console
    try:
        with queue.heartbeat(claim):
            outcome = carry_out(claim.run.config)
        value = None if outcome.result is None else _value(outcome.result, selected_by)
    except Exception as error:
        _hand_back(partial(patience.ask, partial(queue.fail, claim, repr(error))), console)
        raise
    except BaseException:
        # Tried once: whoever stops a worker does not want to wait.
        _hand_back(partial(queue.give_back, claim), console)
        raise
    if outcome.result is None or value is None:
        message = outcome.divergence or ""
        _warn(console, f"{message} The sweep goes on.")
        ours = patience.ask(partial(queue.diverge, claim, message))
    else:
        ours = patience.ask(partial(queue.complete, claim, outcome.result, value))
    if not ours:
        console.print(
            "This worker was silent for so long that the run was given to another, which finds the "
            "result in the run directory.",
            soft_wrap=True,
        )


@dataclasses.dataclass(frozen=True)
class _Patience:
    """Asks a queue that does not answer again.

    Attributes:
        seconds: For how long.
        poll_seconds: Time between two attempts.
        console: Where it is said.
    """

    seconds: float
    poll_seconds: float
    console: Console

    def ask(self, call: Callable[[], T]) -> T:
        """Call until there is an answer.

        Raises:
            StorageError: If there is none.
        """
        deadline = None
        while True:
            try:
                return call()
            except StorageError as error:
                now = time.monotonic()
                if deadline is None:
                    deadline = now + self.seconds
                    _warn(self.console, f"{error}\nIt is tried again.")
                if now >= deadline:
                    raise StorageError(
                        f"{error}\nIt was tried again for {self.seconds:.0f} s. What is finished "
                        "is in the output directory; when the storage is back, the same command "
                        "goes on."
                    ) from error
            time.sleep(self.poll_seconds)


def _hand_back(call: Callable[[], bool], console: Console) -> None:
    """Hand a run back, by ``call``, without hiding the error for which that is done."""
    try:
        call()
    except StorageError as error:
        _warn(
            console,
            f"{error}\nThe run is not handed back. Another worker takes it when this one has given "
            "no sign of life for a while.",
        )


def _warn(console: Console, message: str) -> None:
    console.print(message, style="yellow", markup=False, highlight=False, soft_wrap=True)


def _value(result: Mapping[str, Any], selected_by: str) -> float:
    """Look up what a point of the grid is chosen by.

    Raises:
        ExperimentError: If the result lacks it.
    """
    if selected_by not in result:
        raise ExperimentError(
            f"the sweep chooses by {selected_by!r}, which is none of the results of a run: "
            f"{', '.join(result)}. Hold out validation data (validation_size), or choose by "
            "another number."
        )
    return result[selected_by]


def _progress_bar(console: Console) -> ProgressBar:
    return ProgressBar(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("runs, [bold]{task.fields[diverged]}[/] diverged"),
        TextColumn("{task.fields[running]} at work"),
        TextColumn("{task.fields[left]}"),
        console=console,
    )


def _show(bar: ProgressBar, task: TaskID, progress: Progress) -> None:
    bar.update(
        task,
        total=progress.total,
        completed=progress.done,
        diverged=progress.diverged,
        running=progress.running,
        left=_time_left(progress),
    )


def _time_left(progress: Progress) -> str:
    if not progress.seconds_left:
        return ""
    # Workers are taken to be as many as now, and as fast.
    minutes = progress.seconds_left / max(progress.running, 1) / 60
    return f"about {minutes / 60:.1f} h left" if minutes > 99 else f"about {minutes:.0f} min left"
