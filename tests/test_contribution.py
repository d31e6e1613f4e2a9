"""What lambda multiplies: an estimate, a saturated one, or one that is free of its scale."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import seht_jax as seht

KEY = jax.random.key(0)
LAM = 0.3
W = np.array([1.0, -0.5])


def scaled_loss(scale):
    """A loss whose Gauss-Newton matrix is diagonal, so that its estimate is its trace."""

    def loss_fn(w):
        return 0.5 * jnp.sum(seht.outputs(scale * w**2 / 2) ** 2)

    return loss_fn


def trace(scale, w):
    return scale**2 * jnp.sum(w**2)


def penalised(loss_fn, lam=LAM, **settings):
    return seht.regularize(
        loss_fn, KEY, None, lam, curvature="gauss_newton", scale_free=True, **settings
    )


@pytest.mark.parametrize("num_probes", [1, 3])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_a_scale_free_penalty_has_the_gradient_of_the_logarithm(scale, num_probes):
    loss_fn = scaled_loss(scale)
    loss, slope = jax.value_and_grad(loss_fn)(jnp.asarray(W))
    log_slope = jax.grad(lambda w: jnp.log(trace(scale, w)))(W)
    expected = loss + LAM * loss**0.25, slope + LAM * loss**0.25 * log_slope
    actual = jax.jit(jax.value_and_grad(penalised(loss_fn, num_probes=num_probes)))(W)
    chex.assert_trees_all_close(actual, expected, rtol=1e-10)


def test_it_is_linear_in_lambda_and_has_a_forward_derivative():
    loss_fn = scaled_loss(1.0)
    root = loss_fn(W) ** 0.25
    by_lam = jax.grad(lambda lam: penalised(loss_fn, lam)(W))(jnp.array(LAM))
    chex.assert_trees_all_close(by_lam, root, rtol=1e-10)
    _, slope = jax.jvp(penalised(loss_fn), (W,), (jnp.array([1.0, 0.0]),))
    chex.assert_trees_all_close(slope, jax.grad(penalised(loss_fn))(W)[0], rtol=1e-10)


def test_the_estimate_in_the_log_is_that_of_the_trace():
    _, estimate = penalised(scaled_loss(2.0), with_estimate=True)(W)
    chex.assert_trees_all_close(estimate.mean, trace(2.0, W), rtol=1e-10)


@pytest.mark.parametrize(
    "loss_fn",
    [
        lambda w: 0.0 * jnp.sum(seht.outputs(w) ** 2),
        lambda w: -jnp.sum(seht.outputs(w) ** 2),
        lambda w: jnp.sum(seht.outputs(w) ** 2) - 100.0,
    ],
    ids=["zero", "concave", "negative"],
)
def test_without_a_positive_loss_and_estimate_it_is_the_plain_step(loss_fn):
    actual = jax.value_and_grad(penalised(loss_fn))(W)
    chex.assert_trees_all_close(actual, jax.value_and_grad(loss_fn)(jnp.asarray(W)), rtol=1e-12)


def test_it_is_computed_in_float32_in_a_network_of_bfloat16():
    loss_fn, w = scaled_loss(1.0), W.astype(jnp.bfloat16)
    actual = jax.grad(penalised(loss_fn))(w)
    expected = jax.grad(penalised(loss_fn))(W)
    assert actual.dtype == jnp.bfloat16
    chex.assert_trees_all_close(actual.astype(float), expected, rtol=0.03)


@pytest.mark.parametrize("num_probes", [1, 2])
def test_the_optax_form_adds_the_same_gradient(num_probes):
    loss_fn = scaled_loss(3.0)
    settings = {"num_probes": num_probes, "curvature": "gauss_newton", "scale_free": True}
    tx = seht.add_hessian_trace(None, LAM, KEY, **settings)
    state = tx.init(W)
    updates, state = tx.update(jax.grad(loss_fn)(W), state, W, value_fn=loss_fn)
    chex.assert_trees_all_close(updates, jax.grad(penalised(loss_fn))(W), rtol=1e-6)
    chex.assert_trees_all_close(state.estimate, jnp.float32(trace(3.0, W)), rtol=1e-6)


def test_under_shard_map_loss_and_trace_are_those_of_each_shard(two_devices):
    scales = jnp.array([1.0, 3.0])

    def gradient(w, scale):
        def average(w):
            return jax.lax.pmean(penalised(scaled_loss(scale[0]))(w), "data")

        return jax.grad(average)(w)

    spec = jax.sharding.PartitionSpec
    sharded = jax.shard_map(
        gradient, mesh=two_devices, in_specs=(spec(), spec("data")), out_specs=spec()
    )
    each = [jax.grad(penalised(scaled_loss(scale)))(jnp.asarray(W)) for scale in (1.0, 3.0)]
    chex.assert_trees_all_close(jax.jit(sharded)(jnp.asarray(W), scales), sum(each) / 2, rtol=1e-10)


ERRORS = [
    ({"curvature": "hessian"}, 'scale_free=True needs curvature="gauss_newton"'),
    ({"p": 0.1}, r"scale_free=True needs all layers \(p=None, .* p is 0\.1"),
    ({"num_probes": 3, "probe_batch": 2}, "scale_free needs all probes at once: .* which is 2"),
]


@pytest.mark.parametrize(("settings", "message"), ERRORS)
@pytest.mark.parametrize(
    "build",
    [
        lambda p, **settings: seht.regularize(jnp.sum, KEY, p, LAM, **settings),
        lambda p, **settings: seht.add_hessian_trace(p, LAM, KEY, **settings),
    ],
    ids=["regularize", "add_hessian_trace"],
)
def test_settings_that_do_not_go_together_are_refused(build, settings, message):
    arguments = {"p": None, "curvature": "gauss_newton", "scale_free": True} | settings
    with pytest.raises(ValueError, match=message):
        build(**arguments)


def test_a_bound_and_scale_free_exclude_each_other():
    with pytest.raises(ValueError, match=r"bound=1\.0 and scale_free=True exclude each other"):
        penalised(jnp.sum, bound=1.0)
