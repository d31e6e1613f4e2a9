"""The tables of a report, as text: what a column says, and in how many digits."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from experiments.report.cost import RowCost
from experiments.report.read import SweepRecord
from experiments.report.summary import Estimate, RowSummary, estimate_metric
from experiments.sweep.definition import TIME_RATIO, Reported, more_is_better

NOTHING = "–"
NOT_RUN = "not run; reported by its paper"

_PAPER = "the paper's"


class Table(NamedTuple):
    """A table.

    Attributes:
        title: Its title.
        headings: The headings of its columns.
        lines: Its lines, as many cells each.
        remarks: What is to be said below it.
    """

    title: str
    headings: list[str]
    lines: list[list[str]]
    remarks: list[str]


def result_table(sweep: SweepRecord, summaries: Sequence[RowSummary]) -> Table:
    """Lay out the table as the paper prints it, with what is needed to judge it.

    A column of the paper's figures is there where the paper has any.

    Args:
        sweep: The runs.
        summaries: What they say.

    Returns:
        The table.
    """
    in_paper = {metric for row in sweep.rows for metric in row.paper}
    headings = ["model"]
    for column in sweep.columns:
        headings += [column.heading, *([_PAPER] if column.metric in in_paper else [])]
    headings += ["n", "diverged", "chosen on validation", "runs"]
    lines = []
    for summary in summaries:
        row, chosen = summary.row, summary.chosen
        line = [row.label]
        for column in sweep.columns:
            measured = summary.metrics.get(column.metric)
            reported = row.paper.get(column.metric)
            quoted = reported is not None and not row.points
            line.append(NOT_RUN if quoted else _estimate(measured, column.factor))
            if column.metric in in_paper:
                line.append(_reported(reported))
        if not row.points:
            lines.append([*line, NOTHING, NOTHING, NOTHING, NOTHING])
            continue
        lines.append(
            [
                *line,
                str(0 if chosen is None else len(chosen.finished)),
                NOTHING
                if chosen is None
                else f"{chosen.num_diverged} of {chosen.num_ended} diverged"
                if chosen.num_diverged
                else "none",
                NOTHING if chosen is None else describe_values(chosen.values),
                f"{row.num_ended} of {row.num_runs}",
            ]
        )
    return Table("Results", headings, lines, _result_remarks(sweep, summaries))


def grid_table(sweep: SweepRecord, summaries: Sequence[RowSummary]) -> Table:
    """Lay out what the choices were made from: validation figures alone.

    Args:
        sweep: The runs.
        summaries: What they say.

    Returns:
        The table, without lines if no row has a grid.
    """
    lines = [
        [
            summary.row.label,
            describe_values(point.values),
            _estimate(estimate_metric(point, sweep.selected_by), factor=1.0, digits=4),
            str(len(point.finished)),
            f"{point.num_diverged} of {point.num_ended}",
            "chosen" if point is summary.chosen else "",
        ]
        for summary in summaries
        for point in summary.row.points
        if len(summary.row.points) > 1
    ]
    headings = ["model", "settings", sweep.selected_by.replace("_", " "), "n", "diverged", ""]
    return Table("Grids", headings, lines, [])


def cost_table(
    sweep: SweepRecord, summaries: Sequence[RowSummary], rows: Sequence[RowCost]
) -> Table:
    """Lay out what the rows cost.

    Args:
        sweep: The runs.
        summaries: What they say.
        rows: The costs.

    Returns:
        The table.
    """
    paper = {summary.row.label: summary.row.paper.get(TIME_RATIO) for summary in summaries}
    lines = [
        [
            row.label,
            _estimate(row.seconds, factor=1e3),
            _estimate(row.ratio, factor=1.0),
            _estimate(row.median_ratio, factor=1.0),
            _reported(paper[row.label]),
            str(row.seconds.n),
        ]
        for row in rows
    ]
    headings = [
        "model",
        "ms per step",
        f"time / {sweep.baseline}",
        "of medians",
        _PAPER,
        "n",
    ]
    medians = (
        "Steps of training alone, from the logs; ratios seed by seed. The medians are those of the "
        "logs' lines, which suffer less from a machine that does other things too."
    )
    # A log has the time of each step, and nothing of who else was at the machine.
    alone = (
        "Whether the machine had other work meanwhile is not in the logs, and workers that share "
        "one slow each other down. Times that are to be compared come from one worker on an idle "
        "machine: `python -m experiments sweep cost` for the rows of Table 1, `--rows` for some "
        "rows of any sweep."
    )
    remarks = [medians, alone]
    if any(summary.chosen is not None and summary.chosen.num_diverged for summary in summaries):
        remarks.append("Runs that diverged count with their steps up to there.")
    places = {
        f"{run.environment.get('device', '?')} on {run.environment.get('host', '?')}"
        for run in sweep.runs()
        if run.environment is not None
    }
    if len(places) > 1:
        remarks.append(
            f"The runs were made on different machines ({', '.join(sorted(places))}): ratios of "
            "their times say little."
        )
    return Table("Cost", headings, lines, remarks)


def exact_trace_table(measured: Mapping[str, Any]) -> Table:
    """Lay out what the exact trace of single layers costs.

    Args:
        measured: What `python -m benchmarks exact_trace` wrote.

    Returns:
        The table.
    """
    plain = measured["plain_seconds"]
    lines = [
        [
            layer["layer"],
            f"{layer['num_weights']:,}",
            f"{layer['num_measured']:,}",
            f"{layer['seconds']:,.3g}{' (extrapolated)' if layer['extrapolated'] else ''}",
            f"{layer['seconds'] / plain:.3g}",
        ]
        for layer in measured["layers"]
    ]
    headings = ["layer", "weights", "measured", "seconds", "plain steps"]
    remark = (
        f"{measured['model']}, plain step {plain:.3g} s. Weights that were not measured are "
        "extrapolated, those of the whole network from the dearest layer."
    )
    return Table("The exact trace", headings, lines, [remark])


def describe_values(values: Mapping[str, Any]) -> str:
    """Write down a point of a grid.

    Args:
        values: The values, by setting.

    Returns:
        One phrase; a dash for a row without a grid.
    """
    return ", ".join(f"{name} = {value}" for name, value in values.items()) or NOTHING


def markdown(table: Table) -> str:
    """Write a table in Markdown.

    Args:
        table: The table.

    Returns:
        Its text, remarks included.
    """
    rule = ["---", *["---:"] * (len(table.headings) - 1)]
    lines = [_line(table.headings), _line(rule), *map(_line, table.lines)]
    return "\n".join([*lines, "", *(f"{remark}\n" for remark in table.remarks)])


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _estimate(value: Estimate | None, factor: float, digits: int = 2) -> str:
    if value is None:
        return NOTHING
    mean = f"{factor * value.mean:.{digits}f}"
    if value.standard_error is None:
        return mean
    return f"{mean} ± {factor * value.standard_error:.{digits}f}"


def _reported(figure: Reported | None) -> str:
    if figure is None:
        return NOTHING
    if figure.standard_error is None:
        return f"{figure.mean:g}"
    return f"{figure.mean:.2f} ± {figure.standard_error:.2f}"


def _data_remarks(sweep: SweepRecord) -> list[str]:
    results = [run.result for run in sweep.runs() if run.result is not None]
    sizes = {
        (*(result[f"{split}_{unit}"] for split in ("train", "validation", "test")), unit)
        for result in results
        for unit in ("images", "tokens")
        if all(f"{split}_{unit}" in result for split in ("train", "validation", "test"))
    }
    return [
        f"{train:,} training, {validation:,} validation and {test:,} test {unit}."
        for train, validation, test, unit in sorted(sizes)
    ]


def _result_remarks(sweep: SweepRecord, summaries: Sequence[RowSummary]) -> list[str]:
    epochs = sorted(
        {
            point.settings["epochs"]
            for summary in summaries
            for point in [summary.chosen]
            if point is not None
        }
    )
    numbers = ", ".join(map(str, epochs))
    reported = {str(point.settings.get("reported")) for row in sweep.rows for point in row.points}
    if reported == {"best"}:
        where = "at each run's best epoch on validation data" + (
            f", of {numbers}" if epochs else ""
        )
    else:
        where = "at the last epoch" + (f" ({numbers})" if epochs else "")
    means = (
        f"Mean ± standard error over n seeds, {where}; a single run has no standard error. Runs "
        "that diverged are counted, and are in no mean."
    )
    best = "largest" if more_is_better(sweep.selected_by) else "smallest"
    choice = (
        f"Of a grid, the point with the {best} mean {sweep.selected_by.replace('_', ' ')} is "
        "chosen; one with a larger share of diverged runs comes behind the others. Test figures "
        "play no part in it."
    )
    remarks = [means, choice, *_data_remarks(sweep)]
    if sweep.num_ended < sweep.num_runs:
        remarks.insert(
            0,
            f"Incomplete: {sweep.num_ended} of {sweep.num_runs} runs are at their end. Means and "
            "choices are those of the runs that are, and may change.",
        )
    if sweep.note:
        remarks.append(sweep.note)
    remarks += [f"{each.row.label}: {each.row.note}" for each in summaries if each.row.note]
    return remarks
