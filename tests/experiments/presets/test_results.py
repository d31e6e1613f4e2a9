"""The results that are kept in the repository."""

import json
from pathlib import Path

import pytest

from experiments.presets import SWEEPS
from experiments.sweep.definition import with_epochs
from experiments.sweep.plan import compare_settings

RESULTS = Path(__file__).parents[3] / "results"


@pytest.mark.parametrize("name", sorted(path.parent.name for path in RESULTS.glob("*/sweep.json")))
def test_the_sweep_that_is_kept_can_be_gone_on_with(name):
    kept = json.loads((RESULTS / name / "sweep.json").read_text())
    points = {
        point["directory"]: point["settings"] for row in kept["rows"] for point in row["points"]
    }
    sweep = SWEEPS[name]
    epochs = {settings["epochs"] for settings in points.values()}
    if len(epochs) == 1:  # as `--epochs` makes them
        sweep = with_epochs(sweep, *epochs)
    compare_settings(points, sweep, name, "Take the changes back.")
