"""Means, paired differences and rank correlations of records."""

import math

import pytest
from scipy import stats
from study_worker import PROTOCOL, SETTING, record_of

from experiments.study.stages import plan_stage
from experiments.study.statistics import (
    correlation,
    estimate,
    no_worse_p_value,
    paired_difference,
    without_means,
)

RUN = plan_stage(PROTOCOL, SETTING, "plain", {}).runs[0]


def records(values, *, diverged=()):
    """Make up records at the seeds 0, 1, ..., each with one figure."""
    return [
        record_of(RUN, seed=seed, figures={"loss": value}, diverged=seed in diverged)
        for seed, value in enumerate(values)
    ]


def test_a_mean_has_a_standard_error():
    found = estimate(records([1.0, 2.0, 6.0]), "loss")
    assert found.mean == 3
    assert found.standard_error == pytest.approx(7**0.5 / 3**0.5)
    assert found.n == 3


def test_diverged_runs_are_in_no_mean():
    assert estimate(records([1.0, 99.0], diverged={1}), "loss") == (1.0, None, 1)
    assert estimate(records([1.0], diverged={0}), "loss") is None
    assert estimate(records([1.0]), "accuracy") is None


def test_a_difference_is_that_of_a_paired_t_test():
    first, second = [1.0, 2.5, 3.1, 4.2], [0.5, 2.0, 3.3, 3.0]
    found = paired_difference(records(first), records(second), "loss")
    expected = stats.ttest_rel(first, second)
    low, high = expected.confidence_interval(0.95)
    assert found.mean == pytest.approx((low + high) / 2)
    assert found.half_width == pytest.approx((high - low) / 2)
    assert found.p_value == pytest.approx(expected.pvalue)
    assert found.num_pairs == 4


def test_a_difference_is_over_the_seeds_at_which_neither_diverged():
    first, second = (
        records([1.0, 2.0, 3.0, 9.0], diverged={3}),
        records([1.0, 1.0, 1.0], diverged={0}),
    )
    found = paired_difference(first, second, "loss")
    assert (found.mean, found.num_pairs) == (1.5, 2)
    assert paired_difference(first, second[:2], "loss") is None


@pytest.mark.parametrize(("shift", "p_value"), [(0.0, 1.0), (1.0, 0.0)])
def test_differences_that_are_all_alike_leave_no_doubt(shift, p_value):
    first, second = records([1.0, 2.0, 3.0]), records([1.0 + shift, 2.0 + shift, 3.0 + shift])
    found = paired_difference(first, second, "loss")
    assert (found.mean, found.half_width, found.p_value) == (-shift, 0, p_value)


def test_no_worse_is_a_one_sided_test_of_the_margin():
    differences = [-0.2, 0.1, -0.4, 0.3]
    found = paired_difference(records(differences), records([0.0] * 4), "loss")
    expected = stats.ttest_1samp(differences, -0.5, alternative="greater").pvalue
    assert no_worse_p_value(found, 0.5) == pytest.approx(expected)


def test_differences_that_are_all_alike_are_beyond_a_margin_or_not():
    worse = paired_difference(records([1.0] * 3), records([1.25] * 3), "loss")
    assert no_worse_p_value(worse, 0.5) == 0
    assert no_worse_p_value(worse, 0.25) == 1


def test_a_rank_correlation_is_of_the_order_alone():
    found = correlation([1, 2, 3, 4], [1, 10, 11, 1e9])
    assert found.coefficient == pytest.approx(1)
    assert found.num_points == 4
    expected = stats.spearmanr([1, 2, 3, 4], [2, 1, 4, 3])
    assert correlation([1, 2, 3, 4], [2, 1, 4, 3]) == pytest.approx((*expected, 4))


@pytest.mark.parametrize(("first", "second"), [([1, 2], [1, 2]), ([1, 1, 1], [1, 2, 3])])
def test_too_little_for_a_correlation(first, second):
    assert correlation(first, second) is None


def test_within_methods_their_means_do_not_count():
    left = without_means([1.0, 3.0, 10.0, 30.0], ["a", "a", "b", "b"])
    assert left == [-1, 1, -10, 10]
    assert math.fsum(left) == 0
