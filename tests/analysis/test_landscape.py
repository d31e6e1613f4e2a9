"""Directions and slices, against closed forms."""

import chex
import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from oracle import without_aux

import seht_jax as seht
from seht_jax.analysis import filter_normalized_direction, loss_slice

KEY = jax.random.key(3)
POSITIONS = np.linspace(-1.0, 1.0, 5)


def norms(array, axis):
    """Return the norm of each filter of a NumPy array."""
    filters = np.moveaxis(np.asarray(array, np.float64), axis, 0)
    return np.linalg.norm(filters.reshape(len(filters), -1), axis=1)


@pytest.fixture
def params():
    shapes = {"kernel": (3, 3, 2, 5), "dense": (4, 6), "bias": (5,), "scale": ()}
    leaves = {
        name: jax.random.normal(jax.random.key(10 + i), shape)
        for i, (name, shape) in enumerate(shapes.items())
    }
    # Filters of very different sizes, and one that is all zeros.
    return leaves | {"kernel": leaves["kernel"] * np.array([1e-3, 1.0, 50.0, 0.0, 1.0])}


@pytest.mark.parametrize("axis", [-1, 0])
def test_every_filter_is_as_long_as_that_of_the_params(params, axis):
    draw = jax.jit(filter_normalized_direction, static_argnames="filter_axis")
    direction = draw(KEY, params, filter_axis=axis)
    chex.assert_trees_all_equal_shapes_and_dtypes(direction, params)
    for name in ("kernel", "dense"):
        np.testing.assert_allclose(norms(direction[name], axis), norms(params[name], axis))
        assert np.ptp(np.asarray(direction[name]) / np.asarray(params[name] + 1e-9)) > 0.1


def test_biases_and_scales_do_not_move(params):
    direction = filter_normalized_direction(KEY, params)
    assert not np.any(direction["bias"])
    assert not np.any(direction["scale"])


def test_another_key_is_another_direction(params):
    first, second = (filter_normalized_direction(jax.random.key(i), params) for i in range(2))
    cosine = jnp.vdot(first["dense"], second["dense"]) / jnp.vdot(first["dense"], first["dense"])
    assert abs(cosine) < 0.9


def test_a_direction_in_low_precision_has_the_right_length():
    params = {"kernel": jnp.full((200, 2), 3.0, jnp.bfloat16)}
    direction = filter_normalized_direction(KEY, params)
    assert direction["kernel"].dtype == jnp.bfloat16
    np.testing.assert_allclose(norms(direction["kernel"], -1), norms(params["kernel"], -1), 4e-3)


def test_the_direction_follows_the_size_of_each_filter(params):
    doubled = params | {"kernel": params["kernel"].at[..., 1].multiply(2)}
    before, after = (filter_normalized_direction(KEY, each) for each in (params, doubled))
    factors = jnp.array([1.0, 2.0, 1.0, 1.0, 1.0])
    np.testing.assert_allclose(after["kernel"], before["kernel"] * factors)


def test_the_slice_of_a_quadratic_is_the_parabola():
    matrix = jnp.array([[3.0, 1.0], [1.0, -2.0]])
    params, direction = jnp.array([0.5, -1.0]), jnp.array([2.0, 1.0])
    losses = jax.jit(loss_slice(lambda w: 0.5 * w @ matrix @ w, direction, jnp.asarray(POSITIONS)))(
        params
    )
    start, slope = 0.5 * params @ matrix @ params, params @ matrix @ direction
    curvature = direction @ matrix @ direction
    expected = start + slope * POSITIONS + 0.5 * curvature * POSITIONS**2
    np.testing.assert_allclose(losses, expected, rtol=1e-12)


def test_the_slice_at_0_is_the_loss_of_the_data_set():
    loss_fn, params, batch = networks.mlp(jnp.tanh)
    mean_loss = seht.mean_over_batches(without_aux(loss_fn), batch_size=3)
    direction = filter_normalized_direction(KEY, params)
    losses = jax.jit(loss_slice(mean_loss, direction, jnp.asarray(POSITIONS)))(params, batch)
    np.testing.assert_allclose(losses[2], jax.jit(mean_loss)(params, batch), rtol=1e-14)
    assert np.ptp(losses) > 1e-3


def test_an_aux_is_dropped():
    losses = loss_slice(
        lambda w: (w**2, "aux"), jnp.array(2.0), jnp.asarray(POSITIONS), has_aux=True
    )
    np.testing.assert_allclose(losses(jnp.array(1.0)), (1 + 2 * POSITIONS) ** 2)


@pytest.mark.usefixtures("no_runtime_type_checks")
@pytest.mark.parametrize(
    ("key", "params", "options", "error", "message"),
    [
        (3, jnp.ones((2, 2)), {}, TypeError, "key must be"),
        (KEY, {"a": jnp.ones(2, int)}, {}, TypeError, r"params\['a'\] is of dtype int"),
        (
            KEY,
            {"a": jnp.ones((2, 2))},
            {"filter_axis": 2},
            ValueError,
            r"filter_axis must be an axis .*, got 2, and params\['a'\] has 2",
        ),
    ],
)
def test_a_mistake_about_the_direction_is_named(key, params, options, error, message):
    with pytest.raises(error, match=message):
        filter_normalized_direction(key, params, **options)


@pytest.mark.usefixtures("no_runtime_type_checks")
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((3, {"a": jnp.ones(2)}, POSITIONS), TypeError, "loss_fn must be"),
        ((jnp.sum, {"a": jnp.ones(2)}, 1.0), ValueError, r"positions must be .* got shape \(\)"),
        ((jnp.sum, {"a": jnp.ones(2)}, jnp.arange(3)), ValueError, "positions must be .* int"),
        ((jnp.sum, {"b": jnp.ones(2)}, POSITIONS), ValueError, "direction must have the structure"),
        (
            (jnp.sum, {"a": jnp.ones(3)}, POSITIONS),
            ValueError,
            r"direction\['a'\] must have .*\[2\].*, got .*\[3\]",
        ),
    ],
)
def test_a_mistake_about_the_slice_is_named(arguments, error, message):
    with pytest.raises(error, match=message):
        loss_slice(*arguments)({"a": jnp.ones(2)})
