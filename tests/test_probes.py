"""What is probed, and how often."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import seht_jax as seht
from seht_jax.probes import (
    draw_layers,
    layer_table,
    module_layer,
    probe_probabilities,
    sample_probe,
)

KEY = jax.random.key(11)


def assert_within(mean, expected, variance, count):
    """Assert that a mean of `count` samples is within four standard deviations."""
    assert np.all(np.abs(np.asarray(mean) - expected) <= 4 * np.sqrt(variance / count))


# The distribution Q


@pytest.mark.parametrize("p", [0.01, 0.1, 0.3, 0.5])
def test_plus_one_and_minus_one_have_probability_p_each(p):
    count = 100_000
    sample = np.asarray(seht.sparse_signs(KEY, (count,), p=p))
    assert set(np.unique(sample)) <= {-1, 0, 1}
    for sign in (1, -1):
        assert_within(np.mean(sample == sign), p, p * (1 - p), count)
    assert_within(np.mean(sample), 0, 2 * p, count)


@pytest.mark.parametrize("shape", [(), (7,), (1000,), (3, 3, 16, 100), (5, 0)])
def test_q_of_one_half_is_rademacher(shape):
    samples = np.asarray(
        jax.vmap(lambda key: seht.sparse_signs(key, shape, jnp.float32, p=0.5))(
            jax.random.split(KEY, 400)
        )
    )
    assert samples.shape == (400, *shape)
    assert samples.dtype == np.float32
    assert set(np.unique(samples)) <= {-1, 1}
    if samples.size:
        assert_within(np.mean(samples), 0, 1, samples.size)


@pytest.mark.parametrize("distance", [1, 2, 31, 32, 33])
def test_signs_made_of_the_bits_of_words_are_independent(distance):
    signs = np.asarray(seht.sparse_signs(KEY, (1000, 200), p=0.5))
    products = signs[:, distance:] * signs[:, :-distance]
    assert_within(np.mean(products), 0, 1, products.size)
    assert_within(np.mean(signs[1:] * signs[:-1]), 0, 1, signs[1:].size)


@pytest.mark.parametrize("p", [0.1, 0.4])
def test_entries_are_independent(p):
    count, kept = 100_000, 2 * p
    pairs = np.asarray(seht.sparse_signs(KEY, (count, 2), p=p))
    assert_within(np.mean(pairs[:, 0] * pairs[:, 1]), 0, kept**2, count)
    zeros = np.abs(pairs) - kept
    assert_within(np.mean(zeros[:, 0] * zeros[:, 1]), 0, (kept * (1 - kept)) ** 2, count)
    assert_within(np.mean(pairs[:, 0] * zeros[:, 1]), 0, kept**2 * (1 - kept), count)


def test_given_the_zeros_the_second_moment_is_the_identity_on_the_kept_entries():
    """Eq. (12)."""
    probes = np.asarray(seht.sparse_signs(KEY, (40_000, 3), p=0.3))
    for pattern in np.ndindex(2, 2, 2):
        kept = np.asarray(pattern)
        group = probes[np.all((probes != 0) == kept, axis=1)]
        assert len(group) > 1000
        moment = np.einsum("ni,nj->ij", group, group) / len(group)
        np.testing.assert_array_equal(np.diag(moment), kept)
        off_diagonal = np.outer(kept, kept) * (1 - np.eye(3))
        assert_within(moment - np.diag(kept), 0, off_diagonal, len(group))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64])
@pytest.mark.parametrize("shape", [(), (3,), (2, 0), (2, 3, 4)])
def test_a_sample_has_the_shape_and_dtype_asked_for(shape, dtype):
    for p in (0.2, 0.5):
        sample = seht.sparse_signs(KEY, shape, dtype, p=p)
        assert (sample.shape, sample.dtype) == (shape, dtype)


# The draw of layers


@pytest.mark.parametrize("p_layers", [0.02, 0.4])
def test_layers_are_drawn_independently_with_their_probability(p_layers):
    count = 20_000
    keys = jax.random.split(KEY, count)
    drawn = np.asarray(jax.vmap(lambda key: draw_layers(key, 3, p_layers))(keys), float)
    variance = p_layers * (1 - p_layers)
    assert_within(drawn.mean(0), p_layers, variance, count)
    centred = drawn - p_layers
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert_within(np.mean(centred[:, i] * centred[:, j]), 0, variance**2, count)


# The names of layers


@pytest.fixture
def params():
    module = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}
    return {"block": {"conv": module, "norm": {"scale": jnp.ones(3)}}, "head": [module], "t": 1.0}


def test_a_layer_is_a_module_and_a_leaf_at_the_root_is_its_own(params):
    assert seht.layer_names(params) == ("block/conv", "block/norm", "head/0", "t")
    assert seht.layer_names(jnp.ones(3)) == ("params",)
    assert seht.layer_names([jnp.ones(3), jnp.ones(2)]) == ("0", "1")
    assert module_layer(("a", "b", "kernel")) == "a/b"


@pytest.mark.parametrize(
    ("layers", "names"),
    [
        pytest.param(lambda path: path[0], ("block", "head", "t"), id="coarser"),
        pytest.param("/".join, None, id="one for each leaf"),
        pytest.param(lambda path: "all", ("all",), id="one"),
        pytest.param(
            lambda path: None if path[-1] in {"bias", "t"} else module_layer(path),
            ("block/conv", "block/norm", "head/0"),
            id="without biases",
        ),
    ],
)
def test_a_function_names_the_layers(params, layers, names):
    every_leaf = (
        "block/conv/bias",
        "block/conv/kernel",
        "block/norm/scale",
        "head/0/bias",
        "head/0/kernel",
        "t",
    )
    assert seht.layer_names(params, layers) == (names or every_leaf)


def test_leaves_without_a_layer_are_not_probed(params):
    table = layer_table(params, lambda path: None if path[-1] == "bias" else "all")
    probe = sample_probe(KEY, jax.tree.leaves(jax.tree.map(jnp.asarray, params)), table, 0.5, None)
    assert set(probe) == set(table.probed) == {1, 2, 4, 5}


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["value"], meta_fields=["sharding"]
)
@dataclasses.dataclass
class Box:
    value: jax.Array
    sharding: str = "replicated"


def test_the_value_of_a_box_is_no_part_of_the_path():
    params = {"dense": {"kernel": Box(jnp.ones(2)), "bias": jnp.ones(2)}, "scale": Box(jnp.ones(2))}
    paths = []
    seht.layer_names(params, lambda path: paths.append(path) or "all")
    assert paths == [("dense", "bias"), ("dense", "kernel"), ("scale",)]
    assert seht.layer_names(params) == ("dense", "scale")
    assert seht.layer_names({"value": jnp.ones(2)}) == ("value",)


# Stacked layers


def stacked(path):
    return None if path[-1] == "skipped" else seht.Stacked("stack", axis=-1 if "b" in path else 0)


def test_stacks_of_one_name_share_their_layers():
    params = {"a": jnp.ones((3, 2)), "b": jnp.ones((2, 2, 3)), "skipped": jnp.ones(5)}
    assert seht.layer_names(params, stacked) == ("stack[0]", "stack[1]", "stack[2]")
    longer = {**params, "a": jnp.ones((4, 2))}
    assert seht.layer_names(longer, stacked) == tuple(f"stack[{i}]" for i in range(4))


@pytest.mark.parametrize("drawn", [(True, False, True), (False, True, False), (False,) * 3])
def test_stacked_layers_are_drawn_slice_by_slice(drawn):
    params = {"a": jnp.ones((3, 2)), "b": jnp.ones((2, 2, 3)), "skipped": jnp.ones(5)}
    table = layer_table(params, stacked)
    probe = sample_probe(KEY, jax.tree.leaves(params), table, 0.5, jnp.asarray(drawn))
    assert set(probe) == {0, 1}
    np.testing.assert_array_equal(np.abs(probe[0]), np.asarray(drawn)[:, None] * np.ones((3, 2)))
    np.testing.assert_array_equal(np.abs(probe[1]), np.asarray(drawn) * np.ones((2, 2, 3)))


# Probes


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_a_probe_is_like_its_leaves_and_zero_where_nothing_was_drawn(dtype):
    leaves = [jnp.ones((2, 3), dtype), jnp.ones((), dtype), jnp.ones((0, 2), dtype)]
    table = layer_table({"a": {"x": leaves[0]}, "b": leaves[1], "c": leaves[2]}, module_layer)
    for p_entries in (0.5, 0.3):
        probe = sample_probe(KEY, leaves, table, p_entries, jnp.asarray([False, True, True]))
        chex.assert_trees_all_equal_shapes_and_dtypes(list(probe.values()), leaves)
        assert not jnp.any(probe[0])


def test_every_leaf_has_its_own_signs():
    leaves = [jnp.ones(64), jnp.ones(64)]
    probe = sample_probe(KEY, leaves, layer_table(leaves, module_layer), 0.5, None)
    assert 8 < jnp.sum(probe[0] == probe[1]) < 56


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        (None, (1.0, 0.5)),
        (0.01, (0.01, 0.01)),
        (0.5, (0.5, 0.5)),
        ((1, 0.5), (1.0, 0.5)),
        ((0.3, 0.2), (0.3, 0.2)),
        (np.float64(0.2), (0.2, 0.2)),
    ],
)
def test_p_is_a_number_or_a_pair(p, expected):
    assert probe_probabilities(p) == expected
