"""The tables of the study's report."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from experiments.report.summary import Estimate
from experiments.report.tables import NOTHING, Table
from experiments.strength.report import holm
from experiments.study.protocol import PLAIN, Protocol, Setting
from experiments.study.records import Record
from experiments.study.stages import (
    STAGES,
    StagePlan,
    StudyRun,
    TimeRatio,
    is_complete,
    time_ratio,
)
from experiments.study.statistics import (
    Difference,
    correlation,
    estimate,
    no_worse_p_value,
    paired_difference,
    without_means,
)
from experiments.sweep.definition import more_is_better

FLATNESS = {
    "hessian_trace": "tr(H)",
    "gauss_newton_trace": "tr(G)",
    "top_eigenvalue": "largest eigenvalue of H",
    "relative_trace": "relative trace of G",
    "params_norm": "‖θ‖",
}
"""Measures of flatness, by the name of their figure: the larger, the sharper, but for the norm."""

FLATNESS_STAGES = {
    "equal epochs": ("finalists",),
    "with equal time": ("finalists", "equal-time"),
}
"""Stages over whose runs flatness is compared with test loss, by what they are called; the last
ones hold all others."""

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
    "does not depend on the scale of the weights. The time is that of a step, in steps "
    "of plain training: the median, least and most of epochs of both that were trained in turn."
)
_PAIRS_REMARK = (
    "Means ± standard errors; mean paired differences ± half of their 95 % t-interval. n is the "
    "number of pairs in which neither run diverged: a method of which some diverged is flattered."
)
_TESTS_REMARK = (
    "p is of two-sided paired t-tests, corrected by Holm's method over the lines of its column."
)
_DIFFERENCES_REMARK = (
    "The validation part chose the strengths, at other seeds: "
    "its differences are beside the test's as a check, without a test of their own."
)
_CONDITIONS_REMARK = (
    "Differences to plain training under the same condition, at the same seeds. Settings are "
    "those of the finalists, which were not tuned again."
)
_LONGER_REMARK = (
    "Differences to plain training in as many epochs as take the recommended form's time, at the "
    "same seeds and with the settings that were chosen for fewer epochs. They have no test, as "
    "this was asked when most of the other tables were known."
)
_FLATNESS_REMARK = (
    "Spearman's rank correlation over the runs of the finalists, and over them and those at equal "
    "time: +1 where the sharper network always has the higher test loss. Runs at equal time are "
    "shorter, which by itself changes both flatness and loss. Within methods: after the mean of "
    "its method has been taken from each figure. The p values are for independent runs, which "
    "those of one seed are not, and are not corrected for their number."
)

_LASTING = ("method", "epochs", "time / plain")


class Compared(NamedTuple):
    """A figure by which methods are compared.

    Attributes:
        name: Its name in a record.
        heading: What stands above a column of it.
        factor: What it is multiplied with.
        digits: Digits behind the point.
    """

    name: str
    heading: str
    factor: float = 1.0
    digits: int = 2


def compared_figure(setting: Setting, split: str = "test") -> Compared:
    """Choose the figure by which methods are compared.

    Args:
        setting: The setting.
        split: The part of the data, ``"test"`` or ``"validation"``.

    Returns:
        Accuracy or perplexity, as choices are made by.
    """
    if setting.selected_by == "validation_accuracy":
        return Compared(f"{split}_accuracy", f"{split} accuracy, %", factor=100.0)
    return Compared(f"{split}_perplexity", f"{split} perplexity")


_TEST_LOSS = Compared("test_loss", "test loss", digits=4)


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
            return NOTHING
        return f"{total} runs" if done == total else f"{done} of {total} runs"

    lines = [
        [setting.name, *(cell(setting.name, stage) for stage in STAGES)]
        for setting in protocol.settings
    ]
    remarks = [] if is_complete(protocol, plans, records) else [_STAGES_REMARK]
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


def finalists_table(setting: Setting, plan: StagePlan, records: Mapping[str, Record]) -> Table:
    """Lay out the finalists on test data.

    Args:
        setting: The setting.
        plan: The stage.
        records: The records, by run.

    Returns:
        The table.
    """
    figures = [
        compared_figure(setting),
        _TEST_LOSS,
        Compared("calibration_error", "calibration error, %", factor=100.0),
        Compared("train_loss", "train loss", digits=4),
        *(Compared(name, heading, digits=4) for name, heading in FLATNESS.items()),
    ]
    lines = []
    for method, there in by_method(plan, records).items():
        ratio = time_ratio(setting, method, records)
        cells = [
            show(
                estimate(there, figure.name),
                figure.factor,
                figure.digits,
                significant=figure.name in FLATNESS,
            )
            for figure in figures
        ]
        lines.append(
            [
                method,
                describe_values(_own_values(setting, there[0])),
                *cells,
                _show_ratio(ratio),
                _count(there),
                _diverged(there),
            ]
        )
    headings = [figure.heading for figure in figures]
    return Table(
        f"Finalists: {setting.title}",
        ["method", "settings", *headings, "time / plain", "n", "diverged"],
        lines,
        [
            *_incomplete(plan, records),
            _FINALISTS_REMARK,
        ],
    )


def differences_table(setting: Setting, plan: StagePlan, records: Mapping[str, Record]) -> Table:
    """Compare the finalists with plain training, seed by seed.

    Args:
        setting: The setting.
        plan: The stage.
        records: The records, by run.

    Returns:
        The table.
    """
    methods = by_method(plan, records)
    plain = methods.pop(PLAIN, [])
    return _compared(
        f"Against plain training: {setting.title}",
        [((method,), there, plain) for method, there in methods.items()],
        ["method"],
        tested=(compared_figure(setting), _TEST_LOSS),
        shown=(compared_figure(setting, "validation"),),
        remarks=[*_incomplete(plan, records), _DIFFERENCES_REMARK],
    )


def rival_table(
    protocol: Protocol, setting: Setting, plan: StagePlan, records: Mapping[str, Record]
) -> Table:
    """Compare the finalists with the rival, seed by seed: is any no worse, at less than its cost?

    Args:
        protocol: The protocol.
        setting: The setting.
        plan: The stage.
        records: The records, by run.

    Returns:
        The table.
    """
    figure = compared_figure(setting)
    sign = 1 if more_is_better(setting.selected_by) else -1
    methods = by_method(plan, records)
    rival = methods.pop(protocol.rival, [])
    methods.pop(PLAIN, None)
    found = {
        method: difference
        for method, there in methods.items()
        if (difference := paired_difference(there, rival, figure.name)) is not None
    }
    p_values = holm(
        [
            no_worse_p_value(each._replace(mean=sign * each.mean), setting.margin)
            for each in found.values()
        ]
    )
    rival_ratio = time_ratio(setting, protocol.rival, records)
    lines = []
    for (method, difference), p_value in zip(found.items(), p_values, strict=True):
        ratio = time_ratio(setting, method, records)
        loss = paired_difference(methods[method], rival, _TEST_LOSS.name)
        lines.append(
            [
                method,
                _difference(difference, figure),
                f"{p_value:.2g}",
                _difference(loss, _TEST_LOSS),
                f"{ratio.median / rival_ratio.median:.2f}" if ratio and rival_ratio else NOTHING,
                str(difference.num_pairs),
                _diverged(methods[method]),
            ]
        )
    margin = f"{figure.factor * setting.margin:g}"
    remark = (
        "Mean paired differences ± half of their 95 % t-interval. A method is no worse where p is "
        f"below 0.05: of the one-sided paired t-test that it is worse by {margin} or more in "
        f"{figure.heading}, corrected by Holm's method over the lines."
    )
    return Table(
        f"Against {protocol.rival}: {setting.title}",
        [
            "method",
            f"{figure.heading}: difference, 95 %",
            "p of no worse (Holm)",
            f"{_TEST_LOSS.heading}: difference, 95 %",
            f"time / {protocol.rival}",
            "n",
            "diverged",
        ],
        lines,
        [*_incomplete(plan, records), remark],
    )


def equal_time_table(
    setting: Setting,
    plans: Mapping[str, StagePlan],
    records: Mapping[str, Record],
) -> Table:
    """Compare the dearer finalists, in as many epochs as take plain training's time.

    Args:
        setting: The setting.
        plans: Its stages, by name.
        records: The records, by run.

    Returns:
        The table.
    """
    plan = plans["equal-time"]
    finalists = by_method(plans["finalists"], records)
    plain = finalists.get(PLAIN, [])
    compared = [
        (_lasting(setting, there, records), there, plain)
        for there in by_method(plan, records).values()
    ]
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
        compared,
        _LASTING,
        tested=(compared_figure(setting), _TEST_LOSS),
        remarks=remarks,
    )


def longer_table(
    protocol: Protocol,
    setting: Setting,
    plans: Mapping[str, StagePlan],
    records: Mapping[str, Record],
) -> Table:
    """Compare the recommended form with plain training that lasts as long.

    Args:
        protocol: The protocol.
        setting: The setting.
        plans: Its stages, by name.
        records: The records, by run.

    Returns:
        The table.
    """
    plan = plans["longer"]
    longer = by_method(plan, records).get(PLAIN, [])
    methods = by_method(plans["finalists"], records)
    compared = [
        (_lasting(setting, there, records), there, longer)
        for there in (longer, methods.get(PLAIN, []), methods.get(protocol.recommended, []))
        if longer and there
    ]
    return _compared(
        f"Plain training that lasts as long: {setting.title}",
        compared,
        _LASTING,
        shown=(compared_figure(setting), _TEST_LOSS),
        remarks=[*_incomplete(plan, records), _LONGER_REMARK],
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
        methods = by_method(plan, records, condition)
        compared += [
            ((condition, method), there, methods.get(PLAIN, []))
            for method, there in methods.items()
        ]
    return _compared(
        f"Under other conditions: {setting.title}",
        compared,
        ["condition", "method"],
        shown=(compared_figure(setting), _TEST_LOSS),
        remarks=[*_incomplete(plan, records), _CONDITIONS_REMARK],
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
        for title, stages in FLATNESS_STAGES.items():
            for name, heading in FLATNESS.items():
                there = flatness_records(setting, records, name, stages)
                methods = [record.method for record in there]
                values = [record.figures[name] for record in there]
                losses = [record.figures["test_loss"] for record in there]
                over_all = correlation(values, losses)
                within = correlation(without_means(values, methods), without_means(losses, methods))
                if over_all is not None:
                    lines.append(
                        [
                            setting.name,
                            title,
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
        ["setting", "runs", "measure", "ρ", "p", "ρ within methods", "p", "n"],
        lines,
        [
            _FLATNESS_REMARK,
        ],
    )


def flatness_records(
    setting: Setting, records: Mapping[str, Record], measure: str, stages: Collection[str]
) -> list[Record]:
    """List the runs over which flatness is compared with test loss.

    Args:
        setting: The setting.
        records: The records, by run.
        measure: A measure of flatness.
        stages: Stages whose runs are wanted, as in `FLATNESS_STAGES`.

    Returns:
        The tested runs of these stages that did not diverge; none if one of the stages has none.
    """
    tested = [
        record
        for record in records.values()
        if record.setting == setting.name and record.stage in stages
        if not record.diverged and {measure, "test_loss"} <= record.figures.keys()
    ]
    return tested if {record.stage for record in tested} == set(stages) else []


def by_method(
    plan: StagePlan, records: Mapping[str, Record], condition: str = ""
) -> dict[str, list[Record]]:
    """Group the records of a stage by method.

    Args:
        plan: The stage.
        records: The records, by run.
        condition: Under which condition.

    Returns:
        The records, by the label of their method.
    """
    found: dict[str, list[Record]] = {}
    for run in plan.runs:
        if run.key in records and run.condition == condition:
            found.setdefault(run.method, []).append(records[run.key])
    return found


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
    compared: Sequence[tuple[tuple[str, ...], list[Record], list[Record]]],
    headings: Sequence[str],
    *,
    tested: Sequence[Compared] = (),
    shown: Sequence[Compared] = (),
    remarks: Sequence[str] = (),
) -> Table:
    """Lay out methods beside what they are compared with.

    Args:
        title: The table's title.
        compared: Of each line the first cells, the records, and those that they are compared with.
        headings: Above the first cells.
        tested: Figures that have p values, corrected over all lines, for each figure by itself.
        shown: Figures that have none.
        remarks: What stands below the table.

    Returns:
        The table.
    """
    columns: dict[str, list[str]] = {}
    pairs: list[list[int]] = [[] for _ in compared]
    for figure in (*tested, *shown):
        found = [
            paired_difference(there, others, figure.name) if there is not others else None
            for _, there, others in compared
        ]
        columns[figure.heading] = [
            show(estimate(there, figure.name), figure.factor, figure.digits)
            for _, there, _ in compared
        ]
        columns[f"{figure.heading}: difference, 95 %"] = [
            _difference(each, figure) for each in found
        ]
        if figure in tested:
            columns[f"{figure.heading}: p (Holm)"] = _corrected(found)
        for number, difference in enumerate(found):
            pairs[number] += [difference.num_pairs] if difference is not None else []
    lines = [
        [
            *cells,
            *(column[number] for column in columns.values()),
            str(min(pairs[number])) if pairs[number] else NOTHING,
            _diverged(there),
        ]
        for number, (cells, there, _) in enumerate(compared)
    ]
    explained = [_PAIRS_REMARK] if not tested else [_PAIRS_REMARK, _TESTS_REMARK]
    return Table(title, [*headings, *columns, "n", "diverged"], lines, [*remarks, *explained])


def _corrected(found: Sequence[Difference | None]) -> list[str]:
    """Write the p values of a column, corrected over all that it has."""
    adjusted = iter(holm([each.p_value for each in found if each is not None]))
    return [NOTHING if each is None else f"{next(adjusted):.2g}" for each in found]


def _difference(difference: Difference | None, figure: Compared) -> str:
    if difference is None:
        return NOTHING
    mean, half_width = figure.factor * difference.mean, figure.factor * difference.half_width
    return f"{mean:+.{figure.digits}f} ± {half_width:.{figure.digits}f}"


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


def _incomplete(plan: StagePlan, records: Mapping[str, Record]) -> list[str]:
    done, total = len(plan.runs) - len(plan.missing(records)), len(plan.runs)
    if done == total:
        return []
    return [f"Incomplete: {done} of {total} runs. What is there may change."]


def _show_ratio(ratio: TimeRatio | None) -> str:
    if ratio is None:
        return NOTHING
    if ratio.least == ratio.most:
        return f"{ratio.median:.2f}"
    return f"{ratio.median:.2f} ({ratio.least:.2f} to {ratio.most:.2f})"


def _lasting(
    setting: Setting, there: Sequence[Record], records: Mapping[str, Record]
) -> tuple[str, str, str]:
    """Write what runs are of, and how long they last: the cells below `_LASTING`."""
    method = there[0].method
    epochs = there[0].values.get("epochs", setting.base.epochs)
    ratio = time_ratio(setting, method, records)
    time = NOTHING if ratio is None else f"{ratio.median * epochs / setting.base.epochs:.2f}"
    return method, str(epochs), time


def _count(records: Sequence[Record]) -> str:
    return str(sum(not record.diverged for record in records))


def _diverged(records: Sequence[Record]) -> str:
    number = sum(record.diverged for record in records)
    return f"{number} of {len(records)}" if number else "none"
