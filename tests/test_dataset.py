"""The mean over batches, against the loss of all samples at once."""

import functools

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from oracle import assert_close

import seht_jax as seht

KEY = jax.random.key(2)
NUM_SAMPLES = 12


def loss_fn(params, batch, scale=1.0):
    hidden = jnp.tanh(batch["image"] @ params["first"])
    logits = seht.outputs(hidden @ params["second"])
    return scale * networks.cross_entropy(logits, batch["label"])


@pytest.fixture
def params():
    return {
        "first": jax.random.normal(KEY, (4, 5)),
        "second": jax.random.normal(KEY, (5, 3)),
    }


@pytest.fixture
def data():
    return {
        "image": jax.random.normal(KEY, (NUM_SAMPLES, 4)),
        "label": jax.random.randint(KEY, (NUM_SAMPLES,), 0, 3),
    }


@pytest.mark.parametrize("batch_size", [1, 4, 5, 8, NUM_SAMPLES, 20])
def test_value_and_gradient_are_those_of_all_samples(batch_size, params, data):
    mean_loss = seht.mean_over_batches(loss_fn, batch_size)
    actual = jax.jit(jax.value_and_grad(mean_loss))(params, data, scale=2.0)
    assert_close(actual, jax.jit(jax.value_and_grad(loss_fn))(params, data, scale=2.0))


@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton"])
def test_estimates_are_those_of_all_samples(curvature, params, data):
    traces = functools.partial(seht.layer_traces, key=KEY, num_probes=3, curvature=curvature)
    actual = jax.jit(traces(seht.mean_over_batches(loss_fn, 5)))(params, data)
    assert_close(actual, jax.jit(traces(loss_fn))(params, data))


def test_a_layer_has_its_exact_trace(params, data):
    only_first = functools.partial(
        seht.exact_trace, layers=lambda path: "first" if path[0] == "first" else None
    )
    actual = jax.jit(only_first(seht.mean_over_batches(loss_fn, 5)))(params, data)
    assert_close(actual, jax.jit(only_first(loss_fn))(params, data))


def test_the_aux_is_dropped(params, data):
    def with_aux(params, batch):
        return loss_fn(params, batch), batch["image"].mean()

    actual = jax.jit(seht.mean_over_batches(with_aux, 5, has_aux=True))(params, data)
    assert_close(actual, loss_fn(params, data))


def test_sums_are_taken_in_float32():
    def half_loss(params, batch):
        return jnp.mean(params * batch).astype(jnp.bfloat16)

    mean_loss = seht.mean_over_batches(half_loss, 1)
    value = mean_loss(jnp.float32(1), jnp.ones(1000, jnp.float32))
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, 1, rtol=1e-6)


@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton"])
def test_derivatives_keep_the_activations_of_one_batch(curvature):
    shape = jax.ShapeDtypeStruct
    params = {"first": shape((4, 100), jnp.float32), "second": shape((100, 3), jnp.float32)}

    def memory(num_samples):
        data = {
            "image": shape((num_samples, 4), jnp.float32),
            "label": shape((num_samples,), jnp.int32),
        }
        mean_loss = seht.mean_over_batches(loss_fn, 64)
        trace = seht.hutchinson_trace(mean_loss, KEY, num_probes=2, curvature=curvature)
        compiled = jax.jit(trace).lower(params, data).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    # XLA keeps a copy of the data, of 20 bytes a sample, in another layout; a sample's activations
    # are 800 bytes.
    assert memory(64 * 20) - memory(64 * 10) <= 64 * 10 * 20


def test_samples_of_a_sharded_data_set_stay_where_they_are(two_devices, params, data):
    sharded = jax.device_put(data, NamedSharding(two_devices, P("data")))
    gradient = jax.jit(jax.grad(seht.mean_over_batches(loss_fn, 4)))
    assert_close(gradient(params, sharded), jax.grad(loss_fn)(params, data))
    program = gradient.lower(params, sharded).compile().as_text()
    assert "all-reduce" in program
    assert not any(name in program for name in ("all-gather", "all-to-all", "collective-permute"))


def test_devices_may_have_data_sets_of_their_own(two_devices, params, data):
    def mean_trace(params, data):
        trace = seht.hutchinson_trace(seht.mean_over_batches(loss_fn, 4), KEY, num_probes=2)
        return jax.lax.pmean(trace(params, data).mean, "data")

    mapped = jax.shard_map(mean_trace, mesh=two_devices, in_specs=(P(), P("data")), out_specs=P())
    expected = jax.jit(seht.hutchinson_trace(loss_fn, KEY, num_probes=2))(params, data)
    np.testing.assert_allclose(jax.jit(mapped)(params, data), expected.mean)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "first axis, got no array"),
        ({"x": np.ones(()), "y": np.ones(3)}, r"data\['x'\]: \(\), data\['y'\]: \(3,\)"),
        ({"x": np.ones((4, 2)), "y": np.ones(3)}, r"data\['x'\]: \(4, 2\), data\['y'\]: \(3,\)"),
        (np.ones((0, 2)), "data has no sample"),
    ],
)
def test_data_without_a_common_axis_are_refused(data, message):
    with pytest.raises(ValueError, match=message):
        seht.mean_over_batches(loss_fn, 2)({}, data)


def test_a_loss_for_each_sample_is_refused(params, data):
    def losses(params, batch):
        return jnp.sum(batch["image"] @ params["first"], axis=1)

    with pytest.raises(ValueError, match=r"loss_fn must return a scalar, got shape \(4,\)"):
        seht.mean_over_batches(losses, 4)(params, data)


def test_a_batch_has_a_sample():
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        seht.mean_over_batches(loss_fn, 0)
