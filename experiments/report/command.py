"""The command `python -m experiments report`."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from experiments.json_file import check_fields, read_json
from experiments.report.cost import costs
from experiments.report.data import report_json, runs_csv
from experiments.report.figures import draw_convergence, draw_max_iter
from experiments.report.page import Picture, png, render_markdown, render_page
from experiments.report.read import SweepRecord, read_sweep
from experiments.report.summary import RowSummary, summarise
from experiments.report.tables import (
    Table,
    cost_table,
    exact_trace_table,
    grid_table,
    markdown,
    result_table,
)
from experiments.report.theme import DARK, LIGHT
from experiments.safe_files import output_inside, replace_file
from experiments.study.report import RECORDS, write_study_report
from experiments.training.run_directory import write_json

EXACT_TRACE = "exact_trace.json"
_LAYER_FIELDS = {
    "layer": str,
    "num_weights": int,
    "num_measured": int,
    "seconds": float,
    "extrapolated": bool,
}


@dataclasses.dataclass(frozen=True)
class ReportConfig:
    """Which runs to report."""

    directory: tyro.conf.Positional[Path]
    """Output directory of a sweep, or directory with the records of the study (runs.jsonl). The
    report goes to its subdirectory report. A file exact_trace.json in that of a sweep, of `python
    -m benchmarks exact_trace`, is reported too."""


def write_report(config: ReportConfig, console: Console) -> Path:
    """Write tables, figures and the page, from the runs' logs and results.

    Args:
        config: Which runs.
        console: Where the tables are shown.

    Returns:
        The path of the page.

    Raises:
        DamagedFileError: If a file of a run, of the sweep or of the study is not what was written.
        ExperimentError: If the directory is none of a sweep or a study.
    """
    if (config.directory / RECORDS).is_file():
        return write_study_report(config.directory, console)
    sweep = read_sweep(config.directory)
    summaries = summarise(sweep)
    cost = costs(summaries, sweep.baseline)
    results = result_table(sweep, summaries)
    grids = grid_table(sweep, summaries)
    pictures = _pictures(sweep, summaries)
    parts = [
        results,
        *pictures,
        cost_table(sweep, summaries, cost),
        *_exact_trace(config.directory),
        *([grids] if grids.lines else []),
    ]
    text = (sweep.title, f"Sweep {sweep.name}, {sweep.num_seeds} seeds.", parts, _made_with(sweep))

    output = output_inside(config.directory, "report", "report")
    output.mkdir(exist_ok=True)
    for picture in pictures:
        replace_file(output / f"{picture.name}.png", png(picture.light))
    write_json(output / "report.json", report_json(sweep, summaries, cost))
    replace_file(output / "runs.csv", runs_csv(sweep).encode())
    replace_file(output / "report.md", render_markdown(*text).encode())
    page = output / "report.html"
    replace_file(page, render_page(*text).encode())
    console.print(markdown(results), highlight=False, soft_wrap=True, markup=False)
    console.print(
        f"Page: {page}   Beside it: report.md, report.json, runs.csv and the figures.",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )
    return page


def _pictures(sweep: SweepRecord, summaries: Sequence[RowSummary]) -> list[Picture]:
    drawn = (
        (
            "convergence",
            "Convergence: means over the seeds, bands of one standard error."
            + _not_drawn(sweep, summaries),
            [draw_convergence(sweep, summaries, theme) for theme in (LIGHT, DARK)],
        ),
        (
            "max-iter",
            "SEHT-D by maxIter and p: means and standard errors over the seeds.",
            [draw_max_iter(summaries, theme) for theme in (LIGHT, DARK)],
        ),
    )
    return [
        Picture(name, caption, light, dark)
        for name, caption, (light, dark) in drawn
        if light is not None and dark is not None
    ]


def _exact_trace(directory: Path) -> list[Table]:
    measured = read_json(
        directory / EXACT_TRACE,
        _check_exact_trace,
        "Move it away, or measure again: python -m benchmarks exact_trace.",
    )
    return [] if measured is None else [exact_trace_table(measured)]


def _check_exact_trace(value: Any) -> dict[str, Any]:
    """Check what the table shows.

    Raises:
        ValueError: If it is not there, or of another type.
    """
    fields = {"model": str, "plain_seconds": float, "layers": list[dict[str, Any]]}
    measured = check_fields(value, fields, "the measurement")
    for layer in measured["layers"]:
        check_fields(layer, _LAYER_FIELDS, "a layer")
    if not measured["plain_seconds"] > 0:
        raise ValueError(f"'plain_seconds' is {measured['plain_seconds']}, and not above 0")
    return measured


def _not_drawn(sweep: SweepRecord, summaries: Sequence[RowSummary]) -> str:
    """Name the rows of which all runs diverged: they have no curve, and must not be missed."""
    labels = [
        summary.row.label
        for summary in summaries
        if summary.row.label in sweep.convergence
        if summary.chosen is not None and not summary.chosen.finished
    ]
    return f" Without a curve, since every run diverged: {', '.join(labels)}." if labels else ""


def _made_with(sweep: SweepRecord) -> list[str]:
    """Describe where the runs came to their end, and how many of them in each place."""
    counts = Counter(
        ", ".join(f"{name} {value}" for name, value in run.environment.items() if value is not None)
        for run in sweep.runs()
        if run.environment is not None
    )
    return [f"{place}: {number} runs" for place, number in counts.items()]
