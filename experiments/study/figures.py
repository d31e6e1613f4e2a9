"""The figures of the study's report."""

import math
from collections.abc import Collection, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, NullLocator

from experiments.report.figures import COLOURS
from experiments.report.theme import LIGHT, Theme, colours, plain_text
from experiments.study.protocol import PLAIN, Method, Setting
from experiments.study.records import Record
from experiments.study.stages import StagePlan
from experiments.study.statistics import Correlation, correlation, estimate
from experiments.study.tables import FLATNESS, FLATNESS_STAGES, flatness_records

_COLUMNS = 4
_MARKERS = "osD^vP*X"
_SIZE = (3.0, 2.5)
_HIGHEST = 1.25  # of plain training's error


def draw_strengths(
    setting: Setting,
    plans: Mapping[str, StagePlan],
    records: Mapping[str, Record],
    theme: Theme = LIGHT,
) -> Figure | None:
    """Draw the validation error against the strength, a small picture for each method.

    At the upper edge are marks for strengths whose error is above the picture, and for those at
    which a run diverged.

    Args:
        setting: The setting.
        plans: Its stages, by name.
        records: The records, by run.
        theme: The colours.

    Returns:
        The figure; `None` if no method has been tried yet.
    """
    curves = strength_curves(setting, plans, records)
    if not curves:
        return None
    plain = plain_error(setting, plans, records)
    with colours(theme):
        figure, axes = _grid(theme, len(curves))
        shown = [mean for points in curves.values() for _, mean, _ in points]
        if plain is not None:
            # A strength that destroys the training would hide all others.
            shown = [plain, *(min(mean, _HIGHEST * plain) for mean in shown)]
        low, high = min(shown), max(shown)
        margin = 0.08 * (high - low) or 0.1 * abs(high)
        axes[0].set_ylim(low - margin, high + margin)
        lost = diverged_strengths(setting, plans, records)
        for axis, (method, points) in zip(axes, curves.items(), strict=True):
            above = {strength for strength, mean, _ in points if mean > high + margin}
            _mark_above(axis, above.difference(lost[method]), "^")
            _mark_above(axis, lost[method], "x")
            if plain is not None:
                axis.axhline(plain, color=theme.text, linewidth=1, linestyle="--")
            axis.errorbar(
                [strength for strength, _, _ in points],
                [mean for _, mean, _ in points],
                [error for _, _, error in points],
                color=COLOURS[1],
                marker="o",
                markersize=4,
                linewidth=1.4,
                capsize=2,
            )
            axis.set_xscale("log")
            strengths = sorted({strength for strength, _, _ in points} | {*lost[method]})
            axis.set_xticks(strengths, [f"{strength:g}" for strength in strengths])
            axis.xaxis.set_minor_locator(NullLocator())
            axis.set_title(plain_text(method), fontsize=9)
        figure.supxlabel("strength   (▲: above the picture; ✕: a run diverged)", fontsize=9)
        figure.supylabel(error_heading(setting), fontsize=9)
        return figure


def describe_strengths(
    setting: Setting, plans: Mapping[str, StagePlan], records: Mapping[str, Record]
) -> str:
    """Say what the figure of the strengths shows.

    Args:
        setting: The setting.
        plans: Its stages, by name.
        records: The records, by run.

    Returns:
        The text.
    """
    plain = plain_error(setting, plans, records)
    lowest = [
        f"{method} {mean:.2f} at {strength:g}"
        for method, points in strength_curves(setting, plans, records).items()
        for strength, mean, _ in [min(points, key=lambda point: point[1])]
    ]
    opening = "" if plain is None else f" Plain training has {plain:.2f}."
    lost = [
        f"{method} at {', '.join(f'{strength:g}' for strength in strengths)}"
        for method, strengths in diverged_strengths(setting, plans, records).items()
        if strengths
    ]
    ending = f" Runs diverged: {'; '.join(lost)}." if lost else ""
    return (
        f"{error_heading(setting)} against strength, one small picture for each method.{opening} "
        f"The lowest of each method: {'; '.join(lowest)}.{ending}"
    )


def draw_flatness(
    setting: Setting, records: Mapping[str, Record], theme: Theme = LIGHT
) -> Figure | None:
    """Draw the test loss against each measure of flatness, a point for each run.

    Runs at equal time, which are shorter, have hollow points.

    Args:
        setting: The setting.
        records: The records, by run.
        theme: The colours.

    Returns:
        The figure; `None` if no run has been tested yet.
    """
    measured = {name: _by_stages(setting, records, name) for name in FLATNESS}
    measured = {name: by_stages for name, by_stages in measured.items() if by_stages}
    if not measured:
        return None
    tested = {name: list(by_stages.values())[-1] for name, by_stages in measured.items()}
    methods = list(dict.fromkeys(each.method for there in tested.values() for each in there))
    with colours(theme):
        figure, axes = _grid(theme, len(measured), columns=len(measured))
        for axis, (name, there) in zip(axes, tested.items(), strict=True):
            for number, method in enumerate(methods):
                colour = theme.text if method == PLAIN else COLOURS[number % len(COLOURS)]
                for stage, filling, label in (
                    ("finalists", colour, plain_text(method)),
                    ("equal-time", "none", "_at equal time"),
                ):
                    mine = [each for each in there if (each.method, each.stage) == (method, stage)]
                    axis.scatter(
                        [record.figures[name] for record in mine],
                        [record.figures["test_loss"] for record in mine],
                        facecolors=filling,
                        edgecolors=colour,
                        marker=_MARKERS[number % len(_MARKERS)],
                        s=16,
                        alpha=0.8,
                        linewidths=0.8,
                        label=label,
                    )
            values = [record.figures[name] for record in there]
            if 0 < 10 * min(values) < max(values):
                axis.set_xscale("log")
                axis.xaxis.set_minor_formatter(NullFormatter())
            else:
                axis.xaxis.set_major_locator(MaxNLocator(4))
            ranks = [
                f"ρ = {found.coefficient:+.2f} ({title})"
                for title, found in _ranks(measured[name], name).items()
            ]
            axis.set_title("\n".join([FLATNESS[name], *ranks]), fontsize=9)
        figure.supxlabel(
            "the measure; but for ‖θ‖, sharper to the right. Hollow: at equal time", fontsize=9
        )
        figure.supylabel("test loss", fontsize=9)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside upper center", ncols=4, fontsize=8, frameon=False
        )
        return figure


def describe_flatness(setting: Setting, records: Mapping[str, Record]) -> str:
    """Say what the figure of the flatness shows.

    Args:
        setting: The setting.
        records: The records, by run.

    Returns:
        The text.
    """
    measures = []
    for name, heading in FLATNESS.items():
        ranks = [
            f"ρ = {found.coefficient:+.2f} ({title}, n = {found.num_points})"
            for title, found in _ranks(_by_stages(setting, records, name), name).items()
        ]
        if ranks:
            measures.append(f"{heading}: {', '.join(ranks)}")
    ranked = f" Spearman's rank correlations: {'; '.join(measures)}." if measures else ""
    return f"Test loss against each measure of flatness, a point for each tested run.{ranked}"


def strength_curves(
    setting: Setting, plans: Mapping[str, StagePlan], records: Mapping[str, Record]
) -> dict[str, list[tuple[float, float, float]]]:
    """Compute the validation error by method and strength.

    Args:
        setting: The setting.
        plans: Its stages, by name.
        records: The records, by run.

    Returns:
        By method strengths, each with the mean error over the runs that did not diverge and its
        standard error (0 for one run).
    """
    curves: dict[str, list[tuple[float, float, float]]] = {}
    for method in setting.methods:
        for strength in method.values:
            found = _error(setting, _at_strength(method, strength, plans, records))
            if found is not None:
                curves.setdefault(method.label, []).append((strength, *found))
    return curves


def diverged_strengths(
    setting: Setting, plans: Mapping[str, StagePlan], records: Mapping[str, Record]
) -> dict[str, list[float]]:
    """List the strengths at which a run diverged, which can not be chosen.

    Args:
        setting: The setting.
        plans: Its stages, by name.
        records: The records, by run.

    Returns:
        The strengths by method.
    """
    return {
        method.label: [
            strength
            for strength in method.values
            if any(each.diverged for each in _at_strength(method, strength, plans, records))
        ]
        for method in setting.methods
    }


def plain_error(
    setting: Setting, plans: Mapping[str, StagePlan], records: Mapping[str, Record]
) -> float | None:
    """Compute the validation error of plain training as it was chosen.

    Args:
        setting: The setting.
        plans: Its stages, by name.
        records: The records, by run.

    Returns:
        The mean error; `None` if plain training has not been tried.
    """
    points: dict[str, list[Record]] = {}
    for run in plans["plain"].runs:
        if run.key in records:
            points.setdefault(run.key.rpartition("/")[0], []).append(records[run.key])
    errors = [
        found[0]
        for there in points.values()
        if not any(record.diverged for record in there)
        for found in [_error(setting, there)]
        if found is not None
    ]
    return min(errors, default=None)


def error_heading(setting: Setting) -> str:
    """Name what the choices of a setting are made by, as something to be low.

    Args:
        setting: The setting.

    Returns:
        The name.
    """
    if setting.selected_by == "validation_accuracy":
        return "validation error, %"
    return setting.selected_by.replace("_", " ")


def _at_strength(
    method: Method,
    strength: float,
    plans: Mapping[str, StagePlan],
    records: Mapping[str, Record],
) -> list[Record]:
    runs = plans["strengths"].runs if "strengths" in plans else ()
    return [
        records[run.key]
        for run in runs
        if run.key in records
        if (run.method, run.values.get(method.strength)) == (method.label, strength)
    ]


def _mark_above(axis: Axes, strengths: Collection[float], marker: str) -> None:
    """Mark strengths at the upper edge."""
    axis.scatter(
        list(strengths),
        [1.0] * len(strengths),
        transform=axis.get_xaxis_transform(),
        clip_on=False,
        color=COLOURS[3],
        marker=marker,
    ).set_in_layout(False)


def _error(setting: Setting, there: Sequence[Record]) -> tuple[float, float] | None:
    found = estimate(there, setting.selected_by)
    if found is None:
        return None
    if setting.selected_by == "validation_accuracy":
        return 100 * (1 - found.mean), 100 * (found.standard_error or 0.0)
    return found.mean, found.standard_error or 0.0


def _by_stages(
    setting: Setting, records: Mapping[str, Record], name: str
) -> dict[str, list[Record]]:
    tested = {
        title: flatness_records(setting, records, name, stages)
        for title, stages in FLATNESS_STAGES.items()
    }
    return {title: there for title, there in tested.items() if there}


def _ranks(by_stages: Mapping[str, Sequence[Record]], name: str) -> dict[str, Correlation]:
    ranks = {}
    for title, there in by_stages.items():
        losses = [record.figures["test_loss"] for record in there]
        found = correlation([record.figures[name] for record in there], losses)
        if found is not None:
            ranks[title] = found
    return ranks


def _grid(theme: Theme, number: int, columns: int = _COLUMNS) -> tuple[Figure, list[Axes]]:
    """Make small axes that share what they show upwards."""
    columns = min(columns, number)
    rows = math.ceil(number / columns)
    figure = Figure(
        figsize=(_SIZE[0] * columns, _SIZE[1] * rows + 0.6),
        layout="constrained",
        facecolor=theme.background,
    )
    axes = list(figure.subplots(rows, columns, squeeze=False, sharey=True).flat)
    for axis in axes[number:]:
        axis.remove()
    for axis in axes[:number]:
        axis.grid(alpha=0.3, which="major", linewidth=0.5)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    return figure, axes[:number]
