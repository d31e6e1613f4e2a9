"""What is chosen, and what the means are."""

import shutil

import pytest

from experiments.errors import ExperimentError
from experiments.report.read import read_sweep
from experiments.report.summary import Estimate, estimate, summarise
from experiments.training.run_directory import write_json


def by_label(directory):
    return {each.row.label: each for each in summarise(read_sweep(directory))}


def test_a_mean_has_the_standard_error_of_its_runs():
    assert estimate([1.0, 2.0, 6.0]) == pytest.approx((3.0, (7 / 3) ** 0.5, 3))
    assert estimate([0.5]) == Estimate(0.5, None, 1)
    assert estimate([]) is None


def test_a_row_without_a_grid_is_the_mean_over_its_seeds(finished):
    plain = by_label(finished)["Plain"]
    assert plain.metrics["test_accuracy"] == pytest.approx((0.8, 0.1 / 3**0.5, 3))
    assert plain.metrics["test_loss"] == pytest.approx((0.2, 0.1 / 3**0.5, 3))


def test_the_choice_is_by_validation_and_by_what_diverged_and_not_by_the_test(finished):
    chosen = by_label(finished)["SEHT-D 1"]
    # lam=0.1 has the best test figures, and lam=0.3 the best validation figures that survived.
    assert chosen.chosen.values == {"seht-d.lam": 0.2}
    assert chosen.metrics["test_accuracy"] == pytest.approx((0.62, 0.01 / 3**0.5, 3))


def test_diverged_runs_are_counted_and_in_no_mean(finished):
    row = by_label(finished)["SEHT-D 5"]
    assert (row.chosen.num_diverged, row.chosen.num_ended) == (1, 3)
    assert row.metrics["test_accuracy"] == pytest.approx((0.55, 0.05, 2))
    lost = by_label(finished)["SEHT-D 5, p"]
    assert (lost.chosen.num_diverged, lost.metrics) == (3, {})


def test_a_quoted_row_has_no_runs(finished):
    quoted = by_label(finished)["MM + FRL"]
    assert quoted.chosen is None
    assert quoted.row.num_runs == 0
    assert quoted.row.paper["test_accuracy"].mean == 95.33


def test_runs_that_are_not_at_their_end_are_missed(finished):
    shutil.rmtree(finished / "runs" / "plain" / "seed1")
    (finished / "runs/seht-d-1/seht-d.lam=0.2/seed0/result.json").unlink()
    sweep = read_sweep(finished)
    assert (sweep.num_ended, sweep.num_runs) == (16, 18)
    rows = by_label(finished)
    assert rows["Plain"].metrics["test_accuracy"] == pytest.approx((0.8, 0.1, 2))
    assert (rows["SEHT-D 1"].row.num_ended, rows["SEHT-D 1"].row.num_runs) == (8, 9)


SETTINGS = {"data.dataset": "cifar10", "method": ["plain"], "epochs": 2}


def test_runs_of_different_data_stand_in_no_table(finished):
    for seed, checksum in enumerate([1, 1, 2]):
        settings = SETTINGS | {"epochs": seed, "data.checksum": checksum}
        write_json(finished / f"runs/plain/seed{seed}" / "config.json", settings)
    with pytest.raises(ExperimentError, match=r"seed0 and .*seed2 have the same settings and saw"):
        read_sweep(finished)


def test_runs_of_different_data_settings_do(finished):
    for seed in range(3):
        settings = SETTINGS | {"data.validation_size": seed, "data.checksum": seed}
        write_json(finished / f"runs/plain/seed{seed}" / "config.json", settings)
    assert read_sweep(finished).num_ended == 18


def test_without_any_run_there_is_nothing_to_choose(finished):
    shutil.rmtree(finished / "runs")
    assert {each.chosen for each in by_label(finished).values()} == {None}


def test_a_directory_of_something_else_is_refused(tmp_path):
    with pytest.raises(ExperimentError, match=r"holds no sweep\.json, so it is no sweep's"):
        read_sweep(tmp_path)
