"""Estimates of the diagonal, against the dense one and the variance that theory gives it."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from oracle import case_with_hessian

import seht_jax as seht

KEY = jax.random.key(5)
PROBES = 2000


@pytest.mark.parametrize("name", ["tanh_mlp", "lstm"])
def test_the_diagonal_is_the_dense_one(name):
    case, hessian = case_with_hessian(name)
    diagonal = jax.jit(
        seht.hutchinson_diagonal(case.loss_fn, KEY, num_probes=PROBES, has_aux=True)
    )(case.params, case.batch)
    chex.assert_trees_all_equal_shapes_and_dtypes(diagonal.mean, case.params)
    mean, error = (ravel_pytree(tree)[0] for tree in diagonal)
    variance = np.sum(hessian**2, axis=1) - np.diag(hessian) ** 2
    # Of some hundred entries one is farther than four standard deviations in a hundred trials.
    assert np.all(np.abs(mean - np.diag(hessian)) <= 4.5 * np.sqrt(variance / PROBES) + 1e-12)
    np.testing.assert_allclose(error, np.sqrt(variance / PROBES), rtol=0.25, atol=1e-12)


def test_the_sum_of_a_sample_is_one_of_the_trace(small):
    mean, error = jax.jit(seht.hutchinson_diagonal(small.loss_fn, KEY, num_probes=1))(
        small.params, small.batch
    )
    traces = jax.jit(seht.layer_traces(small.loss_fn, KEY, num_probes=1))(small.params, small.batch)
    for layer, trace in traces.items():
        np.testing.assert_allclose(ravel_pytree(mean[layer])[0].sum(), trace.mean)
    assert np.all(np.isnan(ravel_pytree(error)[0]))


def test_the_standard_error_is_that_of_the_samples():
    def loss_fn(params):
        return params[0] * params[1]  # a sample is sigma_0 sigma_1, in both entries

    diagonal = seht.hutchinson_diagonal(loss_fn, KEY, num_probes=50)(jnp.ones(2))
    mean = diagonal.mean[0]
    np.testing.assert_allclose(diagonal.standard_error, np.sqrt((1 - mean**2) / 49) * np.ones(2))


def test_the_gauss_newton_diagonal():
    def loss_fn(params):
        return 0.5 * jnp.sum((seht.outputs(jnp.sin(params)) - 1) ** 2)

    params = jnp.array([0.0, 0.5, 1.0])
    diagonal = seht.hutchinson_diagonal(loss_fn, KEY, num_probes=1, curvature="gauss_newton")
    np.testing.assert_allclose(diagonal(params).mean, jnp.cos(params) ** 2)


def test_low_precision_is_summed_in_float32():
    def loss_fn(params):
        return jnp.sum(params**2)

    diagonal = seht.hutchinson_diagonal(loss_fn, KEY)(jnp.ones(3, jnp.bfloat16))
    assert diagonal.mean.dtype == diagonal.standard_error.dtype == jnp.float32
    np.testing.assert_array_equal(diagonal.mean, [2, 2, 2])


def test_there_is_at_least_one_probe():
    with pytest.raises(ValueError, match="num_probes must be at least 1, got 0"):
        seht.hutchinson_diagonal(jnp.sum, KEY, num_probes=0)
