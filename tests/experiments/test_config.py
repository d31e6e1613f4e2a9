"""The configuration."""

import dataclasses
import json
from pathlib import Path

import pytest

from experiments.config import DataConfig, TrainConfig, to_json
from experiments.presets import DESCRIPTIONS, PRESETS
from experiments.regularizers import SehtD, SehtH


@pytest.mark.parametrize(
    "field",
    ["epochs", "batch_size", "trace_examples", "trace_probes", "log_every", "checkpoint_every"],
)
def test_a_number_out_of_its_range_is_named(field):
    with pytest.raises(ValueError, match=f"{field} must be at least .*, not -1"):
        TrainConfig(**{field: -1})


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_has_its_name_a_description_and_json(preset):
    assert PRESETS[preset].name == preset
    assert DESCRIPTIONS[preset].endswith(".")
    assert json.loads(json.dumps(to_json(PRESETS[preset]))) == to_json(PRESETS[preset])


def test_places_are_no_settings():
    moved = TrainConfig(run_dir=Path("a"), data=DataConfig(data_dir=Path("b")))
    assert to_json(moved) == to_json(TrainConfig())


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"epochs": 11}, {"method": ()}, {"method": (SehtD(lam=1.0),)}],
)
def test_everything_else_is(change):
    assert to_json(dataclasses.replace(TrainConfig(), **change)) != to_json(TrainConfig())


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ((), "runs/digits/plain-seed3"),
        ((SehtD(),), "runs/digits/seht-d-seed3"),
        ((SehtD(), SehtH()), "runs/digits/seht-d+seht-h-seed3"),
    ],
)
def test_runs_get_directories_of_their_own(method, expected):
    config = dataclasses.replace(PRESETS["digits"], method=method, seed=3)
    assert config.resolved_run_dir == Path(expected)
