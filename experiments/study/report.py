"""The report of the study: tables and figures from the records alone."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from rich.console import Console

from experiments.report.page import Picture, png, render_markdown, render_page
from experiments.report.tables import Table, markdown
from experiments.report.theme import DARK, LIGHT, Theme
from experiments.safe_files import output_inside, replace_file
from experiments.study.figures import (
    describe_flatness,
    describe_strengths,
    draw_flatness,
    draw_strengths,
)
from experiments.study.forest import describe_forest, draw_forest
from experiments.study.protocol import EVERY, PLAIN, PROTOCOL, Protocol, Setting
from experiments.study.records import Record, read_records
from experiments.study.stages import StagePlan, is_complete, plan_study
from experiments.study.tables import (
    conditions_table,
    differences_table,
    equal_time_table,
    finalists_table,
    flatness_table,
    longer_table,
    progress_table,
    rival_table,
    tuning_table,
)

RECORDS = "runs.jsonl"

_TITLE = "Does penalising curvature help, and what does it cost?"


def write_study_report(directory: Path, console: Console, protocol: Protocol = PROTOCOL) -> Path:
    """Write tables, figures and the page.

    Args:
        directory: Where the records are, in a file `RECORDS`; the report goes to its subdirectory
            ``report``.
        console: Where the tables are shown.
        protocol: The protocol.

    Returns:
        The path of the page.

    Raises:
        ConfigMismatchError: If a record is of a run with other settings than the protocol's.
        DamagedFileError: If the records are damaged.
        ExperimentError: If the stages can not be planned; see `plan_study`.
    """
    records = read_records(directory / RECORDS)
    parts, opening = lay_out(protocol, records)
    text = (_TITLE, opening, parts, _made_with(records))
    output = output_inside(directory, "report", "report")
    output.mkdir(exist_ok=True)
    for part in parts:
        if isinstance(part, Picture):
            replace_file(output / f"{part.name}.png", png(part.light))
    replace_file(output / "report.md", render_markdown(*text).encode())
    page = output / "report.html"
    replace_file(page, render_page(*text).encode())
    console.print(markdown(_first_table(parts)), highlight=False, soft_wrap=True, markup=False)
    console.print(
        f"Page: {page}   Beside it: report.md and the figures.",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )
    return page


def lay_out(protocol: Protocol, records: Mapping[str, Record]) -> tuple[list[Table | Picture], str]:
    """Make all tables and figures.

    Args:
        protocol: The protocol.
        records: The records, by run.

    Returns:
        Tables and figures in their order, and the paragraph before them.

    Raises:
        ConfigMismatchError: See `write_study_report`.
        ExperimentError: See `write_study_report`.
    """
    plans = plan_study(protocol, records)
    parts: list[Table | Picture] = [progress_table(protocol, plans, records)]
    by_setting = {
        setting.name: {plan.stage: plan for plan in plans if plan.setting == setting.name}
        for setting in protocol.settings
    }
    parts += _forest(protocol, by_setting, records)
    for setting in protocol.settings:
        parts += _tested(protocol, setting, by_setting[setting.name], records)
    for setting in protocol.settings:
        parts += _strengths(setting, by_setting[setting.name], records)
    for setting in protocol.settings:
        parts += _flatness(setting, records)
    flatness = flatness_table(protocol.settings, records)
    tuning = [
        tuning_table(setting, by_setting[setting.name], records) for setting in protocol.settings
    ]
    parts += [table for table in (flatness, *tuning) if table.lines]
    return parts, f"{_how_much(protocol, plans, records)} {_which_is_which(protocol)}"


def _how_much(protocol: Protocol, plans: Sequence[StagePlan], records: Mapping[str, Record]) -> str:
    planned = {run.key for plan in plans for run in plan.runs}
    there = [record for key, record in records.items() if key in planned]
    complete = is_complete(protocol, plans, records)
    text = (
        f"The study is {'complete' if complete else 'under way'}: {len(there)} runs"
        f"{'' if complete else ' so far'}, of which {sum(r.diverged for r in there)} diverged."
    )
    left_out = len(records) - len(there)
    if left_out:
        text += (
            f" {left_out} further records are no part of it as the protocol and the other runs "
            "have it now, and are left out."
        )
    return text


def _which_is_which(protocol: Protocol) -> str:
    return (
        "SEHT-H and SEHT-D penalise the trace of the Hessian, along a random direction and in a "
        "random few layers and entries; the Gauss-Newton forms that of the Gauss-Newton matrix. "
        f"Lazy forms do so at every {EVERY}th step alone, bounded ones bound the estimate. "
        f"{protocol.recommended} is the recommended form, and {protocol.rival} what every form is "
        f"compared with beside {PLAIN.lower()} training."
    )


def _tested(
    protocol: Protocol,
    setting: Setting,
    plans: Mapping[str, StagePlan],
    records: Mapping[str, Record],
) -> list[Table]:
    tables = []
    if "finalists" in plans:
        finalists = plans["finalists"]
        tables += [
            finalists_table(setting, finalists, records),
            differences_table(setting, finalists, records),
            rival_table(protocol, setting, finalists, records),
        ]
    if "equal-time" in plans:
        tables.append(equal_time_table(setting, plans, records))
    if "conditions" in plans:
        tables.append(conditions_table(setting, plans["conditions"], records))
    if "longer" in plans:
        tables.append(longer_table(protocol, setting, plans, records))
    return [table for table in tables if table.lines]


def _forest(
    protocol: Protocol,
    plans: Mapping[str, Mapping[str, StagePlan]],
    records: Mapping[str, Record],
) -> list[Picture]:
    return _picture(
        "differences",
        "Differences from plain training, seed by seed, on test data. Right of the line is better, "
        "whatever the figure; full points are significant after correction.",
        lambda theme: draw_forest(protocol.settings, plans, records, theme),
        lambda: describe_forest(protocol.settings, plans, records),
    )


def _strengths(
    setting: Setting, plans: Mapping[str, StagePlan], records: Mapping[str, Record]
) -> list[Picture]:
    return _picture(
        f"strengths-{setting.name}",
        f"Error against strength: {setting.title}. Means over the tuning seeds ± standard errors; "
        "the dashed line is plain training.",
        lambda theme: draw_strengths(setting, plans, records, theme),
        lambda: describe_strengths(setting, plans, records),
    )


def _flatness(setting: Setting, records: Mapping[str, Record]) -> list[Picture]:
    return _picture(
        f"flatness-{setting.name}",
        f"Flatness against test loss: {setting.title}. One point for each tested run, a "
        "hollow one for those at equal time, which are shorter; ρ is Spearman's rank correlation.",
        lambda theme: draw_flatness(setting, records, theme),
        lambda: describe_flatness(setting, records),
    )


def _picture(
    name: str,
    caption: str,
    draw: Callable[[Theme], Figure | None],
    describe: Callable[[], str],
) -> list[Picture]:
    light, dark = draw(LIGHT), draw(DARK)
    if light is None or dark is None:
        return []
    return [Picture(name, caption, light, dark, describe())]


def _first_table(parts: Sequence[Table | Picture]) -> Table:
    return next(part for part in parts if isinstance(part, Table))


def _made_with(records: Mapping[str, Record]) -> list[str]:
    """Say with which code and where the runs were made, and how many each."""
    counts = Counter(
        ", ".join(
            f"{name} {value}"
            for name, value in {"commit": record.commit, **record.environment}.items()
            if value is not None
        )
        for record in records.values()
    )
    return [f"{place}: {number} runs" for place, number in counts.items()]
