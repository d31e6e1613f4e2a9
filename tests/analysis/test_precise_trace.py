"""XTrace and Hutch++, against the dense trace and against Hutchinson's estimate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import case_with_hessian, without_aux

import seht_jax as seht
from seht_jax.analysis import hutch_plus_plus, xtrace

KEY = jax.random.key(11)
SIZE = 100
DECAY = 0.7 ** np.arange(SIZE)
ESTIMATES = pytest.mark.parametrize("estimate", [xtrace, hutch_plus_plus])


def rotated(eigenvalues):
    """Return a loss whose Hessian has these eigenvalues, in a rotated basis."""
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(SIZE, SIZE)))[0]
    matrix = rotation @ np.diag(eigenvalues) @ rotation.T
    return lambda params: 0.5 * params @ jnp.asarray(matrix, params.dtype) @ params


@ESTIMATES
def test_it_is_unbiased(estimate):
    case, hessian = case_with_hessian("tanh_mlp")

    @jax.jit
    def means(keys):
        return jax.lax.map(
            lambda key: (
                estimate(without_aux(case.loss_fn), key, num_probes=4)(case.params, case.batch).mean
            ),
            keys,
        )

    repeated = np.asarray(means(jax.random.split(KEY, 300)))
    error = repeated.std(ddof=1) / np.sqrt(len(repeated))
    assert abs(repeated.mean() - np.trace(hessian)) < 4 * error
    assert error > 0


@ESTIMATES
def test_where_the_spectrum_falls_off_it_is_a_hundred_times_as_precise(estimate):
    loss_fn = rotated(DECAY)
    precise = jax.jit(estimate(loss_fn, KEY, num_probes=24))(jnp.zeros(SIZE))
    plain = jax.jit(seht.hutchinson_trace(loss_fn, KEY, num_probes=72))(jnp.zeros(SIZE))
    assert 0 < precise.standard_error < plain.standard_error / 100
    assert abs(precise.mean - DECAY.sum()) < 5 * precise.standard_error
    assert precise.samples.shape == (24,)


@ESTIMATES
@pytest.mark.parametrize("rank", [0, 3])
def test_a_matrix_of_low_rank_has_its_exact_trace(estimate, rank):
    eigenvalues = DECAY * (np.arange(SIZE) < rank)
    params = jnp.zeros(SIZE, jnp.float32)
    trace = jax.jit(estimate(rotated(eigenvalues), KEY, num_probes=20))(params)
    np.testing.assert_allclose(trace.mean, eigenvalues.sum(), rtol=1e-5)


@ESTIMATES
@pytest.mark.parametrize("scale", [2.0**-40, 2.0**40])
def test_the_estimate_has_the_scale_of_the_matrix(estimate, scale):
    eigenvalues, params = 0.95 ** np.arange(SIZE), jnp.zeros(SIZE, jnp.float32)
    scaled, plain = (
        jax.jit(estimate(rotated(factor * eigenvalues), KEY, num_probes=10))(params)
        for factor in (scale, 1.0)
    )
    np.testing.assert_allclose(scaled.samples, scale * plain.samples, rtol=1e-3)
    assert plain.standard_error > 0.1


def test_the_standard_error_of_hutch_plus_plus_is_right():
    loss_fn = rotated(np.linspace(0, 1, SIZE))

    @jax.jit
    def estimates(keys):
        return jax.lax.map(
            lambda key: hutch_plus_plus(loss_fn, key, num_probes=10)(jnp.zeros(SIZE)), keys
        )

    repeated = estimates(jax.random.split(KEY, 400))
    spread = np.std(repeated.mean, ddof=1)
    claimed = np.sqrt(np.mean(repeated.standard_error**2))
    # A standard deviation of 400 means is known to about 4 % (one standard error).
    assert abs(claimed / spread - 1) < 0.16


@ESTIMATES
def test_each_product_is_reported(estimate):
    calls = []
    estimate(rotated(DECAY), KEY, num_probes=3, progress=lambda: calls.append(None))(
        jnp.zeros(SIZE)
    )
    jax.effects_barrier()
    assert len(calls) == {xtrace: 7, hutch_plus_plus: 9}[estimate]
