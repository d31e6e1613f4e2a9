"""The tables of README and docs/study.md are those of the committed records."""

import re
from pathlib import Path

import pytest

from experiments.report.tables import NOTHING
from experiments.study.protocol import PLAIN, PROTOCOL
from experiments.study.records import read_records
from experiments.study.stages import plan_stage, time_ratio
from experiments.study.tables import (
    conditions_table,
    differences_table,
    equal_time_table,
    finalists_table,
    longer_table,
)

ROOT = Path(__file__).parents[3]
STUDY = (ROOT / "docs/study.md").read_text()
README = (ROOT / "README.md").read_text()
SECTIONS = {
    "images": "### ResNet-18 of width 8",
    "convnet": "### A network without normalisation",
    "text": "### An LSTM",
}
LABELS = {
    "plain training": PLAIN,
    "the recommended form": "Gauss-Newton SEHT-H",
    "Gauss–Newton SEHT-D": "Gauss-Newton SEHT-D",
    "Gauss–Newton SEHT-D at every tenth step": "Lazy Gauss-Newton SEHT-D",
    "SEHT-H": "SEHT-H",
    "SEHT-D": "SEHT-D",
    "bounded SEHT-D": "Bounded SEHT-D",
    "SAM": "SAM",
    "mixup": "Mixup",
    "cutout": "Cutout",
}
SETTINGS = {setting.name: setting for setting in PROTOCOL.settings}
NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?(?:e-?\d+)?")


@pytest.fixture(scope="module")
def records():
    return read_records(ROOT / "results/study/runs.jsonl")


def published_tables(heading, text=STUDY):
    """Return the tables of a section, each as its heading and its rows."""
    section = text.partition(f"{heading}\n")[2].partition("\n##")[0]
    tables = re.findall(r"(?:^ *\|.*\n)+", section, flags=re.MULTILINE)
    lines = [[_cells(line) for line in table.splitlines()] for table in tables]
    return [(header, rows) for header, _, *rows in lines]


def summary(text):
    """Return the three numbered points."""
    return re.search(r"^1\. \*\*With.*?\n\n", text, flags=re.MULTILINE | re.DOTALL)[0]


def _cells(line):
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def assert_same(published, computed):
    """Compare the numbers of two cells, as precisely as the first is written."""
    numbers = NUMBER.findall(published.replace("−", "-"))
    assert numbers or computed in {"", NOTHING}, (published, computed)
    expected = NUMBER.findall(computed.replace("−", "-"))
    assert len(expected) == len(numbers), (published, computed)
    for text, number in zip(numbers, expected, strict=True):
        mantissa, _, exponent = text.partition("e")
        digits = len(mantissa.partition(".")[2])
        unit = 10.0 ** (int(exponent or 0) - digits)
        # Half a unit, and half of one of the next digit, to which the report itself may be rounded.
        assert abs(float(text) - float(number)) <= 0.551 * unit, (published, computed)


def lines_of(table):
    return [dict(zip(table.headings, line, strict=True)) for line in table.lines]


def by_method(table):
    return {line["method"]: line for line in lines_of(table)}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_tables_of_finalists_are_those_of_the_records(records, name):
    setting = SETTINGS[name]
    plan = plan_stage(PROTOCOL, setting, "finalists", records)
    values = by_method(finalists_table(setting, plan, records))
    differences = by_method(differences_table(setting, plan, records))
    header, rows = published_tables(SECTIONS[name])[0]
    figure = header[1]
    seen = {LABELS[row[0].partition(",")[0].removesuffix(" as in the paper")]: row for row in rows}
    assert seen.keys() == values.keys()
    for method, row in seen.items():
        _, value, difference, p_value, loss, loss_difference, loss_p_value, time = row
        assert_same(value, values[method][figure])
        assert_same(loss, values[method]["test loss"])
        assert_same(time, f"{time_ratio(setting, method, records).median:.3f}")
        if method != PLAIN:
            beside = differences[method]
            assert_same(difference, beside[f"{figure}: difference, 95 %"])
            assert_same(p_value, beside[f"{figure}: p (Holm)"])
            assert_same(loss_difference, beside["test loss: difference, 95 %"])
            assert_same(loss_p_value, beside["test loss: p (Holm)"])


@pytest.mark.parametrize("name", SETTINGS)
def test_the_tables_at_equal_time_are_those_of_the_records(records, name):
    setting = SETTINGS[name]
    plans = {
        stage: plan_stage(PROTOCOL, setting, stage, records)
        for stage in ("finalists", "equal-time")
    }
    computed = by_method(equal_time_table(setting, plans, records))
    plain = by_method(finalists_table(setting, plans["finalists"], records))[PLAIN]
    computed[PLAIN] = plain | {"epochs": str(setting.base.epochs)}
    header, rows = published_tables(SECTIONS[name])[1]
    figure = header[2]
    seen = {LABELS[row[0]]: row for row in rows}
    assert seen.keys() == computed.keys()
    for method, row in seen.items():
        _, epochs, value, difference, p_value, loss, loss_difference, loss_p_value = row
        line = computed[method]
        assert epochs == line["epochs"]
        assert_same(value, line[figure])
        assert_same(loss, line["test loss"])
        if method != PLAIN:
            assert_same(difference, line[f"{figure}: difference, 95 %"])
            assert_same(p_value, line[f"{figure}: p (Holm)"])
            assert_same(loss_difference, line["test loss: difference, 95 %"])
            assert_same(loss_p_value, line["test loss: p (Holm)"])


def test_the_table_of_conditions_is_that_of_the_records(records):
    setting = SETTINGS["images"]
    plan = plan_stage(PROTOCOL, setting, "conditions", records)
    table = conditions_table(setting, plan, records)
    computed = {(line["condition"], line["method"]): line for line in lines_of(table)}
    ((_, rows),) = published_tables("### Other conditions")
    assert [row[0] for row in rows] == list(setting.conditions)
    for condition, accuracy, sam, recommended, loss, sam_loss, recommended_loss in rows:
        plain = computed[condition, PLAIN]
        assert_same(accuracy, plain["test accuracy, %"])
        assert_same(loss, plain["test loss"])
        for method, difference, loss_difference in (
            ("SAM", sam, sam_loss),
            ("Gauss-Newton SEHT-H", recommended, recommended_loss),
        ):
            line = computed[condition, method]
            assert_same(difference, line["test accuracy, %: difference, 95 %"])
            assert_same(loss_difference, line["test loss: difference, 95 %"])


def test_the_table_of_longer_training_is_that_of_the_records(records):
    ((_, rows),) = published_tables("### Plain training that lasts as long")
    assert len(rows) == len(SETTINGS)
    for setting, row in zip(PROTOCOL.settings, rows, strict=True):
        plans = {
            stage: plan_stage(PROTOCOL, setting, stage, records)
            for stage in ("finalists", "longer")
        }
        table = longer_table(PROTOCOL, setting, plans, records)
        longer, plain, recommended = lines_of(table)
        figure = table.headings[3]
        _, epochs, value, plain_value, recommended_value, difference, loss_difference = row
        assert epochs == f"{longer['epochs']} in place of {plain['epochs']}"
        assert_same(value, longer[figure])
        assert_same(plain_value, plain[figure])
        assert_same(recommended_value, recommended[figure])
        assert_same(difference, recommended[f"{figure}: difference, 95 %"])
        assert_same(loss_difference, recommended["test loss: difference, 95 %"])


def test_the_table_of_the_readme_is_that_of_the_records(records):
    ((_, rows),) = published_tables("## What it does, and what it does not do", README)
    plain, *others = rows
    methods = {
        "the recommended form": 3 * ["Gauss-Newton SEHT-H"],
        "SAM": 3 * ["SAM"],
        "the paper's form, the better of two": ["SEHT-H", "SEHT-H", "SEHT-D"],
        "the best of the cheap forms": [
            "Gauss-Newton SEHT-D",
            "Bounded SEHT-D",
            "Lazy Gauss-Newton SEHT-D",
        ],
        "the best of the rest, by validation": ["Mixup", "Cutout", "Gauss-Newton SEHT-D"],
    }
    assert [row[0].partition(" (")[0] for row in others] == list(methods)
    for number, setting in enumerate(PROTOCOL.settings):
        plan = plan_stage(PROTOCOL, setting, "finalists", records)
        table = differences_table(setting, plan, records)
        figure = table.headings[1]
        values = by_method(finalists_table(setting, plan, records))
        column = 1 + 2 * number
        assert_same(plain[column], values[PLAIN][figure])
        for row, of_row in zip(others, methods.values(), strict=True):
            line = by_method(table)[of_row[number]]
            assert_same(row[column], line[f"{figure}: difference, 95 %"])
            significant = float(line[f"{figure}: p (Holm)"]) < 0.05
            assert row[column].startswith("**") == significant, row
            ratio = time_ratio(setting, of_row[number], records).median
            assert_same(row[column + 1], f"{ratio:.2f}")


def test_the_summary_is_the_same_in_readme_and_docs():
    assert summary(README) == summary(STUDY)


def test_the_pictures_are_the_same():
    report = ROOT / "results/study/report/differences.png"
    assert (
        report.read_bytes() == (ROOT / "docs/evidence/figures/study-differences.png").read_bytes()
    )
