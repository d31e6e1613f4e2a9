"""The figure of the strengths: what does not fit into it is marked."""

import pytest
from matplotlib.collections import PathCollection
from study_worker import PROTOCOL, SETTING

from experiments.study.figures import diverged_strengths, draw_strengths, plain_error
from experiments.study.stages import plan_stage


@pytest.fixture
def plans(records_up_to):
    records = records_up_to("times")
    return {
        stage: plan_stage(PROTOCOL, SETTING, stage, records) for stage in ("plain", "strengths")
    }


def changed(records, setting, value, **changes):
    return {
        key: record._replace(**changes) if record.values.get(setting) == value else record
        for key, record in records.items()
    }


def marks(figure, method):
    """Return the strengths that are marked at the upper edge: above it, and diverged."""
    axis = next(each for each in figure.axes if each.get_title() == method)
    marked = [each for each in axis.collections if isinstance(each, PathCollection)]
    return [sorted(x for x, _ in each.get_offsets().tolist()) for each in marked]


def test_a_strength_whose_error_is_far_above_plain_trainings_is_marked(plans, records_up_to):
    records = changed(records_up_to("times"), "sam.rho", 0.1, figures={"validation_accuracy": 0.3})
    figure = draw_strengths(SETTING, plans, records)
    assert marks(figure, "SAM") == [[0.1], []]
    assert marks(figure, "SEHT-H") == [[], []]
    plain = plain_error(SETTING, plans, records)
    _, top = figure.axes[0].get_ylim()
    assert plain < top < 1.4 * plain


def test_a_strength_at_which_a_run_diverged_is_marked(plans, records_up_to):
    records = changed(records_up_to("times"), "seht-h.lam", 1e-4, diverged=True, figures={})
    lost = diverged_strengths(SETTING, plans, records)
    assert {method: strengths for method, strengths in lost.items() if strengths} == {
        "SEHT-H": [1e-4]
    }
    assert marks(draw_strengths(SETTING, plans, records), "SEHT-H") == [[], [1e-4]]


def test_before_the_first_strength_there_is_no_figure(plans):
    assert draw_strengths(SETTING, {"plain": plans["plain"]}, {}) is None
    assert not any(diverged_strengths(SETTING, {}, {}).values())
