"""Noise stability optimization."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.regularizers import NSO, Outputs

H = np.array([[2.0, 0.5, 0.0], [0.5, -1.0, 0.3], [0.0, 0.3, 3.0]], np.float32)
PARAMS = {"w": jnp.array([1.0, -2.0, 0.5])}
SIGMA, SAMPLES = 0.1, 4000


def quadratic(params):
    w = params["w"]
    loss = 0.5 * w @ H @ w
    return loss, Outputs(network_state={"sum": jnp.sum(w)}, metrics={"loss": loss})


def mean_loss(method, inputs_of):
    return lambda key: method.objective(quadratic, inputs_of()._replace(key=key))


@pytest.mark.parametrize("num_perturbs", [1, 3])
def test_it_adds_half_the_variance_times_the_trace(num_perturbs, inputs_of):
    objective = mean_loss(NSO(sigma=SIGMA, num_perturbs=num_perturbs), inputs_of)
    keys = jax.random.split(jax.random.key(0), SAMPLES)
    added = jax.jit(jax.vmap(lambda key: objective(key)(PARAMS)[0]))(keys)
    added = np.asarray(added) - float(quadratic(PARAMS)[0])
    variance = SIGMA**4 / 4 * 2 * np.sum(H**2) / num_perturbs
    assert abs(added.mean() - SIGMA**2 / 2 * np.trace(H)) < 4 * (variance / SAMPLES) ** 0.5
    assert added.var() == pytest.approx(variance, rel=0.15)


def test_the_two_sides_cancel_in_the_gradient_of_a_quadratic(inputs_of):
    objective = mean_loss(NSO(sigma=SIGMA), inputs_of)(jax.random.key(1))
    (loss, outputs), gradient = jax.value_and_grad(objective, has_aux=True)(PARAMS)
    np.testing.assert_allclose(gradient["w"], H @ PARAMS["w"], atol=1e-5)
    assert float(outputs.network_state["sum"]) == pytest.approx(-0.5, abs=1e-5)
    assert float(outputs.metrics["loss"]) == pytest.approx(float(loss))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sigma": 0.0}, "sigma must be above 0 and finite, not 0.0"),
        ({"num_perturbs": 0}, "num_perturbs must be at least 1, not 0"),
    ],
)
def test_a_setting_out_of_range_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        NSO(**settings)
