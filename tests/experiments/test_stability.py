"""The valley with a sharp and a flat minimum."""

import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from experiments import stability
from experiments.errors import DivergedError, SettingError
from experiments.stability import (
    FLAT,
    SHARP,
    StabilityConfig,
    critical_strength,
    descend_with_seht,
    equilibria,
    equilibria_over_strengths,
    loss_fn,
    run_stability,
    verdict,
)


@pytest.fixture(autouse=True)
def in_float64():
    """Compute as the command does."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Directory, results and text of a finished command."""
    console = Console(file=io.StringIO(), width=120)
    config = StabilityConfig(steps=300, seeds=2, output_dir=tmp_path_factory.mktemp("stability"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stability, "STARTS", stability.STARTS[:2])
        results = run_stability(config, console)
    return config, results, console.file.getvalue()


def slope(x, lam):
    """Return the derivative along the valley of the loss plus lambda times its trace, by hand."""
    rate = np.log(stability.SHARPNESS) / 2
    return x**3 - x + lam * (6 * x - rate * stability.SHARPNESS ** ((1 - x) / 2))


# The valley


def test_both_minima_are_equally_deep_and_one_is_twenty_times_sharper():
    hessian = jax.hessian(loss_fn)
    assert loss_fn(jnp.array(SHARP)) == loss_fn(jnp.array(FLAT)) == 0
    np.testing.assert_allclose(hessian(jnp.array(SHARP)), np.diag([2.0, 20.0]), atol=1e-12)
    np.testing.assert_allclose(hessian(jnp.array(FLAT)), np.diag([2.0, 1.0]), atol=1e-12)


def test_without_a_penalty_there_are_two_minima_and_a_saddle():
    found = equilibria(0.0)
    np.testing.assert_allclose([point.x for point in found], [-1, 0, 1], atol=1e-10)
    kinds = [point.classification.kind for point in found]
    assert kinds == ["asymptotically stable", "saddle", "asymptotically stable"]


@pytest.mark.parametrize(("share", "number"), [(0.95, 3), (1.05, 1)])
def test_at_the_critical_strength_the_sharp_minimum_is_gone(share, number):
    lam = share * critical_strength()
    found = equilibria(lam)
    assert len(found) == number
    for point in found:
        assert slope(point.x, lam) == pytest.approx(0, abs=1e-9)
    assert found[-1].x > 0
    assert found[-1].classification.kind == "asymptotically stable"


def test_the_drawn_equilibria_are_those_of_the_derivative_by_hand():
    strengths = np.array([0.0, 0.01, 0.05])
    drawn = equilibria_over_strengths(strengths)
    np.testing.assert_allclose(
        drawn.slopes, [slope(stability.VALLEY, lam) for lam in strengths], atol=1e-9
    )
    middle = np.abs(stability.VALLEY) < 0.5
    assert not drawn.stable[0, middle].any()
    assert drawn.stable[0, [0, -1]].all()


@pytest.mark.parametrize(("share", "side"), [(0.2, -1), (2.5, 1)])
def test_seht_leaves_the_sharp_minimum_for_the_flat_one_if_it_is_strong_enough(share, side):
    config = StabilityConfig(lam=share * critical_strength(), steps=600)
    path = jax.jit(lambda key: descend_with_seht(config, jnp.array(SHARP), key))(jax.random.key(0))
    assert path.shape == (601, 2)
    assert np.sign(path[-1, 0]) == side


def test_the_figures_in_the_documents():
    """λ = 0.0230 is critical; of 20 runs all end on the flat side, at a mean tr(H) of 2.57."""
    assert critical_strength() == pytest.approx(0.0230, abs=5e-5)
    config = StabilityConfig()
    keys = jax.vmap(jax.random.key)(jnp.arange(config.seeds))
    beside = jnp.array([SHARP[0] + 1e-3, 1e-3])
    ends = jax.jit(jax.vmap(lambda key: descend_with_seht(config, beside, key)[-1]))(keys)
    assert (ends[:, 0] > 0).all()
    traces = jax.vmap(lambda end: jnp.trace(jax.hessian(loss_fn)(end)))(ends)
    assert len(traces) == 20
    assert traces.mean() == pytest.approx(2.57, abs=5e-3)


# The command


def test_it_writes_what_it_returns(finished):
    config, results, _ = finished
    assert json.loads((config.output_dir / "stability.json").read_text()) == results


def test_it_finds_that_the_penalty_leaves_the_sharp_minimum(finished):
    _, results, text = finished
    assert results["plain_end"]["x"] == pytest.approx(-1, abs=1e-3)
    assert all(run["x"] > 0.5 and run["trace"] < 5 for run in results["seht_ends"])
    assert [point["kind"] for point in results["equilibria"]["penalised"]] == [
        "asymptotically stable"
    ]
    assert results["equilibria"]["plain"][0]["max_learning_rate"] == pytest.approx(0.1)
    assert "2 of 2 runs end on the flat side" in " ".join(text.split())
    assert "saddle" in text


@pytest.mark.parametrize(
    ("name", "size"), [("phase_portraits.png", (1800, 750)), ("stability.png", (1800, 630))]
)
def test_it_draws_figures(finished, name, size):
    config, _, _ = finished
    with Image.open(config.output_dir / name) as image:
        assert image.size == size
        assert np.asarray(image).std() > 0


def test_the_verdict_is_what_the_numbers_say():
    end = {"x": -1.0, "y": 0.0, "loss": 0.0, "trace": 22.0}
    results = {
        "settings": {"lam": 0.01},
        "critical_strength": 0.023,
        "plain_end": end,
        "seht_ends": [end, end | {"x": 0.9, "trace": 2.0}],
    }
    text = verdict(results)
    assert "plain gradient descent stays there" in text
    assert "1 of 2 runs end on the flat side, at a mean tr(H) of 12.00" in text
    assert "lambda = 0.01 is not above the critical 0.0230" in text


def test_a_descent_that_diverges_is_explained(tmp_path, console):
    config = StabilityConfig(learning_rate=5.0, steps=50, seeds=1, output_dir=tmp_path)
    with pytest.raises(DivergedError, match="Pass a smaller --learning-rate"):
        run_stability(config, console)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("lam", 0.0, "lam must be finite and above 0, not 0.0"),
        ("learning_rate", float("inf"), "--learning-rate must be finite and above 0, not inf"),
        ("steps", 0, "steps must be at least 1, not 0"),
        ("seeds", 0, "seeds must be at least 1, not 0"),
    ],
)
def test_numbers_out_of_range_are_refused(field, value, message):
    with pytest.raises(SettingError, match=message):
        StabilityConfig(**{field: value})
