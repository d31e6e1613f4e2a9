"""What a sweep says: of every grid the point that is chosen, and its means over the seeds."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from experiments.errors import ExperimentError
from experiments.report.read import PointRecord, RowRecord, RunRecord, SweepRecord
from experiments.sweep.definition import more_is_better


class Estimate(NamedTuple):
    """A mean over runs.

    Attributes:
        mean: The mean.
        standard_error: Its standard error; `None` for a single run.
        n: How many runs.
    """

    mean: float
    standard_error: float | None
    n: int


class RowSummary(NamedTuple):
    """One row of the table.

    Attributes:
        row: The row's runs.
        chosen: The point that is reported; `None` as long as no run is at its end, and for a row
            that is never run.
        metrics: Means over the chosen point's finished runs, by metric; empty if there is none.
    """

    row: RowRecord
    chosen: PointRecord | None
    metrics: dict[str, Estimate]


def summarise(sweep: SweepRecord) -> list[RowSummary]:
    """Choose the points of the grids, and compute the means.

    Args:
        sweep: The runs.

    Returns:
        One summary for each row.
    """
    return [_summarise_row(row, sweep) for row in sweep.rows]


def choose(points: Sequence[PointRecord], selected_by: str) -> PointRecord | None:
    """Choose a point of a grid by validation data.

    It is the point with the best mean over its finished runs, where a point of whose runs a
    smaller share diverged comes before the others, whatever their means: a mean over the runs that
    survived flatters.

    Args:
        points: The points.
        selected_by: Name of the validation figure.

    Returns:
        The point, the first of equal ones; `None` if no run of any is at its end.
    """
    ended = [point for point in points if point.num_ended]

    sign = 1.0 if more_is_better(selected_by) else -1.0

    def merit(point: PointRecord) -> tuple[float, float]:
        figure = estimate_metric(point, selected_by)
        mean = -math.inf if figure is None or math.isnan(figure.mean) else sign * figure.mean
        return -point.num_diverged / point.num_ended, mean

    return max(ended, key=merit, default=None)


def estimate_metric(point: PointRecord, metric: str) -> Estimate | None:
    """Compute the mean of a metric over the finished runs of a point.

    Args:
        point: The point.
        metric: Name of the number in the results.

    Returns:
        The mean, or `None` if no finished run has the number.

    Raises:
        ExperimentError: If what has that name is no number.
    """
    return estimate(
        [
            _number(run, metric)
            for run in point.runs
            if run.result is not None and metric in run.result
        ]
    )


def estimate(values: Sequence[float]) -> Estimate | None:
    """Compute a mean and its standard error.

    Args:
        values: The numbers.

    Returns:
        The mean, or `None` if there are no numbers; not a number if one of them is not finite.
    """
    if not values:
        return None
    n = len(values)
    if not all(map(math.isfinite, values)):
        # A perplexity may be infinite at a finite loss; there is no mean then, and no error.
        return Estimate(math.nan, math.nan if n > 1 else None, n)
    error = statistics.stdev(values) / n**0.5 if n > 1 else None
    return Estimate(statistics.fmean(values), error, n)


def _number(run: RunRecord, metric: str) -> float:
    """Look up a number of a result.

    Raises:
        ExperimentError: If it is none: a plan may name what it likes.
    """
    value = (run.result or {})[metric]
    if not isinstance(value, int | float):
        raise ExperimentError(
            f"{metric!r} in the result of {run.directory} is {value!r}, and no number, so it can "
            "be no column of a table"
        )
    return value


def _summarise_row(row: RowRecord, sweep: SweepRecord) -> RowSummary:
    chosen = choose(row.points, sweep.selected_by)
    metrics = {}
    for metric in (*(column.metric for column in sweep.columns), sweep.selected_by):
        figure = None if chosen is None else estimate_metric(chosen, metric)
        if figure is not None:
            metrics[metric] = figure
    return RowSummary(row, chosen, metrics)
