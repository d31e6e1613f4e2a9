"""The log of a run: JSON lines, TensorBoard, and a progress bar."""

import json
from collections.abc import Mapping
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
from tensorboardX import SummaryWriter

LOG = "metrics.jsonl"
PER_SECOND = "_per_second"

_MISSING = "–"


def make_progress(console: Console) -> Progress:
    """Build the progress bar: steps, loss, trace estimate, step time, throughput, time left.

    Args:
        console: Where it is shown.

    Returns:
        The bar, a context manager; add tasks with `add_run`.
    """
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        TextColumn("loss [bold]{task.fields[loss]}"),
        TextColumn("trace [bold]{task.fields[trace]}"),
        TextColumn("{task.fields[step_time]} ms/step"),
        TextColumn("{task.fields[throughput]}"),
        TimeRemainingColumn(compact=True),
        TextColumn("left"),
        console=console,
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
    )


def show(progress: Progress, task: TaskID, step: int, row: Mapping[str, float]) -> None:
    """Move the progress bar on.

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
        """
        self._path = directory / LOG
        rows = [row for row in read_log(self._path) if row["step"] <= resumed_at]
        # By way of a second file: a kill in between must not cost the log.
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        temporary.replace(self._path)
        self._file = self._path.open("a", encoding="utf-8")
        self._board = SummaryWriter(
            str(directory / "tensorboard"), purge_step=resumed_at + 1 if resumed_at else None
        )

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the files."""
        self._file.close()
        self._board.close()

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """Write one line.

        Args:
            step: Steps taken.
            row: Numbers by name; a name with a slash, ``validation/loss``, is grouped by it.
        """
        self._file.write(json.dumps({"step": step, **row}) + "\n")
        self._file.flush()
        for name, value in row.items():
            self._board.add_scalar(name if "/" in name else f"train/{name}", value, step)


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read a log.

    Args:
        path: A ``metrics.jsonl``, which need not exist. A last line that a kill cut short is left
            out.

    Returns:
        Its rows.
    """
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
