"""The training loop is timed against the bare step."""

import io
import json

import pytest
from rich.console import Console

from benchmarks.trainer import LOOP, TrainerConfig, run_trainer


@pytest.mark.parametrize(
    "network",
    ["lstm", *(pytest.param(name, marks=pytest.mark.long) for name in ("resnet18", "transformer"))],
)
def test_the_loop_is_divided_by_the_bare_step(network):
    config = TrainerConfig(network=network, quick=True)
    path = run_trainer(config, Console(file=io.StringIO(), width=120))
    report = json.loads(path.read_text())
    bare, loop = report["rows"]
    assert loop["name"] == LOOP
    assert (bare["error"], loop["error"]) == (None, None)
    assert loop["ratio"] == pytest.approx(loop["seconds"] / bare["seconds"])
    assert (report["steps"], report["rounds"]) == (2, 1)


@pytest.mark.parametrize(
    ("field", "value"), [("width", 0), ("steps", 0), ("rounds", 0), ("batch_size", 5000)]
)
def test_numbers_are_checked(field, value):
    with pytest.raises(ValueError, match=f"{field} must be at"):
        TrainerConfig(**{field: value})
