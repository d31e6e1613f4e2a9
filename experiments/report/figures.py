"""The paper's Figure 1: convergence, and accuracy by maxIter and p."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.errors import DamagedFileError
from experiments.regularizers import Regularizer, SehtD, parse_method
from experiments.report.curves import Curves, read_curves
from experiments.report.read import PointRecord, SweepRecord
from experiments.report.summary import Estimate, RowSummary
from experiments.report.theme import LIGHT, Theme, colours, empty_figure, plain_text
from experiments.training.logging import LOG

# Okabe and Ito's colours, which the colour-blind can tell apart; the first is the text's colour.
COLOURS = ("#E69F00", "#0072B2", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#B8A500")
_DASHES = ("-", "--", "-.", ":")
_MARKERS = "os^Dv"


class Setting(NamedTuple):
    """A row of SEHT-D alone.

    Attributes:
        series: What it has beside maxIter: p, and what else sets rows of the sweep apart.
        max_iter: Its number of probes.
        accuracy: Its test accuracy.
    """

    series: str
    max_iter: int
    accuracy: Estimate


def draw_convergence(
    sweep: SweepRecord, summaries: Sequence[RowSummary], theme: Theme = LIGHT
) -> Figure | None:
    """Draw training loss and the figure by which the sweep chooses, by epoch.

    Args:
        sweep: The runs.
        summaries: What they say: the chosen points are drawn.
        theme: The colours.

    Returns:
        The figure: per row the mean over finished runs, and a band of one standard error; `None`
        if no run is finished.

    Raises:
        DamagedFileError: If a log is not what was written.
    """
    drawn = {
        summary.row.label: summary.chosen
        for summary in summaries
        if summary.chosen is not None and summary.chosen.finished
        if summary.row.label in sweep.convergence
    }
    if not drawn:
        return None
    in_per_cent = sweep.selected_by.endswith("accuracy")
    with colours(theme):
        figure, (loss_axis, validation_axis) = empty_figure(theme, num_axes=2)
        for (label, point), style in zip(drawn.items(), _styles(theme), strict=False):
            curves = _read_all(point, sweep.selected_by)
            epochs = curves[0].epochs
            diverged = f", {point.num_diverged} diverged" if point.num_diverged else ""
            name = plain_text(f"{label} (n = {len(curves)}{diverged})")
            _draw_band(loss_axis, epochs, [each.train_loss for each in curves], style, name)
            measured = [(100 if in_per_cent else 1) * each.validation for each in curves]
            _draw_band(validation_axis, epochs, measured, style, name)
        loss_axis.set_yscale("log")
        loss_axis.set_title("Training loss on the method's own labels, mean of an epoch")
        title = sweep.selected_by.replace("_", " ").capitalize()
        validation_axis.set_title(f"{title}, %" if in_per_cent else title)
        for axis in (loss_axis, validation_axis):
            axis.set_xlabel("epoch")
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        handles, labels = loss_axis.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    return figure


def draw_max_iter(summaries: Sequence[RowSummary], theme: Theme = LIGHT) -> Figure | None:
    """Draw the test accuracy of SEHT-D by maxIter and p.

    Args:
        summaries: What the runs say; rows of SEHT-D alone are drawn, at their chosen points.
        theme: The colours.

    Returns:
        The figure: means and standard errors; `None` unless there are two such rows to compare.
    """
    settings = seht_d_settings(summaries)
    if len({setting[:2] for setting in settings}) < 2:
        return None
    with colours(theme):
        figure, (axis,) = empty_figure(theme, num_axes=1)
        max_iters = sorted({setting.max_iter for setting in settings})
        all_series = sorted({setting.series for setting in settings})
        for i, (series, style) in enumerate(zip(all_series, _styles(theme), strict=False)):
            points = sorted(setting for setting in settings if setting.series == series)
            shift = 0.08 * (i - (len(all_series) - 1) / 2)
            axis.errorbar(
                [max_iters.index(point.max_iter) + shift for point in points],
                [100 * point.accuracy.mean for point in points],
                [100 * (point.accuracy.standard_error or 0.0) for point in points],
                label=series,
                marker=_MARKERS[i % len(_MARKERS)],
                capsize=4,
                **style,
            )
        axis.set_xticks(range(len(max_iters)), map(str, max_iters))
        axis.set_xlim(-0.5, len(max_iters) - 0.5)
        axis.set_xlabel("maxIter (probes per step)")
        axis.set_title("Test accuracy of SEHT-D, %")
        axis.legend(frameon=False)
    return figure


def seht_d_settings(summaries: Sequence[RowSummary]) -> list[Setting]:
    """Find the rows of SEHT-D alone.

    Args:
        summaries: What the runs say.

    Returns:
        Their settings and accuracies, as far as there are any.
    """
    settings = []
    for summary in summaries:
        accuracy = summary.metrics.get("test_accuracy")
        if summary.chosen is None or accuracy is None:
            continue
        method = _method(summary.chosen.settings["method"])
        part = method[0] if len(method) == 1 else None
        if not isinstance(part, SehtD):
            continue
        series = f"p = {part.p}"
        if part.curvature != "hessian":
            series += f", {part.curvature}"
        settings.append(Setting(series, part.num_probes, accuracy))
    return settings


def _method(words: Sequence[str]) -> tuple[Regularizer, ...]:
    """Read a method, if it is still there; that of an old sweep need not be."""
    try:
        return parse_method(words)
    except ValueError:
        return ()


def _read_all(point: PointRecord, figure: str) -> list[Curves]:
    """Read the curves of a point's finished runs.

    Raises:
        DamagedFileError: If they are not of the same epochs.
    """
    curves = [read_curves(run.directory, figure) for run in point.finished]
    first = point.finished[0].directory
    for run, each in zip(point.finished, curves, strict=True):
        if not np.array_equal(each.epochs, curves[0].epochs):
            raise DamagedFileError(
                f"{first / LOG} has {len(curves[0].epochs)} epochs, and {run.directory / LOG} has "
                f"{len(each.epochs)}, or others: one of them is damaged. Restore it, or delete the "
                "run directory and run it again."
            )
    return curves


def _styles(theme: Theme) -> list[Mapping[str, Any]]:
    # Dashes first change when the colours are used up.
    return [
        {"color": colour, "linestyle": dashes}
        for dashes, colour in itertools.product(_DASHES, (theme.text, *COLOURS))
    ]


def _draw_band(
    axis: Axes,
    epochs: np.ndarray,
    curves: Sequence[np.ndarray],
    style: Mapping[str, Any],
    label: str,
) -> None:
    stacked = np.array(curves)
    mean = stacked.mean(axis=0)
    # A line through one point can not be seen.
    marker = "o" if len(epochs) == 1 else ""
    axis.plot(epochs, mean, label=label, linewidth=1.6, marker=marker, **style)
    if len(curves) > 1:
        error = stacked.std(axis=0, ddof=1) / len(curves) ** 0.5
        axis.fill_between(
            epochs, mean - error, mean + error, color=style["color"], alpha=0.15, linewidth=0
        )
