"""The figures: both networks, and numbers where they belong."""

import numpy as np
import pytest
from analysed_runs import METHOD, PLAIN, QUICK

from experiments.analyse.figures import (
    draw_figures,
    draw_slices,
    draw_spectrum,
    draw_stability,
    draw_traces,
)
from experiments.analyse.measure import Eigenvalue
from experiments.analyse.stability import step_stability
from experiments.analyse.tables import Analysed, summary_table
from experiments.analyse.trained import FinishedRun
from experiments.report.theme import DARK
from seht_jax.analysis import SpectralQuadrature


def network(measured, method=(), label="plain", **result):
    config = PLAIN.__class__(**{**vars(PLAIN), "method": method})
    run = FinishedRun(PLAIN.resolved_run_dir, {}, config, result)
    return Analysed(label, run, measured, step_stability(config, measured))


@pytest.fixture
def networks(analysis):
    larger = analysis.measured._replace(slices=2 * analysis.measured.slices)
    return [network(larger, METHOD, "a $method$"), network(analysis.measured)]


def line(axis, label):
    (found,) = (line for line in axis.lines if line.get_label() == label)
    return found


def test_the_density_counts_the_eigenvalues(networks):
    known = SpectralQuadrature(np.array([[0.0, 10.0]] * 2), np.array([[0.75, 0.25]] * 2))
    measured = networks[1].measured._replace(
        num_params=40,
        quadrature=SpectralQuadrature(*map(np.float32, known)),
        largest=[Eigenvalue(10.0, 0.0)],
        smallest=[Eigenvalue(0.0, 0.0)],
    )
    (axis,) = draw_spectrum([network(measured)]).axes
    eigenvalues, density = line(axis, "plain").get_data()
    upper = eigenvalues > 5
    assert np.trapezoid(density, eigenvalues) == pytest.approx(40, rel=0.01)
    assert np.trapezoid(density[upper], eigenvalues[upper]) == pytest.approx(10, rel=0.01)


def test_bars_are_as_long_as_the_traces(networks):
    (axis,) = draw_traces(networks).axes
    layers = networks[0].measured.hessian.by_layer
    widths = [bar.get_width() for bar in axis.patches]
    assert widths == 2 * [trace.mean for trace in layers.values()]
    assert [label.get_text() for label in axis.get_yticklabels()] == list(layers)


def test_the_slices_are_drawn_with_their_mean(networks):
    (axis,) = draw_slices(QUICK, networks).axes
    first, second = (line(axis, label).get_ydata() for label in (r"a \$method\$", "plain"))
    np.testing.assert_allclose(first, networks[0].measured.slices.mean(axis=0))
    np.testing.assert_allclose(first, 2 * second)
    assert len(axis.lines) == 2 * (QUICK.slice_directions + 1)


def test_the_multiplier_is_1_at_the_limit(networks):
    (axis,) = draw_stability(networks[1:]).axes
    limit = networks[1].stability.max_learning_rate
    rates, factors = line(axis, f"plain: below {limit:.3g}").get_data()
    assert np.interp(limit, rates, factors) == pytest.approx(1, abs=0.05)
    assert line(axis, "learning rate at the start").get_xdata()[0] == 0.05


def test_a_network_without_positive_curvature_has_no_limit(analysis):
    flat = analysis.measured._replace(largest=[Eigenvalue(-1.0, 0.0)])
    table = summary_table(QUICK, [network(flat)])
    assert ["learning rate below which it is stable", "–"] in table.lines


def test_every_picture_says_its_numbers_without_being_seen(networks):
    pictures = draw_figures(QUICK, networks[1:])
    assert [each.name for each in pictures] == ["spectrum", "traces", "slices", "stability"]
    for each in pictures:
        assert each.alternative.startswith(each.caption)
        assert "plain: " in each.alternative[len(each.caption) :]
        assert each.dark.get_facecolor() != each.light.get_facecolor()


def test_networks_of_text_show_their_perplexity(analysis):
    table = summary_table(QUICK, [network(analysis.measured, test_perplexity=12.25)])
    assert ["test perplexity", "12.25"] in table.lines


def test_dark_figures_have_light_text(networks):
    (axis,) = draw_slices(QUICK, networks, DARK).axes
    assert axis.xaxis.label.get_color() == DARK.text
