"""The forest plot: differences, their significance, and which way is better."""

import dataclasses

import pytest
from study_worker import PROTOCOL, SETTING

from experiments.study.forest import describe_forest, draw_forest, forest_lines
from experiments.study.stages import plan_stage

ROW = {"finalists": 0, "equal-time": 1}


@pytest.fixture
def records(records_up_to):
    """Records in which SAM gains 2, 3 and 4 points, and SEHT-H as much one way as the other."""
    gains = {"SAM": (0.02, 0.03, 0.04), "SEHT-H": (0.03, -0.03, 0.0)}
    return {
        key: record._replace(
            figures=record.figures
            | {"test_accuracy": 0.5 + gains.get(record.method, (0.0, 0.0, 0.0))[record.seed]}
        )
        if record.stage in ROW
        else record
        for key, record in records_up_to("conditions").items()
    }


def plans_of(records, *stages):
    return {
        "digits": {stage: plan_stage(PROTOCOL, SETTING, stage, records) for stage in stages},
    }


def test_differences_are_in_points_and_p_values_are_corrected(records):
    lines = forest_lines([SETTING], plans_of(records, "finalists"), records)
    by_method = {line.method: line for line in lines["digits", "finalists"]}
    assert by_method.keys() == {"SAM", "Gauss-Newton SEHT-H", "SEHT-H"}
    sam = by_method["SAM"]
    assert sam.difference.mean == pytest.approx(3.0)
    assert sam.difference.half_width == pytest.approx(4.302653 / 3**0.5)
    assert 0.05 / 3 < sam.difference.p_value < 0.05  # significant by itself alone
    assert not sam.significant
    assert sam.time == 2.0


@pytest.fixture
def closer(records):
    """Records in which SAM's gain at equal epochs is nearly the same at each seed."""
    return {
        key: record._replace(figures=record.figures | {"test_accuracy": 0.53 + record.seed / 1e4})
        if (record.stage, record.method) == ("finalists", "SAM")
        else record
        for key, record in records.items()
    }


def test_points_are_full_where_the_difference_is_significant(closer):
    stages = ("finalists", "equal-time")
    figure = draw_forest([SETTING], plans_of(closer, *stages), closer)
    assert len(figure.axes) == len(stages)
    for stage, full in (("finalists", [True, False, False]), ("equal-time", 3 * [False])):
        axis = figure.axes[ROW[stage]]
        points = [bars.lines[0] for bars in axis.containers]
        assert [p.get_markerfacecolor() == p.get_color() for p in points] == full, stage
    at_equal_epochs = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert at_equal_epochs == ["SAM, 2.0×", "Gauss-Newton SEHT-H, 2.0×", "SEHT-H, 2.0×"]
    assert figure.axes[1].get_yticklabels()[0].get_text() == "SAM"


@pytest.mark.parametrize(
    ("selected_by", "inverted"), [("validation_accuracy", False), ("validation_perplexity", True)]
)
def test_better_is_to_the_right(records, selected_by, inverted):
    setting = dataclasses.replace(SETTING, selected_by=selected_by)
    with_both = {
        key: record._replace(
            figures=record.figures
            | {"test_perplexity": 100 * record.figures.get("test_accuracy", 0.0)}
        )
        for key, record in records.items()
    }
    figure = draw_forest([setting], plans_of(records, "finalists"), with_both)
    assert figure.axes[0].xaxis_inverted() == inverted


def test_before_two_seeds_are_tested_there_is_no_figure(records):
    key = next(key for key, record in records.items() if record.stage == "finalists")
    some = {key: records[key]}
    assert draw_forest([SETTING], plans_of(records, "finalists"), some) is None
    assert draw_forest([SETTING], {}, records) is None


def test_of_a_method_of_which_a_run_diverged_nothing_is_significant(closer):
    key = next(
        key
        for key, record in closer.items()
        if (record.stage, record.method) == ("finalists", "SAM")
    )
    closer[key] = closer[key]._replace(diverged=True)
    lines = forest_lines([SETTING], plans_of(closer, "finalists"), closer)["digits", "finalists"]
    (sam,) = (line for line in lines if line.method == "SAM")
    assert (sam.difference.num_pairs, sam.significant) == (2, False)


def test_what_it_shows_is_said_in_words(closer):
    plans = plans_of(closer, "equal-time", "finalists")
    text = describe_forest([SETTING], plans, closer)
    epochs, time = text.split("at equal epochs, test accuracy, %: ")[1].split("at equal time, ")
    assert epochs.startswith("SAM +3.01 ± 0.02 (significant), ")
    assert "SEHT-H +0.00 ± 7.45." in epochs
    assert "SAM +3.00 ± 2.48, " in time
