"""The exact trace is timed for whole layers, or extrapolated and marked."""

import io
import json

import pytest
from rich.console import Console

from benchmarks import exact_trace
from benchmarks.exact_trace import (
    ExactTraceConfig,
    LayerCost,
    NoSuchLayerError,
    measure_layer,
    run_exact_trace,
    whole_network,
)
from benchmarks.models import QUICK_SIZES, build_benchmark_model


@pytest.fixture(scope="module")
def model():
    return build_benchmark_model("resnet18", QUICK_SIZES["resnet18"])


def test_the_table_says_what_was_extrapolated(monkeypatch):
    monkeypatch.setattr(exact_trace, "WORTH_MEASURING_SECONDS", 0.0)
    console = Console(file=io.StringIO(), width=120)
    config = ExactTraceConfig(weights=50, quick=True)
    report = json.loads(run_exact_trace(config, console).read_text())
    stem, head, whole = report["layers"]
    assert (stem["num_weights"], stem["num_measured"], stem["extrapolated"]) == (108, 50, True)
    assert (head["num_weights"], head["num_measured"], head["extrapolated"]) == (50, 50, False)
    assert whole["extrapolated"]
    lines = {
        line.split("│")[1].strip(): line
        for line in console.file.getvalue().splitlines()
        if line.startswith("│")
    }
    assert "¹" in lines["stem_conv"]
    assert "¹" not in lines["head"]
    assert "¹" in lines[exact_trace.WHOLE]


def test_a_layer_that_takes_less_than_a_minute_is_measured_whole(model):
    cost = measure_layer(model, "stem_conv", 50)
    assert (cost.num_weights, cost.num_measured) == (108, 108)


def test_the_whole_network_is_at_the_price_of_the_dearest_layer(model):
    costs = [LayerCost("a", 10, 10, 7.0, 0.5), LayerCost("b", 20, 4, 3.0, 0.25)]
    whole = whole_network(model, costs)
    assert whole.seconds == 0.5 * model.num_params
    # What was measured, and the price of one more for each of the others.
    assert [cost.seconds for cost in costs] == [7.0, 3.0 + 16 * 0.25]


def test_a_layer_that_is_not_there_is_an_error(model):
    with pytest.raises(NoSuchLayerError, match="no layer 'conv'; the network has head, stage1"):
        measure_layer(model, "conv", 1)


@pytest.mark.parametrize(("field", "value"), [("width", 0), ("weights", -1)])
def test_numbers_are_checked(field, value):
    with pytest.raises(ValueError, match=f"{field} must be at least"):
        ExactTraceConfig(**{field: value})
