"""The figure of the study that is to be seen first: how much better each method is, and how surely.

A forest plot: of each method the mean paired difference from plain training, and its interval.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.report.figures import COLOURS
from experiments.report.theme import LIGHT, Theme, colours, plain_text
from experiments.strength.report import holm
from experiments.study.protocol import PLAIN, Setting
from experiments.study.records import Record
from experiments.study.stages import StagePlan, time_ratio
from experiments.study.statistics import Difference, paired_difference
from experiments.study.tables import by_method, compared_figure
from experiments.sweep.definition import more_is_better

SIGNIFICANT = 0.05

_STAGES = {"finalists": "at equal epochs", "equal-time": "at equal time"}
_SIZE = (4.4, 2.1)

PlansBySetting = Mapping[str, Mapping[str, StagePlan]]


class ForestLine(NamedTuple):
    """A method beside plain training.

    Attributes:
        method: Its label.
        time: What a step of it takes, in steps of plain training; `None` where that is not known.
        difference: Its figure minus plain training's, as it is shown (accuracy in points).
        significant: Whether there is one, by Holm's correction over all lines of its setting and
            stage; of a method of which a run diverged that is not claimed.
    """

    method: str
    time: float | None
    difference: Difference
    significant: bool


def draw_forest(
    settings: Sequence[Setting],
    plans: PlansBySetting,
    records: Mapping[str, Record],
    theme: Theme = LIGHT,
) -> Figure | None:
    """Draw the differences from plain training: a column for each setting, a row for each stage.

    To the right is better, whatever the figure. Points of significant differences are full. At
    equal epochs, what a step takes stands beside the method.

    Args:
        settings: The settings.
        plans: Their stages, by the names of both.
        records: The records, by run.
        theme: The colours.

    Returns:
        The figure; `None` if no setting has two tested seeds of a method and of plain training.
    """
    lines = forest_lines(settings, plans, records)
    stages = [each for each in _STAGES if any(stage == each for _, stage in lines)]
    shown = [each for each in settings if any(setting == each.name for setting, _ in lines)]
    if not lines:
        return None
    with colours(theme):
        figure = Figure(
            figsize=(_SIZE[0] * len(shown), _SIZE[1] * len(stages) + 0.6),
            layout="constrained",
            facecolor=theme.background,
        )
        grid = figure.subplots(len(stages), len(shown), squeeze=False)
        for row, stage in zip(grid, stages, strict=True):
            for axis, setting in zip(row, shown, strict=True):
                there = lines.get((setting.name, stage))
                if there is None:
                    axis.remove()
                    continue
                _draw(axis, setting, there, theme)
                axis.set_title(f"{plain_text(setting.title)}\n{_STAGES[stage]}", fontsize=9)
                axis.set_yticks(range(len(there)), [_label(line, stage) for line in there])
        figure.supxlabel(
            "Right of the line: better than plain training. Bars: 95 % intervals of paired "
            "differences. Full points: significant\nafter Holm's correction over the lines of a "
            "picture. 2.0×: a step takes as long as two of plain training.",
            fontsize=9,
        )
    return figure


def describe_forest(
    settings: Sequence[Setting], plans: PlansBySetting, records: Mapping[str, Record]
) -> str:
    """Say what the figure shows.

    Args:
        settings: The settings.
        plans: Their stages, by the names of both.
        records: The records, by run.

    Returns:
        The text.
    """
    by_name = {setting.name: setting for setting in settings}
    sentences = []
    for (name, stage), lines in forest_lines(settings, plans, records).items():
        setting = by_name[name]
        found = [
            f"{line.method} {line.difference.mean:+.2f} ± {line.difference.half_width:.2f}"
            + (" (significant)" if line.significant else "")
            for line in lines
        ]
        sentences.append(
            f"{setting.title}, {_STAGES[stage]}, {compared_figure(setting).heading}: "
            f"{', '.join(found)}."
        )
    return " ".join(["Differences from plain training with 95 % intervals.", *sentences])


def forest_lines(
    settings: Sequence[Setting], plans: PlansBySetting, records: Mapping[str, Record]
) -> dict[tuple[str, str], list[ForestLine]]:
    """Compute the differences.

    Args:
        settings: The settings.
        plans: Their stages, by the names of both.
        records: The records, by run.

    Returns:
        Lines by the names of setting and stage, where there are any.
    """
    found = {}
    for setting in settings:
        of_setting = plans.get(setting.name, {})
        if "finalists" not in of_setting:
            continue
        plain = by_method(of_setting["finalists"], records).get(PLAIN, [])
        for stage in (each for each in _STAGES if each in of_setting):
            lines = _lines(setting, by_method(of_setting[stage], records), plain, records)
            if lines:
                found[setting.name, stage] = lines
    return found


def _lines(
    setting: Setting,
    methods: Mapping[str, list[Record]],
    plain: list[Record],
    records: Mapping[str, Record],
) -> list[ForestLine]:
    figure = compared_figure(setting)
    differences = {
        method: difference._replace(
            mean=figure.factor * difference.mean,
            standard_error=figure.factor * difference.standard_error,
            half_width=figure.factor * difference.half_width,
        )
        for method, there in methods.items()
        if method != PLAIN
        if (difference := paired_difference(there, plain, figure.name)) is not None
    }
    p_values = holm([each.p_value for each in differences.values()])
    ratios = [time_ratio(setting, method, records) for method in differences]
    return [
        ForestLine(
            method,
            None if ratio is None else ratio.median,
            difference,
            p_value < SIGNIFICANT and not any(record.diverged for record in methods[method]),
        )
        for (method, difference), ratio, p_value in zip(
            differences.items(), ratios, p_values, strict=True
        )
    ]


def _label(line: ForestLine, stage: str) -> str:
    if line.time is None or stage != "finalists":
        return plain_text(line.method)
    return plain_text(f"{line.method}, {line.time:.1f}×")


def _draw(axis: Axes, setting: Setting, lines: Sequence[ForestLine], theme: Theme) -> None:
    axis.axvline(0, color=theme.text, linewidth=1, linestyle="--")
    for place, line in enumerate(lines):
        axis.errorbar(
            line.difference.mean,
            place,
            xerr=line.difference.half_width,
            color=COLOURS[1],
            marker="o",
            markersize=5,
            markerfacecolor=COLOURS[1] if line.significant else theme.background,
            linewidth=1.4,
            capsize=2,
        )
    axis.set_ylim(len(lines) - 0.5, -0.5)
    heading = compared_figure(setting).heading.replace(", %", ", points")
    axis.set_xlabel(f"difference in {heading}", fontsize=8)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.3, axis="x", linewidth=0.5)
    axis.spines[["top", "right"]].set_visible(False)
    if not more_is_better(setting.selected_by):
        axis.invert_xaxis()
