"""The tables of docs/scaling.md are those of its evidence, which `benchmarks communication` wrote.

Whether today's program still communicates that is `test_communication.py`'s question.
"""

import json
from pathlib import Path

import pytest

from benchmarks.communication import GAUSS_NEWTON, HESSIAN, PLAIN_FORM, SPARSE

DOCS = Path(__file__).parents[2] / "docs"
NETWORKS = {"mlp": "perceptron", "transformer": "transformer", "resnet18": "residual network"}
NOTHING_DRAWN, OTHERS = "SEHT-D, nothing drawn", "SEHT-D, its other programs"
STEPS = {PLAIN_FORM: "plain", GAUSS_NEWTON: "Gauss–Newton SEHT-H", HESSIAN: "SEHT-H"}


def cells(file, model, placement, step):
    """The cells of one line of a table: one for each program that the line is about."""
    report = json.loads((DOCS / "evidence" / "benchmarks" / f"{file}.json").read_text())
    form = next((form for form, name in STEPS.items() if name == step), SPARSE)
    return [
        cell
        for cell in report["cells"]
        if (cell["model"], cell["placement"], cell["form"]) == (model, placement, form.name)
        and (form != SPARSE or (cell["branches"] == [0]) == (step == NOTHING_DRAWN))
    ]


def shown(cells, number, write):
    """A number, or the range of several."""
    numbers = [number(cell) for cell in cells]
    ends = dict.fromkeys((write(min(numbers)), write(max(numbers))))
    return " to ".join(ends)


def kilobytes(number):
    return f"{number / 1000:,.0f}"


def collectives(cell):
    return sum(cell["counts"].values())


def matrices(cell):
    return cell["reduced_bytes"]["matrices"]


def gathered(cell):
    return cell["bytes"]["all-gather"]


@pytest.fixture(scope="module")
def lines():
    return (DOCS / "scaling.md").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("step", [*STEPS.values(), NOTHING_DRAWN, OTHERS])
@pytest.mark.parametrize("model", NETWORKS)
def test_the_tables_are_those_of_the_evidence(lines, model, step):
    tpu, host = (
        cells(f"communication-{kind}", model, "replicated", step) for kind in ("tpu", "host")
    )
    replicated = [
        shown(tpu, collectives, str),
        shown(tpu, matrices, kilobytes),
        shown(tpu, lambda cell: cell["reduced_bytes"]["vectors"], lambda n: f"{n / 1000:.1f}"),
        f"{shown(tpu, lambda cell: cell['reduced_bytes']['scalars'], str)} B",
        shown(host, matrices, kilobytes),
    ]
    assert f"| {NETWORKS[model]} | {step} | {' | '.join(replicated)} |" in lines
    tpu, host, left_to_xla = (
        cells(f"communication-{kind}", model, placement, step)
        for kind, placement in (("tpu", "gathered"), ("host", "gathered"), ("host", "sharded"))
    )
    sharded = [
        shown(tpu, lambda cell: cell["counts"]["all-gather"], str),
        shown(tpu, gathered, kilobytes),
        shown(tpu, matrices, kilobytes),
        shown(host, gathered, kilobytes),
        shown(left_to_xla, gathered, kilobytes),
    ]
    assert f"| {NETWORKS[model]} | {step} | {' | '.join(sharded)} |" in lines


@pytest.mark.parametrize("model", NETWORKS)
@pytest.mark.parametrize("placement", ["replicated", "gathered"])
def test_on_accelerators_every_program_reduces_each_gradient_once(model, placement):
    (plain,) = cells("communication-tpu", model, placement, "plain")
    for step in (*STEPS.values(), NOTHING_DRAWN, OTHERS):
        for cell in cells("communication-tpu", model, placement, step):
            assert matrices(cell) == matrices(plain)
