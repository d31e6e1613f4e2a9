"""The runs of a sweep, as its output directory has them."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from experiments.errors import DamagedFileError, ExperimentError
from experiments.safe_files import path_inside
from experiments.sweep.definition import Column, Reported
from experiments.sweep.outcome import Outcome, read_environment, read_outcome
from experiments.sweep.plan import PLAN, read_plan
from experiments.training.run_directory import read_settings


class RunRecord(NamedTuple):
    """A run, which need not have begun.

    Attributes:
        seed: Its seed.
        directory: Its directory.
        outcome: What came of it; `None` if it is not at its end.
        environment: Where it came to its end.
    """

    seed: int
    directory: Path
    outcome: Outcome | None
    environment: dict[str, Any] | None

    @property
    def result(self) -> dict[str, Any] | None:
        """The result, if the run came to the last epoch."""
        return None if self.outcome is None else self.outcome.result

    @property
    def diverged(self) -> bool:
        """Whether the run diverged."""
        return self.outcome is not None and self.outcome.result is None


class PointRecord(NamedTuple):
    """The runs of one combination of a grid.

    Attributes:
        values: Values of the settings that the grid varies.
        settings: All settings, apart from the seed.
        runs: One run for each seed.
    """

    values: dict[str, Any]
    settings: dict[str, Any]
    runs: list[RunRecord]

    @property
    def finished(self) -> list[RunRecord]:
        """The runs that came to the last epoch."""
        return [run for run in self.runs if run.result is not None]

    @property
    def ended(self) -> list[RunRecord]:
        """The runs that came to the last epoch or diverged."""
        return [run for run in self.runs if run.outcome is not None]

    @property
    def num_diverged(self) -> int:
        """How many runs diverged."""
        return sum(run.diverged for run in self.runs)

    @property
    def num_ended(self) -> int:
        """How many runs came to the last epoch or diverged."""
        return len(self.ended)


class RowRecord(NamedTuple):
    """The runs of one method.

    Attributes:
        label: Its name.
        paper: The paper's figures, by metric.
        note: A remark.
        points: The points of its grid; none, if it is quoted from its paper and never run.
    """

    label: str
    paper: dict[str, Reported]
    note: str
    points: list[PointRecord]

    @property
    def num_runs(self) -> int:
        """Runs that there are to be."""
        return sum(len(point.runs) for point in self.points)

    @property
    def num_ended(self) -> int:
        """Runs that are at their end."""
        return sum(point.num_ended for point in self.points)


class SweepRecord(NamedTuple):
    """All runs of a sweep; the other attributes are those of `Sweep`."""

    name: str
    title: str
    num_seeds: int
    columns: list[Column]
    selected_by: str
    baseline: str
    convergence: list[str]
    note: str
    rows: list[RowRecord]

    @property
    def num_runs(self) -> int:
        """Runs that there are to be."""
        return sum(row.num_runs for row in self.rows)

    @property
    def num_ended(self) -> int:
        """Runs that are at their end."""
        return sum(row.num_ended for row in self.rows)

    def runs(self) -> list[RunRecord]:
        """List all runs.

        Returns:
            The runs, row by row.
        """
        return [run for row in self.rows for point in row.points for run in point.runs]


def read_sweep(directory: Path) -> SweepRecord:
    """Read the results of a sweep; runs that are not at their end are listed without any.

    Args:
        directory: The sweep's output directory.

    Returns:
        The runs.

    Raises:
        DamagedFileError: If a file holds something else than what was written.
        ExperimentError: If there is no sweep in the directory, or runs with the same data settings
            saw different data.
    """
    plan = read_plan(directory)
    if plan is None:
        raise ExperimentError(
            f"{directory} holds no {PLAN}, so it is no sweep's output directory; "
            "`python -m experiments sweep` makes one, runs/sweeps/NAME by default. (A study has a "
            "runs.jsonl, once a run of it is finished.)"
        )
    sweep = SweepRecord(
        name=plan["name"],
        title=plan["title"],
        num_seeds=plan["seeds"],
        columns=[Column(**column) for column in plan["columns"]],
        selected_by=plan["selected_by"],
        baseline=plan["baseline"],
        convergence=plan["convergence"],
        note=plan.get("note", ""),
        rows=[_read_row(directory, row, plan["seeds"]) for row in plan["rows"]],
    )
    _check_data(sweep)
    return sweep


def _check_data(sweep: SweepRecord) -> None:
    """Check that runs are of the same data where their settings are.

    Raises:
        ExperimentError: If two are not: workers had different files in their data directories.
    """
    seen: dict[str, tuple[Any, Path]] = {}
    for run in sweep.runs():
        settings = read_settings(run.directory) or {}
        checksum = settings.pop("data.checksum", None)
        if checksum is None:
            continue
        data = json.dumps({k: v for k, v in sorted(settings.items()) if k.startswith("data.")})
        other, directory = seen.setdefault(data, (checksum, run.directory))
        if other != checksum:
            raise ExperimentError(
                f"{directory} and {run.directory} have the same settings and saw different data, "
                "so they can not stand in one table. Delete those of the wrong data, and run "
                "them again with another --study and the right --data-dir."
            )


def _read_row(directory: Path, row: dict[str, Any], num_seeds: int) -> RowRecord:
    points = [
        PointRecord(
            point["values"],
            point["settings"],
            [_read_run(directory, point["directory"], seed) for seed in range(num_seeds)],
        )
        for point in row["points"]
    ]
    paper = {metric: Reported(**figure) for metric, figure in row["paper"].items()}
    return RowRecord(row["label"], paper, row["note"], points)


def _read_run(sweep_directory: Path, point_directory: str, seed: int) -> RunRecord:
    """Read a run.

    Raises:
        DamagedFileError: If it is not in the sweep's directory, or one of its files is damaged.
    """
    try:
        directory = path_inside(sweep_directory, f"{point_directory}/seed{seed}")
    except ValueError as error:
        raise DamagedFileError(f"{error}. Put there what it leads to.") from error
    return RunRecord(seed, directory, read_outcome(directory), read_environment(directory))
