"""The tables of the study's report."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from experiments.report.summary import Estimate
from experiments.report.tables import NOTHING, Table
from experiments.strength.report import holm
from experiments.study.protocol import PLAIN, Protocol, Setting
from experiments.study.records import Record
from experiments.study.stages import STAGES, StagePlan, StudyRun, time_ratio
from experiments.study.statistics import (
    Difference,
    correlation,
    estimate,
    paired_difference,
    without_means,
)

FLATNESS = {
    "hessian_trace": "tr(H)",
    "gauss_newton_trace": "tr(G)",
    "top_eigenvalue": "largest eigenvalue of H",
    "relative_trace": "relative trace of G",
    "params_norm": "‖θ‖",
}
"""Measures of flatness, by the name of their figure: the larger, the sharper, but for the norm."""

_STAGES_REMARK = (
    "A stage is planned when those before it are complete; what is there of one that is not "
    "complete is reported, and may change."
)
_TUNING_REMARK = (
    "Mean ± standard error over the tuning seeds, which serve for nothing else. The best mean is "
    "chosen; a point at which a run diverged is not."
)
_FINALISTS_REMARK = (
    "Mean ± standard error over n seeds, at the last epoch. Runs that diverged are counted, and "
    "are in no mean. Curvature is that of the mean loss of training examples in evaluation mode. "
    "The relative trace is the sum over the arrays of the params of ‖θ_l‖² tr(G_l) / n_l, which "
    "does not depend on the scale of the weights. The time is the median over the seeds of the "
    "ratio of the median step times."
)
_CONDITIONS_REMARK = (
    "Differences to plain training under the same condition, at the same seeds. Settings are "
    "those of the finalists, which were not tuned again."
)
_FLATNESS_REMARK = (
    "Spearman's rank correlation over the runs of the finalists, and of those at equal time: +1 "
    "where the sharper network always has the higher test loss. Within methods: after the mean of "
    "its method has been taken from each figure. The p values are for independent runs, which "
    "those of one seed are not, and are not corrected for their number."
)


class Compared(NamedTuple):
    """The figure by which methods are compared on test data.

    Attributes:
        name: Its name in a record.
        heading: What stands above a column of it.
        factor: What it is multiplied with.
    """

    name: str
    heading: str
    factor: float


def compared_figure(setting: Setting) -> Compared:
    """Choose the figure by which methods are compared on test data.

    Args:
        setting: The setting.

    Returns:
        Accuracy or perplexity, as choices are made by.
    """
    if setting.selected_by == "validation_accuracy":
        return Compared("test_accuracy", "test accuracy, %", 100.0)
    return Compared("test_perplexity", "test perplexity", 1.0)


def progress_table(
    protocol: Protocol, plans: Sequence[StagePlan], records: Mapping[str, Record]
) -> Table:
    """Say which part of the study is done.

    Args:
        protocol: The protocol.
        plans: The stages that are planned.
        records: The records, by run.

    Returns:
        The table: settings and stages.
    """
    counts = {
        (plan.setting, plan.stage): (len(plan.runs) - len(plan.missing(records)), len(plan.runs))
        for plan in plans
    }

    def cell(setting: str, stage: str) -> str:
        if (setting, stage) not in counts:
            return "not planned yet"
        done, total = counts[setting, stage]
        if not total:
            return "no runs"
        return f"{total} runs" if done == total else f"{done} of {total} runs"

    lines = [
        [setting.name, *(cell(setting.name, stage) for stage in STAGES)]
        for setting in protocol.settings
    ]
    remarks = [_STAGES_REMARK]
    return Table("What is done", ["setting", *STAGES], lines, remarks)


def tuning_table(
    setting: Setting, plans: Mapping[str, StagePlan], records: Mapping[str, Record]
) -> Table:
    """Lay out all that was tried, with the validation figures by which choices are made.

    Args:
        setting: The setting.
        plans: Its stages, by name.
        records: The records, by run.

    Returns:
        The table.
    """
    factor = compared_figure(setting).factor
    finalists = list(plans["finalists"].runs) if "finalists" in plans else []
    chosen = [(run.method, run.values) for run in finalists]
    lines = []
    for stage in ("plain", "strengths"):
        for runs in _points(plans.get(stage)):
            there = [records[run.key] for run in runs if run.key in records]
            if there:
                first = there[0]
                is_chosen = (first.method, first.values) in chosen
                lines.append(
                    [
                        first.method,
                        describe_values(first.values),
                        show(estimate(there, setting.selected_by), factor),
                        _count(there),
                        _diverged(there),
                        "finalist" if is_chosen else "",
                    ]
                )
    heading = setting.selected_by.replace("_", " ") + (", %" if factor == 100 else "")
    remarks = [_TUNING_REMARK]
    return Table(
        f"What was tried: {setting.title}",
        ["method", "settings", heading, "n", "diverged", ""],
        lines,
        remarks,
    )


def finalists_table(
    protocol: Protocol, setting: Setting, plan: StagePlan, records: Mapping[str, Record]
) -> Table:
    """Lay out the finalists on test data.

    Args:
        protocol: The protocol.
        setting: The setting.
        plan: The stage.
        records: The records, by run.

    Returns:
        The table.
    """
    test = compared_figure(setting)
    columns = {
        test.name: (test.heading, test.factor, 2),
        "test_loss": ("test loss", 1.0, 4),
        "calibration_error": ("calibration error, %", 100.0, 2),
        "train_loss": ("train loss", 1.0, 4),
        **{name: (heading, 1.0, 4) for name, heading in FLATNESS.items()},
    }
    lines = []
    for method, there in _by_method(plan, records).items():
        ratio = time_ratio(protocol, setting, method, records)
        cells = [
            show(estimate(there, name), factor, digits, significant=name in FLATNESS)
            for name, (_, factor, digits) in columns.items()
        ]
        lines.append(
            [
                method,
                describe_values(_own_values(setting, there[0])),
                *cells,
                NOTHING if ratio is None else f"{ratio:.2f}",
                _count(there),
                _diverged(there),
            ]
        )
    headings = [heading for heading, _, _ in columns.values()]
    return Table(
        f"Finalists: {setting.title}",
        ["method", "settings", *headings, "time / plain", "n", "diverged"],
        lines,
        [
            *_incomplete(plan, records),
            _FINALISTS_REMARK,
        ],
    )


def differences_table(
    protocol: Protocol, setting: Setting, plan: StagePlan, records: Mapping[str, Record]
) -> Table:
    """Compare the finalists with plain training and with the rival, seed by seed.

    Args:
        protocol: The protocol.
        setting: The setting.
        plan: The stage.
        records: The records, by run.

    Returns:
        The table.
    """
    methods = _by_method(plan, records)
    pairs = [
        (method, against)
        for against in (PLAIN, protocol.rival)
        for method in methods
        if against in methods and method not in {against, PLAIN}
    ]
    return _compared(
        f"Differences: {setting.title}",
        setting,
        [
            ((method, f"minus {against}"), methods[method], methods[against])
            for method, against in pairs
        ],
        ["method", ""],
        _incomplete(plan, records),
    )


def equal_time_table(
    protocol: Protocol,
    setting: Setting,
    plans: Mapping[str, StagePlan],
    records: Mapping[str, Record],
) -> Table:
    """Compare the dearer finalists, in as many epochs as take plain training's time.

    Args:
        protocol: The protocol.
        setting: The setting.
        plans: Its stages, by name.
        records: The records, by run.

    Returns:
        The table.
    """
    plan = plans["equal-time"]
    finalists = _by_method(plans["finalists"], records)
    plain = finalists.get(PLAIN, [])
    compared = []
    for method, there in _by_method(plan, records).items():
        epochs = there[0].values["epochs"]
        ratio = time_ratio(protocol, setting, method, records)
        time = NOTHING if ratio is None else f"{ratio * epochs / setting.base.epochs:.2f}"
        compared.append(((method, str(epochs), time), there, plain))
    dearer = {PLAIN, *(run.method for run in plan.runs)}
    cheap = [method for method in finalists if method not in dearer]
    remarks = [
        *_incomplete(plan, records),
        f"Differences to plain training in {setting.base.epochs} epochs, at the same seeds.",
        *(
            [f"No dearer than plain training, and so not here: {', '.join(cheap)}."]
            if cheap
            else []
        ),
    ]
    return _compared(
        f"At equal time: {setting.title}",
        setting,
        compared,
        ["method", "epochs", "time / plain"],
        remarks,
    )


def conditions_table(setting: Setting, plan: StagePlan, records: Mapping[str, Record]) -> Table:
    """Compare the methods under other conditions.

    Args:
        setting: The setting.
        plan: The stage.
        records: The records, by run.

    Returns:
        The table.
    """
    compared = []
    for condition in setting.conditions:
        methods = _by_method(plan, records, condition)
        compared += [
            ((condition, method), there, methods.get(PLAIN, []))
            for method, there in methods.items()
        ]
    return _compared(
        f"Under other conditions: {setting.title}",
        setting,
        compared,
        ["condition", "method"],
        [
            *_incomplete(plan, records),
            _CONDITIONS_REMARK,
        ],
    )


def flatness_table(settings: Sequence[Setting], records: Mapping[str, Record]) -> Table:
    """Correlate each measure of flatness with the test loss.

    Args:
        settings: The settings.
        records: The records, by run.

    Returns:
        The table.
    """
    lines = []
    for setting in settings:
        for name, heading in FLATNESS.items():
            there = flatness_records(setting, records, name)
            methods = [record.method for record in there]
            values = [record.figures[name] for record in there]
            losses = [record.figures["test_loss"] for record in there]
            over_all = correlation(values, losses)
            within = correlation(without_means(values, methods), without_means(losses, methods))
            if over_all is not None:
                lines.append(
                    [
                        setting.name,
                        heading,
                        f"{over_all.coefficient:+.2f}",
                        f"{over_all.p_value:.2g}",
                        NOTHING if within is None else f"{within.coefficient:+.2f}",
                        NOTHING if within is None else f"{within.p_value:.2g}",
                        str(over_all.num_points),
                    ]
                )
    return Table(
        "Flatness against test loss",
        ["setting", "measure", "ρ", "p", "ρ within methods", "p", "n"],
        lines,
        [
            _FLATNESS_REMARK,
        ],
    )


def flatness_records(setting: Setting, records: Mapping[str, Record], measure: str) -> list[Record]:
    """List the runs over which flatness is compared with test loss.

    Args:
        setting: The setting.
        records: The records, by run.
        measure: A measure of flatness.

    Returns:
        The tested runs of the setting as it is, in all methods.
    """
    return [
        record
        for record in records.values()
        if record.setting == setting.name
        if record.stage in {"finalists", "equal-time"}
        if not record.diverged and {measure, "test_loss"} <= record.figures.keys()
    ]


def show(
    value: Estimate | None, factor: float = 1.0, digits: int = 2, *, significant: bool = False
) -> str:
    """Write a mean with its standard error.

    Args:
        value: The mean.
        factor: What it is multiplied with.
        digits: Digits behind the point.
        significant: Whether there are two digits of the standard error instead, and ``digits``
            significant ones of a mean without one.

    Returns:
        The text; a dash for nothing.
    """
    if value is None:
        return NOTHING
    mean, error = factor * value.mean, value.standard_error
    if significant:
        size = abs(mean if error is None else error)
        wanted = digits if error is None else 2
        digits = max(0, wanted - 1 - math.floor(math.log10(size))) if size else digits
    written = f"{mean:.{digits}f}"
    return written if error is None else f"{written} ± {factor * error:.{digits}f}"


def describe_values(values: Mapping[str, object]) -> str:
    """Write settings in few words.

    Args:
        values: Their values, by name.

    Returns:
        The text.
    """
    return ", ".join(f"{name.rpartition('.')[2]}={value}" for name, value in values.items())


def _compared(
    title: str,
    setting: Setting,
    compared: Sequence[tuple[tuple[str, ...], list[Record], list[Record]]],
    headings: Sequence[str],
    remarks: Sequence[str],
) -> Table:
    """Lay out methods beside what they are compared with; p values are corrected over all lines."""
    test = compared_figure(setting)
    figures = ((test.name, test.heading, test.factor, 2), ("test_loss", "test loss", 1.0, 4))
    found = [
        paired_difference(there, others, name) if there is not others else None
        for _, there, others in compared
        for name, *_ in figures
    ]
    adjusted = iter(holm([each.p_value for each in found if each is not None]))
    p_values = [None if each is None else next(adjusted) for each in found]
    lines = []
    for number, (cells, there, _) in enumerate(compared):
        line = [*cells]
        for i, (name, _, factor, digits) in enumerate(figures):
            place = number * len(figures) + i
            line += [
                show(estimate(there, name), factor, digits),
                *_difference(found[place], p_values[place], factor, digits),
            ]
        pairs = [each.num_pairs for each in found[number * 2 : number * 2 + 2] if each is not None]
        lines.append([*line, str(min(pairs)) if pairs else NOTHING, _diverged(there)])
    columns = [
        column
        for _, heading, _, _ in figures
        for column in (heading, "difference, 95 %", "p (Holm)")
    ]
    tests = sum(each is not None for each in found)
    remark = (
        "Means ± standard errors; mean paired differences ± half of their 95 % t-interval; p of "
        f"two-sided paired t-tests, corrected by Holm's method over the {tests} of this table. n "
        "is the number of pairs in which neither run diverged: a method of which some diverged is "
        "flattered."
    )
    return Table(title, [*headings, *columns, "n", "diverged"], lines, [*remarks, remark])


def _difference(
    difference: Difference | None, p_value: float | None, factor: float, digits: int
) -> tuple[str, str]:
    if difference is None or p_value is None:
        return NOTHING, NOTHING
    return (
        f"{factor * difference.mean:+.{digits}f} ± {factor * difference.half_width:.{digits}f}",
        f"{p_value:.2g}",
    )


def _own_values(setting: Setting, record: Record) -> dict[str, object]:
    """List the settings of a run that are not those of plain training."""
    return {
        name: value
        for name, value in record.values.items()
        if record.method == PLAIN or name not in setting.plain_grid
    }


def _points(plan: StagePlan | None) -> list[list[StudyRun]]:
    """Group the runs of a stage by their point, whatever their seed."""
    points: dict[str, list[StudyRun]] = {}
    for run in plan.runs if plan is not None else ():
        points.setdefault(run.key.rpartition("/")[0], []).append(run)
    return list(points.values())


def _by_method(
    plan: StagePlan, records: Mapping[str, Record], condition: str = ""
) -> dict[str, list[Record]]:
    """Group the records of a stage by method."""
    found: dict[str, list[Record]] = {}
    for run in plan.runs:
        if run.key in records and run.condition == condition:
            found.setdefault(run.method, []).append(records[run.key])
    return found


def _incomplete(plan: StagePlan, records: Mapping[str, Record]) -> list[str]:
    done, total = len(plan.runs) - len(plan.missing(records)), len(plan.runs)
    if done == total:
        return []
    return [f"Incomplete: {done} of {total} runs. What is there may change."]


def _count(records: Sequence[Record]) -> str:
    return str(sum(not record.diverged for record in records))


def _diverged(records: Sequence[Record]) -> str:
    number = sum(record.diverged for record in records)
    return f"{number} of {len(records)}" if number else "none"
