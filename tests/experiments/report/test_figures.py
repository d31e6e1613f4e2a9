"""Figures show what the runs say."""

import shutil

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from experiments.report.figures import (
    _draw_band,
    draw_convergence,
    draw_max_iter,
    seht_d_settings,
)
from experiments.report.read import read_sweep
from experiments.report.summary import summarise
from experiments.report.theme import DARK, LIGHT


def drawn(directory, theme=LIGHT):
    sweep = read_sweep(directory)
    summaries = summarise(sweep)
    return draw_convergence(sweep, summaries, theme), draw_max_iter(summaries, theme)


def test_convergence_has_a_line_for_each_row_with_a_finished_run(finished):
    figure, _ = drawn(finished)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "Plain (n = 3)",
        "SEHT-D 1 (n = 3)",
        "SEHT-D 5 (n = 2, 1 diverged)",
    ]
    losses, accuracies = figure.axes
    np.testing.assert_allclose(losses.lines[0].get_ydata(), [5.0, 1.5])
    np.testing.assert_allclose(accuracies.lines[0].get_ydata(), [40, 80])
    assert len(losses.collections) == 3  # a band each


@pytest.mark.parametrize(("epochs", "marker"), [([1.0], "o"), ([1.0, 2.0], "")])
def test_a_curve_of_one_epoch_is_a_point_that_can_be_seen(epochs, marker):
    axis = Figure().subplots()
    _draw_band(axis, np.array(epochs), [np.ones(len(epochs))], {"color": "#000000"}, "plain")
    assert axis.lines[0].get_marker() == marker


def test_accuracy_by_max_iter_is_that_of_seht_d_alone(finished):
    settings = seht_d_settings(summarise(read_sweep(finished)))
    assert [setting[:2] for setting in settings] == [("p = 0.05", 1), ("p = 0.05", 5)]
    _, figure = drawn(finished)
    (axis,) = figure.axes
    np.testing.assert_allclose(axis.lines[0].get_ydata().astype(float), [62, 55])
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["1", "5"]


def test_with_nothing_to_compare_there_is_no_figure(finished):
    shutil.rmtree(finished / "runs/seht-d-5")
    assert drawn(finished)[1] is None
    shutil.rmtree(finished / "runs")
    assert drawn(finished) == (None, None)


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_all_text_has_the_themes_colour(finished, theme):
    for figure in drawn(finished, theme):
        assert to_hex(figure.get_facecolor()) == theme.background
        legends = [*figure.legends, *(axis.get_legend() for axis in figure.axes)]
        texts = [text for legend in filter(None, legends) for text in legend.get_texts()]
        texts += [text for axis in figure.axes for text in (axis.title, axis.xaxis.label)]
        texts += [tick for axis in figure.axes for tick in axis.get_xticklabels()]
        assert {to_hex(text.get_color()) for text in texts} == {theme.text}
