"""Rounding errors against float64: float32 has fewer than bfloat16, and float64 none."""

import io
import json

import pytest
from rich.console import Console

from benchmarks import precision
from benchmarks.precision import COMPARED, FIGURES, PrecisionConfig, run_precision


@pytest.mark.long
def test_float32_is_nearer_to_float64_than_bfloat16(monkeypatch):
    networks = precision._networks
    monkeypatch.setattr(precision, "_networks", lambda config: {"lstm": networks(config)["lstm"]})
    config = PrecisionConfig(width=1, batch_size=2, num_probes=1)
    path = run_precision(config, Console(file=io.StringIO(), width=200))
    errors = json.loads(path.read_text())["relative_errors"]["lstm"]
    assert tuple(errors) == COMPARED
    for figure in FIGURES:
        assert 0 < errors["float32"][figure] < 1e-3
        assert errors["float32"][figure] < errors["bfloat16"][figure] < 0.5


@pytest.mark.parametrize("field", ["width", "batch_size", "num_probes"])
def test_numbers_are_checked(field):
    with pytest.raises(ValueError, match=f"{field} must be at least 1, not 0"):
        PrecisionConfig(**{field: 0})
