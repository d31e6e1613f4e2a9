"""The numbers of a report, unrounded: every run as a line of CSV, and the tables as JSON."""

import csv
import io
from collections.abc import Sequence
from typing import Any

from experiments.report.cost import RowCost
from experiments.report.read import PointRecord, RunRecord, SweepRecord
from experiments.report.summary import Estimate, RowSummary, estimate_metric
from experiments.report.tables import describe_values


def runs_csv(sweep: SweepRecord) -> str:
    """Write one line for each run, those that diverged or did not begin included.

    Args:
        sweep: The runs.

    Returns:
        The text, with headings.
    """
    metrics = sorted(
        {
            name
            for run in sweep.runs()
            for name, value in (run.result or {}).items()
            if isinstance(value, int | float) and name != "seed"
        }
    )
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["row", "settings", "seed", "state", *metrics, "message"])
    for row in sweep.rows:
        for point in row.points:
            for run in point.runs:
                result = run.result or {}
                writer.writerow(
                    [
                        row.label,
                        describe_values(point.values) if point.values else "",
                        run.seed,
                        _state(run),
                        *(result.get(metric, "") for metric in metrics),
                        "" if run.outcome is None else run.outcome.divergence or "",
                    ]
                )
    return buffer.getvalue()


def report_json(
    sweep: SweepRecord, summaries: Sequence[RowSummary], rows: Sequence[RowCost]
) -> dict[str, Any]:
    """Write down what the tables say.

    Args:
        sweep: The runs.
        summaries: What they say.
        rows: What the rows cost.

    Returns:
        JSON values.
    """
    cost_of = {row.label: row for row in rows}
    return {
        "sweep": sweep.name,
        "title": sweep.title,
        "seeds": sweep.num_seeds,
        "runs": sweep.num_runs,
        "runs_ended": sweep.num_ended,
        "selected_by": sweep.selected_by,
        "baseline": sweep.baseline,
        "rows": [_row_json(sweep, each, cost_of.get(each.row.label)) for each in summaries],
    }


def _row_json(sweep: SweepRecord, summary: RowSummary, cost: RowCost | None) -> dict[str, Any]:
    row, chosen = summary.row, summary.chosen
    times: dict[str, Estimate | None] = (
        {}
        if cost is None
        else {
            "seconds_per_step": cost.seconds,
            "time_ratio": cost.ratio,
            "median_time_ratio": cost.median_ratio,
        }
    )
    return {
        "label": row.label,
        "note": row.note,
        "paper": {metric: figure._asdict() for metric, figure in row.paper.items()},
        "runs": row.num_runs,
        "runs_ended": row.num_ended,
        "chosen": None if chosen is None else _point_json(sweep, chosen),
        "metrics": {metric: figure._asdict() for metric, figure in summary.metrics.items()},
        "cost": {name: figure and figure._asdict() for name, figure in times.items()},
        "grid": [_point_json(sweep, point) for point in row.points],
    }


def _point_json(sweep: SweepRecord, point: PointRecord) -> dict[str, Any]:
    figure = estimate_metric(point, sweep.selected_by)
    return {
        "values": point.values,
        "finished": len(point.finished),
        "diverged": [
            run.outcome.divergence for run in point.runs if run.outcome is not None and run.diverged
        ],
        sweep.selected_by: figure and figure._asdict(),
    }


def _state(run: RunRecord) -> str:
    if run.outcome is None:
        return "not at its end"
    return "diverged" if run.diverged else "finished"
