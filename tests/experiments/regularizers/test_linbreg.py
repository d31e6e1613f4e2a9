"""LinBreg and AdaBreg."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.config import OptimizerConfig
from experiments.regularizers import AdaBreg, LinBreg, Lookahead, Outputs
from experiments.regularizers.linbreg import density
from experiments.training.state import make_optimizer

NUM_STEPS = 12
SGD = OptimizerConfig(learning_rate=0.2, momentum=0.9, weight_decay=0.0, clip_norm=0.0)
START = {
    "layer": {
        "kernel": jnp.array([[0.0, 0.3], [-0.02, 0.0]]),
        "bias": jnp.array([0.0, 0.5]),
    }
}
TARGET = {
    "layer": {
        "kernel": jnp.array([[0.01, 0.9], [0.5, -1.0]]),
        "bias": jnp.array([0.02, -0.5]),
    }
}


def run(method):
    """Return the params after each step towards the target."""
    tx = make_optimizer(SGD, NUM_STEPS, method)
    params, state = START, tx.init(START)
    update = jax.jit(tx.update)
    history = []
    for _ in range(NUM_STEPS):
        gradient = jax.tree.map(jnp.subtract, params, TARGET)
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        history.append(params["layer"])
    return history


def sgd_step(gradient, moments, _step):
    moments["m"] = 0.9 * moments["m"] + gradient
    return moments["m"]


def adam_step(gradient, moments, step):
    moments["m"] = 0.9 * moments["m"] + 0.1 * gradient
    moments["v"] = 0.999 * moments["v"] + 0.001 * gradient**2
    corrected = moments["m"] / (1 - 0.9 ** (step + 1)), moments["v"] / (1 - 0.999 ** (step + 1))
    return corrected[0] / (np.sqrt(corrected[1]) + 1e-8)


@pytest.mark.parametrize(
    ("cls", "direction"), [(LinBreg, sgd_step), (AdaBreg, adam_step)], ids=["linbreg", "adabreg"]
)
@pytest.mark.parametrize("delta", [1.0, 0.5])
def test_weights_are_the_soft_threshold_of_the_dual_variable(cls, direction, delta):
    history = run((cls(lam=0.3, delta=delta),))
    for name, lam in {"kernel": 0.3, "bias": 0.0}.items():
        theta = np.asarray(START["layer"][name], float)
        target = np.asarray(TARGET["layer"][name], float)
        dual = theta / delta + lam * np.sign(theta)
        moments = {"m": np.zeros_like(theta), "v": np.zeros_like(theta)}
        for step, found in enumerate(history):
            rate = 0.1 * (1 + np.cos(np.pi * step / NUM_STEPS))
            dual = dual - rate * direction(theta - target, moments, step)
            theta = delta * np.sign(dual) * np.maximum(np.abs(dual) - lam, 0)
            np.testing.assert_allclose(found[name], theta, rtol=1e-4, atol=1e-5)


def test_a_weight_is_exactly_zero_until_its_gradients_add_up():
    kernels = np.array([params["kernel"] for params in run((LinBreg(lam=0.3),))])
    assert (kernels[:, 0, 0] == 0).all()  # its gradients are small
    switched_on = np.flatnonzero(kernels[:, 1, 1])
    assert 0 < switched_on[0] < NUM_STEPS - 1


def test_dual_variables_follow_where_lookahead_moves_the_weights():
    method = (LinBreg(lam=0.0), Lookahead(sync_period=2, slow_step_size=0.5))
    without = (Lookahead(sync_period=2, slow_step_size=0.5),)
    for found, expected in zip(run(method), run(without), strict=True):
        np.testing.assert_allclose(found["kernel"], expected["kernel"], rtol=1e-5, atol=1e-6)


def test_training_starts_from_few_weights_of_the_same_mean_square():
    kernel = jax.random.normal(jax.random.key(0), (200, 200))
    params = {"layer": {"kernel": kernel, "bias": jnp.ones(200)}}
    sparse = LinBreg(initial_density=0.1).initial_params(jax.random.key(1), params)
    np.testing.assert_array_equal(sparse["layer"]["bias"], 1)
    kept = np.asarray(sparse["layer"]["kernel"])
    assert kept[kept != 0].size / kept.size == pytest.approx(0.1, abs=4 * 0.3 / 200)
    expected = np.where(kept != 0, kernel / 0.1**0.5, 0)
    np.testing.assert_allclose(kept, expected, rtol=1e-6)
    assert float(density(sparse)) == pytest.approx((kept != 0).mean(), rel=1e-5)
    other = LinBreg(initial_density=0.1).initial_params(jax.random.key(2), params)
    assert not np.array_equal(other["layer"]["kernel"], kept)


def test_the_density_is_logged(inputs_of):
    def loss_fn(params):
        return jnp.sum(params["layer"]["bias"]), Outputs(network_state={}, metrics={})

    _, outputs = LinBreg().objective(loss_fn, inputs_of())(START)
    assert float(outputs.metrics["density"]) == 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lam": -1.0}, "lam must be at least 0 and finite, not -1"),
        ({"delta": 0.0}, "delta must be above 0 and finite, not 0.0"),
        ({"initial_density": 0.0}, r"initial_density must be in \(0, 1\], not 0.0"),
    ],
)
def test_a_setting_out_of_range_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        AdaBreg(**settings)
