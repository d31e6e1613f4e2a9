"""The log of a run: JSON lines, TensorBoard, and a progress bar, or lines where there is none."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import (  # protobuf makes the classes when it is imported
    Event,  # pyright: ignore[reportAttributeAccessIssue]
    SessionLog,  # pyright: ignore[reportAttributeAccessIssue]
)
from tensorboardX.proto.summary_pb2 import (
    Summary,  # pyright: ignore[reportAttributeAccessIssue]
)

from experiments.errors import DamagedFileError
from experiments.json_file import check_fields, check_kind, parse_json
from experiments.safe_files import replace_file

LOG = "metrics.jsonl"
PER_SECOND = "_per_second"

SECONDS_BETWEEN_LINES = 10.0
"""Where no bar can be shown, a line says so often at most how far a run is."""

_MISSING = "–"
_WIDE = 105  # columns, from which all numbers have their place
TOGETHER = "together"
"""Column of a log, and figure of a result: how many runs shared the device. The times of such runs
are those of all, divided by their number, and say nothing of one run alone."""

_FIELDS = {"step": int, "epoch": float, "seconds": float, "step_time": float}


def make_progress(console: Console) -> Progress:
    """Build the progress bar: steps, loss, trace estimate, time left.

    Where there is room, step time and throughput too. A file or a pipe gets no bar; `show` writes
    lines there.

    Args:
        console: Where it is shown.

    Returns:
        The bar, a context manager; add tasks with `add_run`.
    """
    speed = (
        TextColumn("{task.fields[step_time]} ms/step"),
        TextColumn("{task.fields[throughput]}"),
    )
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=16),  # the one that shrinks where a line would be too long
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        TextColumn("loss [bold]{task.fields[loss]}"),
        TextColumn("trace [bold]{task.fields[trace]}"),
        *(speed if console.width >= _WIDE else ()),
        TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True)),
        TextColumn("left"),
        console=console,
        disable=not console.is_interactive,
    )


def add_run(progress: Progress, description: str, num_steps: int, done: int = 0) -> TaskID:
    """Add a run to the progress bar.

    Args:
        progress: The bar.
        description: Name of the run.
        num_steps: Its steps in all.
        done: Steps that were taken before.

    Returns:
        What `show` wants.
    """
    return progress.add_task(
        description,
        total=num_steps,
        completed=done,
        loss=_MISSING,
        trace=_MISSING,
        step_time=_MISSING,
        throughput=_MISSING,
        said_at=time.monotonic(),
    )


def show(progress: Progress, task: TaskID, step: int, row: Mapping[str, float]) -> None:
    """Move the progress bar on, or write a line now and then where there is none.

    Args:
        progress: The bar.
        task: Which run.
        step: Steps taken.
        row: The newest line of the log.
    """
    trace = row.get("trace_estimate")
    progress.update(
        task,
        completed=step,
        loss=f"{row['loss']:.4f}" if "loss" in row else _MISSING,  # all its steps were skipped
        trace=_MISSING if trace is None else f"{trace:.3g}",
        step_time=f"{1e3 * row['step_time']:.1f}",
        throughput=_throughput(row),
    )
    if not progress.console.is_interactive:
        _say(progress, task, row)


def _say(progress: Progress, task_id: TaskID, row: Mapping[str, float]) -> None:
    """Write a line, at the end and if the last one is long enough ago."""
    (task,) = (task for task in progress.tasks if task.id == task_id)
    now = time.monotonic()
    if not task.finished and now - task.fields["said_at"] < SECONDS_BETWEEN_LINES:
        return
    progress.update(task_id, said_at=now)
    seconds_left = round((task.remaining or 0) * row["step_time"])
    progress.console.print(
        f"{task.description}: step {task.completed:.0f} of {task.total:.0f}, "
        f"loss {task.fields['loss']}, about {timedelta(seconds=seconds_left)} left",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _throughput(row: Mapping[str, float]) -> str:
    """Write down what the log calls images, or tokens, per second."""
    (name,) = (name for name in row if name.endswith(PER_SECOND))
    return f"{row[name]:.0f} {name.removesuffix(PER_SECOND)}/s"


class RunLog:
    """``metrics.jsonl`` and TensorBoard's event files of one run. Use it as a context manager."""

    def __init__(self, directory: Path, resumed_at: int) -> None:
        """Open the log; what is later than the step from which the run goes on is cut off.

        Args:
            directory: The run directory.
            resumed_at: Step of the checkpoint from which the run goes on, 0 for a new run.

        Raises:
            DamagedFileError: If the log that is there is damaged; it is left as it is.
        """
        self._path = directory / LOG
        rows = [row for row in read_log(self._path) if row["step"] <= resumed_at]
        # By way of a second file: a kill in between must not cost the log.
        replace_file(self._path, "".join(json.dumps(row) + "\n" for row in rows).encode())
        self._file = self._path.open("a", encoding="utf-8")
        self._events = _open_events(directory / "tensorboard", resumed_at)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the files."""
        try:
            self._file.close()
        finally:
            self._events.close()

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """Write one line.

        Args:
            step: Steps taken.
            row: Numbers by name; a name with a slash, ``validation/loss``, is grouped by it.

        Raises:
            OSError: If one of the files can not be written.
        """
        self._file.write(json.dumps({"step": step, **row}) + "\n")
        self._file.flush()
        values = [
            Summary.Value(tag=name if "/" in name else f"train/{name}", simple_value=value)
            for name, value in row.items()
        ]
        event = Event(wall_time=time.time(), step=step, summary=Summary(value=values))
        self._events.write_event(event)
        self._events.flush()


def _open_events(directory: Path, resumed_at: int) -> EventsWriter:
    """Open an event file, and let TensorBoard forget the later steps of the files before it.

    Not by tensorboardX's `SummaryWriter`: a thread writes its file and dies where the disk is full,
    and whoever has something to write waits for that thread.
    """
    directory.mkdir(exist_ok=True)
    events = EventsWriter(str(directory / "events"))
    if resumed_at:
        restart = SessionLog(status=SessionLog.START)
        events.write_event(Event(wall_time=time.time(), step=resumed_at + 1, session_log=restart))
    events.flush()
    return events


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read a log.

    Args:
        path: A ``metrics.jsonl``, which need not exist. A last line that a kill cut short is left
            out.

    Returns:
        Its rows, steps rising.

    Raises:
        DamagedFileError: If another line is none of a log.
    """
    if not path.exists():
        return []
    if not path.is_file():  # a pipe would be waited for
        raise DamagedFileError(f"{path} is in the way, and no file. Move it away.")
    *lines, cut_short = path.read_bytes().split(b"\n")
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(_parse_row(line, rows))
        except ValueError as error:
            raise DamagedFileError(
                f"{path} is damaged in line {number} of {len(lines)}: {error}. Restore it, or "
                "delete that line and those behind it, and the result of the run if there is one: "
                "then the command that made the run goes on from its last checkpoint."
            ) from error
    try:
        return [*rows, _parse_row(cut_short, rows)]
    except ValueError:
        return rows


def _parse_row(line: bytes, before: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Read a line.

    Raises:
        ValueError: If it can not come behind the rows ``before``.
    """
    row = check_fields(parse_json(line), _FIELDS, "the line")
    check_kind(row, dict[str, float], "the line")
    if not row["step"] > (before[-1]["step"] if before else 0):
        raise ValueError(f"the steps do not rise; step {row['step']} comes too late")
    for name, most in (("epoch", row["step"]), ("seconds", math.inf), ("step_time", math.inf)):
        if not (0 < row[name] <= most and math.isfinite(row[name])):
            raise ValueError(f"{name!r} is {row[name]}, which can not be")
    return row
