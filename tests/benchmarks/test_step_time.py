"""The benchmark of step times, at the smallest sizes: that it runs and what it writes."""

import io
import json

import pytest
from rich.console import Console

from benchmarks import step_time
from benchmarks.measure import ComputedRow, Row
from benchmarks.models import QUICK_SIZES, build_benchmark_model
from benchmarks.step_time import NoSuchRowError, Scope, StepTimeConfig, measure_model, select

SMALLEST = Scope(num_probes=(1,), sparse_num_probes=(1,), rounds=1)


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=120)


def measured(name, parts, console):
    model = build_benchmark_model(name, QUICK_SIZES[name])
    path = measure_model(model, SMALLEST, parts, console)
    return json.loads(path.read_text())


@pytest.mark.long
def test_every_row_of_a_network_is_measured(console):
    report = measured("mlp", (), console)
    assert report["finished"]
    assert report["environment"]["versions"]["jax"] is not None
    text = console.file.getvalue()
    for name, row in ((row["name"], row) for row in report["rows"]):
        assert name in text
        if "PyTorch" in name:
            assert row["error"] in {"not installed", None}
        else:
            assert row["error"] is None
            assert row["ratio"] > 0
    plain, skipped, *_ = report["rows"]
    assert (plain["name"], skipped["name"]) == ("plain step", "nothing drawn")
    # What is skipped is in the program: the compiler did not find out that it never runs.
    assert "conditional" in skipped["flops_note"]
    seconds = {row["name"]: row["seconds"] for row in report["rows"]}
    lazy = 0.75 * seconds["nothing drawn"] + 0.25 * seconds["SEHT-D, p = 0.05, 1 probe"]
    assert seconds["SEHT-D, p = 0.05, 1 probe, every 4th step"] == pytest.approx(lazy)


@pytest.mark.long
def test_a_network_with_batch_norm_is_measured(console):
    rows = measured("resnet18", ("SEHT-H, 1 probe",), console)["rows"]
    found = [row["name"] for row in rows if row["error"] is None]
    assert found[:2] == ["plain step", "SEHT-H, 1 probe"]
    assert rows[1]["memory_ratio"] > 1


def test_results_are_never_overwritten(monkeypatch, console):
    monkeypatch.setattr(step_time, "step_time_rows", lambda *args, **kwargs: [])
    model = build_benchmark_model("mlp", QUICK_SIZES["mlp"])
    paths = {measure_model(model, SMALLEST, (), console) for _ in range(3)}
    assert len(paths) == 3


def test_rows_are_selected_with_what_they_need():
    rows = [
        Row("plain step", None),
        Row("nothing drawn", None),
        Row("SEHT-D", None),
        ComputedRow("every 4th", {"nothing drawn": 0.75, "SEHT-D": 0.25}),
        Row("SAM", None),
    ]
    assert select(rows, ()) == rows
    assert select(rows, ("sam",)) == [rows[0], rows[4]]
    assert select(rows, ("4TH",)) == rows[:4]


def test_a_row_that_is_not_there_is_named():
    with pytest.raises(NoSuchRowError, match=r"(?s)'adam' in its name; there are.*SAM"):
        select([Row("SAM", None)], ("adam",))


def test_no_rounds_are_refused():
    with pytest.raises(ValueError, match="rounds must be at least 1, not 0"):
        StepTimeConfig(rounds=0)
