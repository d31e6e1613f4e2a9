"""Curves beside PyTorch's: what is compared, and what is written; the run itself needs PyTorch."""

import io
import json
import math
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks import language_curve
from benchmarks.language_curve import LanguageCurveConfig, compare, run_language_curve
from experiments.data.corpus import make_corpus

EVIDENCE = Path(__file__).parents[2] / "docs" / "evidence" / "benchmarks"


def test_a_difference_is_in_standard_errors():
    row = compare(100, [5.0, 6.0, 7.0], [5.0, 5.0, 5.0])
    assert row["difference"] == pytest.approx(1.0)
    assert row["standard_error"] == pytest.approx(math.sqrt(1 / 3))
    assert row["in_standard_errors"] == pytest.approx(math.sqrt(3))


@pytest.mark.parametrize("network", ["lstm", "gru"])
def test_the_curves_that_are_kept_lie_within_two_standard_errors_of_pytorchs(network):
    kept = json.loads((EVIDENCE / f"language_curve-{network}.json").read_text())
    assert [row["step"] for row in kept["rows"]] == [100, 200, 300]
    assert kept["seeds"] >= 3
    for row in kept["rows"]:
        expected = compare(row["step"], row["losses"], row["torch_losses"])
        assert row["in_standard_errors"] == pytest.approx(expected["in_standard_errors"])
        assert len(row["losses"]) == kept["seeds"]
        assert abs(row["in_standard_errors"]) < 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seeds": 1}, "seeds must be at least 2, not 1"),
        ({"steps": (200, 100)}, "steps must be rising numbers"),
        ({"steps": ()}, "steps must be rising numbers"),
    ],
)
def test_numbers_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        LanguageCurveConfig(**settings)


@pytest.mark.parametrize("network", ["gru", pytest.param("lstm", marks=pytest.mark.long)])
def test_both_are_trained_on_the_same_text(network, monkeypatch):
    pytest.importorskip("torch", reason="needs the extra `bench`")
    text = list("the quick brown fox jumps over the lazy dog ") * 40
    monkeypatch.setattr(language_curve, "load_corpus", lambda _: make_corpus(text, text, text))
    config = LanguageCurveConfig(network=network, seeds=2, steps=(1, 3), width=8)
    path = run_language_curve(config, Console(file=io.StringIO(), width=120))
    report = json.loads(path.read_text())
    assert [row["step"] for row in report["rows"]] == [1, 3]
    for row in report["rows"]:
        for losses in (row["losses"], row["torch_losses"]):
            assert all(map(math.isfinite, losses))
            assert len(set(losses)) == 2  # one for each seed
    first, last = report["rows"]
    assert first["losses"] != last["losses"]
    assert first["torch_losses"] != last["torch_losses"]
    assert report["median_step"]["ratio"] > 0
