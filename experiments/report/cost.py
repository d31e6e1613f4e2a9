"""What every row costs, from the step times in the logs."""

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from experiments.report.read import PointRecord
from experiments.report.summary import Estimate, RowSummary, estimate
from experiments.training.logging import LOG, read_log


class StepTime(NamedTuple):
    """Seconds per step of one run, evaluation and checkpoints left out.

    Attributes:
        mean: All steps' mean.
        median: The median of the log's lines, each of which is a mean over a few steps.
    """

    mean: float
    median: float


class RowCost(NamedTuple):
    """What a row costs.

    Attributes:
        label: Label of the row.
        seconds: Seconds per step: the mean over the runs of their means.
        ratio: Its ratio to the baseline's, seed by seed; `None` without a common seed.
        median_ratio: The same of the medians of the logs' lines, which a disturbance of the machine
            changes less, and rare dear steps too.
    """

    label: str
    seconds: Estimate
    ratio: Estimate | None
    median_ratio: Estimate | None


def costs(summaries: Sequence[RowSummary], baseline: str) -> list[RowCost]:
    """Compare the rows' step times, at the points that are reported.

    Args:
        summaries: The rows.
        baseline: Label of the row that the others are compared with.

    Returns:
        One cost for each row with a run that is at its end and has a log.
    """
    times = {
        summary.row.label: step_times(summary.chosen)
        for summary in summaries
        if summary.chosen is not None
    }
    plain = times.get(baseline, {})
    return [_cost(label, runs, plain) for label, runs in times.items() if runs]


def step_times(point: PointRecord) -> dict[int, StepTime]:
    """Read the step times of a point's runs that are at their end.

    Args:
        point: The point.

    Returns:
        The step times, by seed; those of a run that diverged are of its steps up to there, if it
        logged any.
    """
    logs = {run.seed: read_log(run.directory / LOG) for run in point.ended}
    return {seed: _step_time(rows) for seed, rows in logs.items() if rows}


def _step_time(rows: Sequence[dict[str, float]]) -> StepTime:
    seconds = sum(row["seconds"] for row in rows)
    return StepTime(seconds / rows[-1]["step"], statistics.median(row["step_time"] for row in rows))


def _cost(label: str, runs: dict[int, StepTime], plain: dict[int, StepTime]) -> RowCost:
    seconds = estimate([time.mean for time in runs.values()])
    if seconds is None:
        raise ValueError(f"row {label!r} has no step times")
    common = sorted(runs.keys() & plain.keys())
    return RowCost(
        label,
        seconds,
        estimate([runs[seed].mean / plain[seed].mean for seed in common]),
        estimate([runs[seed].median / plain[seed].median for seed in common]),
    )
