"""Sharpness-aware minimization."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.config import OptimizerConfig
from experiments.regularizers import SAM
from experiments.training.state import make_optimizer

H = np.array([[2.0, 0.5], [0.5, -1.0]])
SGD = OptimizerConfig(learning_rate=0.1, momentum=0.0, weight_decay=0.0, clip_norm=0.0)


def gradient(w, _=None):
    return jnp.asarray(H, jnp.float32) @ w


def test_the_gradient_is_that_at_the_perturbed_point():
    tx = make_optimizer(SGD, num_steps=10, method=(SAM(rho=0.3),))
    w = np.array([1.0, -2.0])
    params = jnp.asarray(w, jnp.float32)
    updates, _ = tx.update(gradient(params), tx.init(params), params, grad_fn=gradient)
    g = H @ w
    np.testing.assert_allclose(updates, -0.1 * H @ (w + 0.3 * g / np.linalg.norm(g)), rtol=1e-5)


def test_a_gradient_of_zeros_stays_one():
    tx = make_optimizer(SGD, num_steps=10, method=(SAM(),))
    params = jnp.zeros(2)
    updates, _ = tx.update(gradient(params), tx.init(params), params, grad_fn=gradient)
    np.testing.assert_array_equal(updates, 0)


def test_a_rho_out_of_range_is_named():
    with pytest.raises(ValueError, match="rho must be above 0 and finite, not 0"):
        SAM(rho=0.0)
