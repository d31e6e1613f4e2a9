"""Step times, seed by seed."""

import pytest

from experiments.report.cost import costs
from experiments.report.read import read_sweep
from experiments.report.summary import summarise


def test_ratios_are_taken_seed_by_seed(finished):
    rows = {row.label: row for row in costs(summarise(read_sweep(finished)), "Plain")}
    assert rows["Plain"].seconds == pytest.approx((3e-3, 1e-3 / 3**0.5, 3))
    assert rows["Plain"].ratio.mean == 1
    ratios = [3 / 2, 4 / 3, 5 / 4]
    assert rows["SEHT-D 1"].ratio.mean == pytest.approx(sum(ratios) / 3)
    assert rows["SEHT-D 1"].median_ratio == pytest.approx(rows["SEHT-D 1"].ratio)


def test_runs_that_diverged_count_with_the_steps_that_they_took(finished):
    rows = {row.label: row for row in costs(summarise(read_sweep(finished)), "Plain")}
    for label in ("SEHT-D 5", "SEHT-D 5, p"):
        assert rows[label].ratio.n == 3
        assert rows[label].ratio.mean == pytest.approx((3 / 2 + 4 / 3 + 5 / 4) / 3)


def test_a_run_that_diverged_before_its_first_line_has_no_time(finished):
    for path in finished.glob("runs/seht-d-5-p/*/metrics.jsonl"):
        path.unlink()
    labels = [row.label for row in costs(summarise(read_sweep(finished)), "Plain")]
    assert labels == ["Plain", "SEHT-D 1", "SEHT-D 5"]


def test_the_mean_weighs_the_logs_lines_by_their_steps_and_the_median_does_not(finished):
    path = finished / "runs/plain/seed0/metrics.jsonl"
    text = path.read_text()
    slow = text.replace(
        '"step_time": 0.002, "seconds": 0.006', '"step_time": 0.01, "seconds": 0.03'
    )
    assert slow != text
    path.write_text(slow)
    (row, *_) = costs(summarise(read_sweep(finished)), "SEHT-D 1")
    assert row.ratio.mean == pytest.approx((((30 + 10) / 8) / 3 + 3 / 4 + 4 / 5) / 3)
    assert row.median_ratio.mean == pytest.approx((2 / 3 + 3 / 4 + 4 / 5) / 3)


def test_without_the_baseline_there_are_times_and_no_ratios(finished):
    rows = costs(summarise(read_sweep(finished)), "MM + FRL")
    assert [row.ratio for row in rows] == [None] * 4
