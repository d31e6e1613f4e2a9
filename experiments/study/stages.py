"""Which runs there are: each stage a pure function of the protocol and of the records so far.

Choices are made by validation figures of the tuning seeds alone.

1. ``plain``: a grid of plain training, at the tuning seeds.
2. ``strengths``: each method at its strengths, with what was chosen for plain training.
3. ``times``: how long a step of each finalist takes, in plain training's. Finalists are plain
   training, the rival, the recommended form and the best others, at the strength that was chosen.
4. ``finalists``: these, tested. Runs of one seed start from the same weights and see the same
   batches.
5. ``equal-time``: those that are dearer than plain training, in as many epochs as take its time.
6. ``conditions``: plain training, the rival and the recommended form where something is different.
7. ``longer``: plain training, in as many epochs as take the recommended form's time.
"""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from experiments.config import TrainConfig, complete_settings, deciding_settings, to_json
from experiments.errors import ConfigMismatchError, ExperimentError
from experiments.study.protocol import PLAIN, Method, Protocol, Setting
from experiments.study.records import Record
from experiments.sweep.definition import Row, more_is_better
from experiments.training.run_directory import CHECKSUM

STAGES = ("plain", "strengths", "times", "finalists", "equal-time", "conditions", "longer")
TUNING = frozenset({"plain", "strengths"})
"""The stages by which choices are made; all others are tested."""

NAME = "study"

RATIO = "step_time_ratio"
"""The figure of a record of the stage ``times``."""


class StudyRun(NamedTuple):
    """One run of the study.

    Attributes:
        key: Tells the runs apart; their directory, relative to the output directory.
        stage: Its stage.
        setting: Name of its setting.
        condition: The change of the setting, if any.
        method: Label of the method.
        values: The settings that were tuned, or are changed, by name.
        config: The configuration, seed included.
    """

    key: str
    stage: str
    setting: str
    condition: str
    method: str
    values: dict[str, Any]
    config: TrainConfig


class StagePlan(NamedTuple):
    """The runs of one stage and setting.

    Attributes:
        stage: The stage.
        setting: Name of the setting.
        rows: A row for each method and condition, with the points at which it is run.
        runs: The runs, seed by seed.
    """

    stage: str
    setting: str
    rows: tuple[Row, ...]
    runs: tuple[StudyRun, ...]

    def missing(self, records: Mapping[str, Record]) -> list[StudyRun]:
        """List the runs that have no record.

        Args:
            records: The records, by run.

        Returns:
            The runs.
        """
        return [run for run in self.runs if run.key not in records]


class Finalist(NamedTuple):
    """A method with the settings that were chosen for it.

    Attributes:
        label: Its label.
        config: The configuration of the setting with the method, before the settings are changed.
        values: The settings that were chosen, by name.
    """

    label: str
    config: TrainConfig
    values: dict[str, Any]


class TimeRatio(NamedTuple):
    """How long a step takes, in steps of plain training, by epochs that were trained in turn.

    Attributes:
        median: The median of the epochs.
        least: The least.
        most: The most.
    """

    median: float
    least: float
    most: float


class _Group(NamedTuple):
    """Runs of one method under one condition: a row with its points."""

    method: str
    condition: str
    row: Row


def plan_study(protocol: Protocol, records: Mapping[str, Record]) -> list[StagePlan]:
    """List all stages that the records so far determine.

    Args:
        protocol: The protocol.
        records: The records, by run.

    Returns:
        The stages in their order, and of each the settings in theirs. A stage that depends on one
        that is not complete is not among them.

    Raises:
        ConfigMismatchError: If a record is of a run with other settings.
        ExperimentError: If plain training diverged wherever it was tried, or a method is so dear
            that no epoch of it takes plain training's time.
    """
    plans = [
        plan for setting in protocol.settings for plan in _plan_setting(protocol, setting, records)
    ]
    return sorted(plans, key=lambda plan: STAGES.index(plan.stage))


def plan_stage(
    protocol: Protocol, setting: Setting, stage: str, records: Mapping[str, Record]
) -> StagePlan:
    """List the runs of one stage, those before which are complete.

    Args:
        protocol: The protocol.
        setting: The setting.
        stage: One of `STAGES`.
        records: The records of the stages before, by run.

    Returns:
        The runs.

    Raises:
        ExperimentError: See `plan_study`.
    """
    groups, seeds = {
        "plain": lambda: (_plain(setting), protocol.tuning_seeds),
        "strengths": lambda: (_strengths(protocol, setting, records), protocol.tuning_seeds),
        # Its chosen strength has diverged at no tuning seed.
        "times": lambda: (_times(protocol, setting, records), protocol.tuning_seeds[:1]),
        "finalists": lambda: (_finalists(protocol, setting, records), protocol.finalist_seeds),
        "equal-time": lambda: (_equal_time(protocol, setting, records), protocol.finalist_seeds),
        "conditions": lambda: (_conditions(protocol, setting, records), protocol.condition_seeds),
        "longer": lambda: (_longer(protocol, setting, records), protocol.finalist_seeds),
    }[stage]()
    runs = []
    for seed in seeds:
        for method, condition, row in groups:
            for point in row.points():
                config = dataclasses.replace(point.config, name=NAME, seed=seed)
                key = f"{point.directory}/seed{seed}"
                runs.append(
                    StudyRun(key, stage, setting.name, condition, method, point.values, config)
                )
    return StagePlan(stage, setting.name, tuple(group.row for group in groups), tuple(runs))


def is_complete(
    protocol: Protocol, plans: Sequence[StagePlan], records: Mapping[str, Record]
) -> bool:
    """Tell whether nothing is left to do.

    Args:
        protocol: The protocol.
        plans: The stages that are planned.
        records: The records, by run.

    Returns:
        Whether all stages of all settings are planned, and all of their runs have a record.
    """
    every_stage = len(STAGES) * len(protocol.settings)
    return len(plans) == every_stage and not any(plan.missing(records) for plan in plans)


def choose_plain(
    protocol: Protocol, setting: Setting, records: Mapping[str, Record]
) -> dict[str, Any]:
    """Choose the settings of plain training.

    Args:
        protocol: The protocol.
        setting: The setting.
        records: Those of the stage ``plain``.

    Returns:
        The values, by setting, whose mean validation figure is the best.

    Raises:
        ExperimentError: If a run diverged at each of them.
    """
    plan = plan_stage(protocol, setting, "plain", records)
    scores = _scores(plan, setting, records)
    if not scores:
        raise ExperimentError(
            f"plain training diverged at every point of the grid of {setting.name!r}: change "
            "plain_grid in the protocol"
        )
    return max(scores, key=lambda score: score.goodness).values


def choose_finalists(
    protocol: Protocol, setting: Setting, records: Mapping[str, Record]
) -> list[Finalist]:
    """Choose the methods that are tested, each with its strength.

    Args:
        protocol: The protocol.
        setting: The setting.
        records: Those of the stages ``plain`` and ``strengths``.

    Returns:
        Plain training, the rival, the recommended form, the best of each of the protocol's groups,
        and the best of the others. A method that diverged at all of its strengths is not among
        them.

    Raises:
        ExperimentError: See `choose_plain`.
    """
    plan = plan_stage(protocol, setting, "strengths", records)
    best: dict[str, _Score] = {}
    for score in _scores(plan, setting, records):
        if score.method not in best or score.goodness > best[score.method].goodness:
            best[score.method] = score
    methods = {method.label: method for method in setting.methods}
    ranked = sorted(best, key=lambda label: -best[label].goodness)
    chosen = [label for label in (protocol.rival, protocol.recommended) if label in best]
    for group in protocol.groups:
        chosen += [label for label in ranked if label in group and label not in chosen][:1]
    chosen += [label for label in ranked if label not in chosen][: protocol.num_others]
    plain = Finalist(PLAIN, setting.base, choose_plain(protocol, setting, records))
    return [
        plain,
        *(
            Finalist(label, with_method(setting, methods[label]), best[label].values)
            for label in chosen
        ),
    ]


def plain_finalist(
    protocol: Protocol, setting: Setting, records: Mapping[str, Record]
) -> TrainConfig:
    """Return the configuration of plain training as it was tuned.

    Args:
        protocol: The protocol.
        setting: The setting.
        records: Those of the stages ``plain`` and ``strengths``.

    Returns:
        The configuration, with the first of the tuning seeds.

    Raises:
        ExperimentError: See `choose_plain`.
    """
    row = Row(PLAIN, setting.base, _fixed(choose_plain(protocol, setting, records)))
    (point,) = row.points()
    return dataclasses.replace(point.config, name=NAME, seed=protocol.tuning_seeds[0])


def time_ratio(setting: Setting, method: str, records: Mapping[str, Record]) -> TimeRatio | None:
    """Look up how long a step of a finalist takes, in steps of plain training.

    Args:
        setting: The setting.
        method: Label of the finalist.
        records: The records, by run.

    Returns:
        What was measured in the stage ``times``; `None` if nothing was.
    """
    if method == PLAIN:
        return TimeRatio(1.0, 1.0, 1.0)
    for record in records.values():
        if (record.stage, record.setting, record.method) == ("times", setting.name, method):
            figures = record.figures
            return TimeRatio(figures[RATIO], figures[f"{RATIO}_least"], figures[f"{RATIO}_most"])
    return None


def with_method(setting: Setting, method: Method) -> TrainConfig:
    """Add a method to plain training.

    Args:
        setting: The setting.
        method: The method.

    Returns:
        The configuration.
    """
    return dataclasses.replace(setting.base, method=(*setting.base.method, *method.parts))


def check_records(plans: Sequence[StagePlan], records: Mapping[str, Record]) -> None:
    """Check that the records are of runs as they are planned.

    Args:
        plans: The stages.
        records: The records, by run.

    Raises:
        ConfigMismatchError: If a record's settings are others.
    """
    for run in (run for plan in plans for run in plan.runs):
        if run.key in records:
            check_run_settings(run, records[run.key].settings, "its record")


def check_run_settings(run: StudyRun, settings: Mapping[str, Any], place: str) -> None:
    """Check that the settings of a run that was carried out are those that are planned.

    Args:
        run: The run.
        settings: The settings that were written down.
        place: Where, for the message.

    Raises:
        ConfigMismatchError: If they are others.
    """
    there = deciding_settings(complete_settings(settings))
    there.pop(CHECKSUM, None)
    planned = deciding_settings(to_json(run.config))
    different = [
        f"  {name}: {there.get(name, '(not set)')} there, {planned.get(name, '(not set)')} planned"
        for name in sorted({**there, **planned})
        if there.get(name) != planned.get(name)
    ]
    if different:
        raise ConfigMismatchError(
            f"The run {run.key} has other settings in {place} than in the protocol:\n"
            + "\n".join(different)
            + "\nTake the changes of the protocol back, or begin another study: another --records "
            "and another --output-dir."
        )


class _Score(NamedTuple):
    """The mean validation figure of a point; more is better."""

    method: str
    values: dict[str, Any]
    goodness: float


def _plan_setting(
    protocol: Protocol, setting: Setting, records: Mapping[str, Record]
) -> list[StagePlan]:
    plans = []
    for stage in STAGES:
        # Not every stage depends on the one before it, but it comes behind it.
        plan = plan_stage(protocol, setting, stage, records)
        plans.append(plan)
        check_records([plan], records)
        if plan.missing(records):
            break
    return plans


def _scores(plan: StagePlan, setting: Setting, records: Mapping[str, Record]) -> list[_Score]:
    """Compute the mean figure of each point at which no run diverged."""
    sign = 1 if more_is_better(setting.selected_by) else -1
    points: dict[str, list[StudyRun]] = {}
    for run in plan.runs:
        points.setdefault(run.key.rpartition("/")[0], []).append(run)
    scores = []
    for runs in points.values():
        ended = [records[run.key] for run in runs]
        if not any(record.diverged for record in ended):
            mean = statistics.fmean(record.figures[setting.selected_by] for record in ended)
            scores.append(_Score(runs[0].method, runs[0].values, sign * mean))
    return scores


def _plain(setting: Setting) -> list[_Group]:
    row = Row(_label("plain", setting, PLAIN), setting.base, setting.plain_grid)
    return [_Group(PLAIN, "", row)]


def _strengths(protocol: Protocol, setting: Setting, records: Mapping[str, Record]) -> list[_Group]:
    plain = choose_plain(protocol, setting, records)
    return [
        _Group(
            method.label,
            "",
            Row(
                _label("strengths", setting, method.label),
                with_method(setting, method),
                {**_fixed(plain), method.strength: method.values},
            ),
        )
        for method in setting.methods
    ]


def _times(protocol: Protocol, setting: Setting, records: Mapping[str, Record]) -> list[_Group]:
    return [
        _group("times", setting, finalist, finalist.values)
        for finalist in choose_finalists(protocol, setting, records)
        if finalist.label != PLAIN
    ]


def _finalists(protocol: Protocol, setting: Setting, records: Mapping[str, Record]) -> list[_Group]:
    return [
        _group("finalists", setting, finalist, finalist.values)
        for finalist in choose_finalists(protocol, setting, records)
    ]


def _equal_time(
    protocol: Protocol, setting: Setting, records: Mapping[str, Record]
) -> list[_Group]:
    groups = []
    for finalist in choose_finalists(protocol, setting, records):
        ratio = _measured_ratio(setting, finalist.label, records)
        epochs = round(setting.base.epochs / ratio)
        if epochs < 1:
            raise ExperimentError(
                f"{finalist.label} in {setting.name!r} takes {ratio:.3g} times plain training's "
                f"{setting.base.epochs} epochs: not one epoch of it takes as long"
            )
        if epochs < setting.base.epochs:
            values = finalist.values | {"epochs": epochs}
            groups.append(_group("equal-time", setting, finalist, values))
    return groups


def _conditions(
    protocol: Protocol, setting: Setting, records: Mapping[str, Record]
) -> list[_Group]:
    compared = {PLAIN, protocol.rival, protocol.recommended}
    finalists = choose_finalists(protocol, setting, records)
    return [
        _group("conditions", setting, finalist, finalist.values | dict(changes), condition)
        for condition, changes in setting.conditions.items()
        for finalist in finalists
        if finalist.label in compared
    ]


def _longer(protocol: Protocol, setting: Setting, records: Mapping[str, Record]) -> list[_Group]:
    plain, *others = choose_finalists(protocol, setting, records)
    if protocol.recommended not in {finalist.label for finalist in others}:
        return []
    epochs = round(setting.base.epochs * _measured_ratio(setting, protocol.recommended, records))
    if epochs <= setting.base.epochs:
        return []
    return [_group("longer", setting, plain, plain.values | {"epochs": epochs})]


def _measured_ratio(setting: Setting, method: str, records: Mapping[str, Record]) -> float:
    ratio = time_ratio(setting, method, records)
    if ratio is None:
        raise ExperimentError(f"there is no time of {method} in {setting.name!r}")
    return ratio.median


def _group(
    stage: str, setting: Setting, finalist: Finalist, values: Mapping[str, Any], condition: str = ""
) -> _Group:
    label = _label(stage, setting, finalist.label, condition)
    return _Group(finalist.label, condition, Row(label, finalist.config, _fixed(values)))


def _fixed(values: Mapping[str, Any]) -> dict[str, tuple[Any]]:
    """Make a grid of one point."""
    return {name: (value,) for name, value in values.items()}


def _label(stage: str, setting: Setting, method: str, condition: str = "") -> str:
    return " ".join(filter(None, (stage, setting.name, condition, method)))
