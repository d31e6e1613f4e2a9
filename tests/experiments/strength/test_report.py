"""Comparisons with plain training, against SciPy and by hand."""

import math

import pytest
from scipy import stats

from experiments.strength.report import compare, holm, markdown, overview, verdict

PLAIN = [0.5, 0.7, 0.6, 0.9]
PENALISED = [0.4, 0.65, 0.62, 0.7]


def row(strength, seed, loss, *, diverged_at=-1, network="mlp", trace=10.0):
    return {
        "network": network,
        "width": 8,
        "form": "gauss-newton",
        "learning_rate": 0.1,
        "strength": strength,
        "seed": seed,
        "validation_loss": loss,
        "trace": trace,
        "share": 0.25,
        "loss_gradient_norm": 2.0,
        "first_non_finite_step": diverged_at,
    }


def rows(losses=PENALISED, network="mlp", **settings):
    plain = [row(0.0, seed, loss, network=network) for seed, loss in enumerate(PLAIN)]
    others = [
        row(0.01, seed, loss, network=network, **settings) for seed, loss in enumerate(losses)
    ]
    return plain + others


def test_a_cell_is_compared_with_plain_training_seed_by_seed():
    (comparison,) = compare(rows(trace=4.0))
    expected = stats.ttest_rel(PENALISED, PLAIN)
    interval = expected.confidence_interval(0.95)
    assert comparison.network == "mlp-8"
    assert comparison.num_seeds == 4
    assert comparison.difference == pytest.approx(sum(PENALISED) / 4 - sum(PLAIN) / 4)
    assert comparison.half_width == pytest.approx((interval.high - interval.low) / 2)
    assert comparison.p_value == pytest.approx(expected.pvalue)
    assert comparison.trace_ratio == pytest.approx(0.4)
    assert comparison.share == 0.25
    assert comparison.loss_gradient_norm == 2


@pytest.mark.parametrize("settings", [{"diverged_at": 7}, {"losses": [0.4, math.nan, 0.6, 0.7]}])
def test_a_run_that_diverged_is_counted_and_makes_the_cell_worse(settings):
    (comparison,) = compare(rows(**settings))
    assert comparison.num_diverged == (4 if "diverged_at" in settings else 1)
    assert comparison.difference == math.inf
    assert comparison.p_value == 0


def test_where_a_plain_run_diverged_nothing_is_claimed():
    broken = rows()
    broken[0]["validation_loss"] = math.nan
    (comparison,) = compare(broken)
    assert math.isnan(comparison.difference)
    assert comparison.p_value == 1


def test_equal_runs_are_no_difference():
    (comparison,) = compare(rows(losses=PLAIN))
    assert (comparison.difference, comparison.p_value) == (0, 1)


def test_a_difference_that_never_changes_is_one():
    (comparison,) = compare(rows(losses=[loss + 0.25 for loss in PLAIN]))
    assert comparison.p_value == pytest.approx(0, abs=1e-12)


def test_holm_adjusts_as_the_method_says():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_the_table_has_a_line_for_each_cell():
    comparisons = compare(rows() + rows(network="lstm"))
    lines = markdown(comparisons).splitlines()
    assert len(lines) == 2 + 2
    assert all(line.count("|") == lines[0].count("|") for line in lines)
    assert "-0.0825 ± " in lines[2]
    assert lines[3].startswith("| lstm-8 | gauss-newton | 0.1 | 1e-02 | 0.6750 | 0.5925 |")


def test_the_overview_has_strengths_side_by_side_and_marks_the_best():
    weak = [row(0.001, seed, loss + 0.001) for seed, loss in enumerate(PLAIN)]
    lines = overview(compare(rows(trace=4.0) + weak)).splitlines()
    assert lines[0] == "| gauss-newton | learning rate | plain | 0.001 | 0.01 |"
    assert lines[2] == "| mlp-8 | 0.1 | 0.6750 | +0.0010* (1.00) | **-0.0825** (0.40) |"


def test_nothing_is_best_where_plain_training_is():
    worse = [loss + 0.1 for loss in PLAIN]
    assert "**" not in overview(compare(rows(losses=worse)))


def test_the_verdict_corrects_over_the_cells_of_its_form_and_strength_alone():
    worse = [loss + gap for loss, gap in zip(PLAIN, (0.20, 0.21, 0.22, 0.21), strict=True)]
    comparisons = compare(rows() + rows(worse, network="lstm", trace=4.0))
    others = [each._replace(strength=0.5, p_value=1e-9) for each in comparisons] * 50
    text = verdict(comparisons + others, "gauss-newton", 0.01)
    p_value = 2 * stats.ttest_rel(worse, PLAIN).pvalue
    assert "higher than plain in 1 of 2 cells" in text
    assert f"in lstm-8 at 0.1 (+0.2100 of 0.6750, p = {p_value:.2g})." in text
    assert "Largest mean gap: +0.2100 of 0.6750 (lstm-8 at 0.1)" in text
    assert "0.40 to 1.00 times" in text


def test_the_verdict_says_where_nothing_is_significantly_worse():
    assert "significantly (Holm, over these 1) in none." in verdict(
        compare(rows()), "gauss-newton", 0.01
    )


def test_there_is_no_verdict_on_what_a_study_does_not_have():
    assert verdict(compare(rows()), "gauss-newton", 0.5) == ""
