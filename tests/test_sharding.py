"""Estimates on a mesh of explicit axes, where what shares an array is a part of its type."""

import chex
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, reshard
from jax.sharding import PartitionSpec as P

import seht_jax as seht
from seht_jax import analysis
from seht_jax.probes import layer_table, sample_probe

KEY = jax.random.key(5)
SPECS = {"kernel": P(None, "data"), "bias": P("data"), "readout": P("data", None)}
ESTIMATES = {
    "hutchinson_trace": lambda loss_fn: seht.hutchinson_trace(loss_fn, KEY, num_probes=2),
    "masked_trace": lambda loss_fn: seht.masked_trace(loss_fn, KEY, (0.5, 0.4), num_probes=3),
    "layer_traces": lambda loss_fn: seht.layer_traces(loss_fn, KEY, num_probes=2),
    "hutchinson_diagonal": lambda loss_fn: seht.hutchinson_diagonal(loss_fn, KEY, num_probes=2),
    "exact_trace": lambda loss_fn: seht.exact_trace(loss_fn, chunk_size=5),
    "extreme_eigenpairs": lambda loss_fn: analysis.extreme_eigenpairs(
        loss_fn, KEY, num_pairs=2, num_products=6
    ),
    "spectral_quadrature": lambda loss_fn: analysis.spectral_quadrature(
        loss_fn, KEY, num_probes=2, num_products=6
    ),
    "xtrace": lambda loss_fn: analysis.xtrace(loss_fn, KEY, num_probes=4),
    "hutch_plus_plus": lambda loss_fn: analysis.hutch_plus_plus(loss_fn, KEY, num_probes=4),
}


def loss_fn(params, batch):
    hidden = jnp.tanh(batch["image"] @ params["kernel"] + params["bias"])
    return jnp.mean((hidden @ params["readout"] - batch["target"]) ** 2)


def gathered_loss(params, batch):
    """Gather the params first: samples and params can not lie along the same axis."""
    return loss_fn(jax.tree.map(lambda leaf: reshard(leaf, P()), params), batch)


@pytest.fixture
def params():
    keys = jax.random.split(KEY, 3)
    shapes = {"kernel": (3, 8), "bias": (8,), "readout": (8, 2)}
    return {
        name: jax.random.normal(key, shape)
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


@pytest.fixture
def data():
    return {
        "image": jax.random.normal(KEY, (24, 3)),
        "target": jax.random.normal(jax.random.key(6), (24, 2)),
    }


@pytest.fixture
def mesh():
    return jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.long] * (name in {"xtrace", "hutch_plus_plus"}))
        for name in ESTIMATES
    ],
)
def test_an_estimate_is_what_it_is_on_one_device(name, params, data, mesh):
    expected = jax.jit(ESTIMATES[name](seht.mean_over_batches(loss_fn, 16)))(params, data)
    estimate = ESTIMATES[name](seht.mean_over_batches(gathered_loss, 16))
    with jax.set_mesh(mesh):
        actual = jax.jit(estimate)(
            jax.tree.map(reshard, params, SPECS),
            jax.device_put(data, NamedSharding(mesh, P("data"))),
        )
    chex.assert_trees_all_close(actual, expected, rtol=1e-8, atol=1e-9)


# Without `jax.jit`, an array's sharding is no part of what a branch or a slice makes of it.


def test_a_probe_of_drawn_layers_is_sharded_like_the_params(params, mesh):
    table = layer_table(params, lambda path: path[0])
    with jax.set_mesh(mesh):
        leaves = jax.tree.leaves(jax.tree.map(reshard, params, SPECS))
        drawn = jnp.array([True, False, True])
        probe = sample_probe(KEY, leaves, table, 0.4, drawn)
        for i, leaf in enumerate(leaves):
            assert jax.typeof(probe[i]) == jax.typeof(leaf)


def test_the_mean_over_batches_of_shared_samples_is_that_of_all(params, data, mesh):
    expected = loss_fn(params, data)
    with jax.set_mesh(mesh):
        shared = jax.device_put(data, NamedSharding(mesh, P("data")))
        actual = seht.mean_over_batches(loss_fn, 16)(params, shared)
    chex.assert_trees_all_close(actual, expected, rtol=1e-12)


def test_a_batch_that_devices_can_not_share_evenly_is_refused(params, data, mesh):
    mean_loss = seht.mean_over_batches(loss_fn, 12)
    message = r"batch_size must be a multiple of 8, the number.*data\['image'\].*got 12"
    with jax.set_mesh(mesh), pytest.raises(ValueError, match=message):
        mean_loss(params, jax.device_put(data, NamedSharding(mesh, P("data"))))
