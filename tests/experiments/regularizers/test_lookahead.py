"""Lookahead."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.config import OptimizerConfig
from experiments.regularizers import SAM, Lookahead
from experiments.training.state import make_optimizer

SGD = OptimizerConfig(learning_rate=0.1, momentum=0.0, weight_decay=0.0, clip_norm=0.0)
CURVATURES = np.array([1.0, 3.0, -0.5])
START = {"w": jnp.array([1.0, -2.0, 0.5])}


def gradient(params, _=None):
    return {"w": jnp.asarray(CURVATURES, jnp.float32) * params["w"]}


def learning_rate(step, num_steps):
    return 0.05 * (1 + np.cos(np.pi * step / num_steps))


def run(method, num_steps):
    """Return fast weights, and weights for evaluation, after each step."""
    tx = make_optimizer(SGD, num_steps, method)
    params, state = START, tx.init(START)
    update = jax.jit(
        lambda params, state: tx.update(gradient(params), state, params, grad_fn=gradient)
    )
    history = []
    for _ in range(num_steps):
        updates, state = update(params, state)
        params = optax.apply_updates(params, updates)
        evaluated = params
        for part in method:
            evaluated = part.evaluation_params(evaluated, state)
        history.append((np.asarray(params["w"]), np.asarray(evaluated["w"])))
    return history


def test_slow_weights_follow_every_k_steps_and_are_evaluated():
    fast = slow = np.asarray(START["w"], float)
    history = run((Lookahead(sync_period=3, slow_step_size=0.4),), num_steps=7)
    for step, (found_fast, found_slow) in enumerate(history):
        fast = fast - learning_rate(step, 7) * CURVATURES * fast
        if (step + 1) % 3 == 0:
            fast = slow = slow + 0.4 * (fast - slow)
        np.testing.assert_allclose(found_fast, fast, rtol=1e-5)
        np.testing.assert_allclose(found_slow, slow, rtol=1e-5)


@pytest.mark.parametrize("order", [1, -1], ids=["sam first", "lookahead first"])
def test_it_wraps_an_optimizer_that_needs_gradients_elsewhere_and_is_wrapped(order):
    method = (SAM(rho=0.3), Lookahead(sync_period=2, slow_step_size=0.5))[::order]
    history = run(method, num_steps=4)
    start = np.asarray(START["w"], float)
    fast = start
    for step in range(2):
        g = CURVATURES * fast
        ascended = fast + 0.3 * g / np.linalg.norm(g)
        fast = fast - learning_rate(step, 4) * CURVATURES * ascended
    np.testing.assert_allclose(history[1][1], (start + fast) / 2, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sync_period": 0}, "sync_period must be at least 1, not 0"),
        ({"slow_step_size": 1.5}, r"slow_step_size must be in \(0, 1\], not 1.5"),
    ],
)
def test_a_setting_out_of_range_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Lookahead(**settings)
