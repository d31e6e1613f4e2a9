"""DropBlock on feature maps and in networks."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.models.dropblock import drop_block, stage_share
from experiments.models.resnet import digits_resnet
from experiments.models.wide_resnet import wide_resnet

RATE = 0.3
drop = jax.jit(drop_block, static_argnames="block_size")


def covering_squares(length, size):
    """Count the squares that cover each position along one axis."""
    starts = np.arange(length - size + 1)[:, None]
    positions = np.arange(length)
    return ((starts <= positions) & (positions < starts + size)).sum(0)


@pytest.mark.parametrize(
    ("height", "width", "block_size"), [(8, 8, 3), (8, 6, 2), (6, 6, 1), (4, 4, 7), (4, 6, 5)]
)
def test_a_pixel_is_kept_where_no_square_covers_it(height, width, block_size):
    samples, size = 4000, min(block_size, height, width)
    kept = np.asarray(drop(jax.random.key(0), jnp.ones((samples, height, width, 1)), RATE, size))
    kept = (kept != 0).mean((0, 3))
    gamma = RATE / size**2 * height * width / ((height - size + 1) * (width - size + 1))
    number = np.outer(covering_squares(height, size), covering_squares(width, size))
    expected = (1 - gamma) ** number
    error = np.sqrt(expected * (1 - expected) / samples)
    assert (np.abs(kept - expected) < 4.5 * error).all()
    clamped = drop(jax.random.key(0), jnp.ones((samples, height, width, 1)), RATE, block_size)
    np.testing.assert_array_equal((np.asarray(clamped) != 0).mean((0, 3)), kept)


def test_what_is_dropped_are_whole_squares():
    kept = np.asarray(drop(jax.random.key(1), jnp.ones((200, 9, 9, 1)), 0.05, 3))[..., 0] != 0
    maps = [np.argwhere(~kept[i]) for i in range(len(kept))]
    single = [pixels for pixels in maps if len(pixels) == 9]
    assert len(single) > 20
    for pixels in single:
        assert (np.ptp(pixels, axis=0) == 2).all()


def test_samples_and_channels_have_squares_of_their_own():
    kept = np.asarray(drop(jax.random.key(0), jnp.ones((50, 4, 4, 50)), 0.5, 4)) != 0
    per_map = kept[:, 0, 0, :]  # here a square is the whole map
    assert np.ptp(per_map.mean(0)) > 0
    assert np.ptp(per_map.mean(1)) > 0


def test_the_mean_of_ones_is_one():
    dropped = drop(jax.random.key(0), jnp.ones((20, 8, 8, 5)), RATE, 3)
    assert float(dropped.mean()) == pytest.approx(1, rel=1e-5)


def test_nothing_is_dropped_at_rate_0_and_all_at_rate_1():
    features = jax.random.normal(jax.random.key(1), (5, 4, 4, 3))
    np.testing.assert_array_equal(drop(jax.random.key(0), features, 0.0, 7), features)
    assert not drop(jax.random.key(0), features, 1.0, 7).any()


def test_the_last_two_stages_have_a_quarter_and_the_whole_of_the_rate():
    assert [stage_share(i, 4) for i in range(4)] == [0, 0, 0.25, 1]


@pytest.mark.parametrize(
    "build",
    [
        partial(digits_resnet, 10, width=2),
        partial(wide_resnet, 10, 1, 10),
    ],
    ids=["resnet", "wide-resnet"],
)
def test_networks_drop_blocks_at_a_rate_that_may_be_traced(build):
    images = jax.random.normal(jax.random.key(1), (4, 8, 8, 1))
    variables = jax.jit(partial(build().init, train=False))(jax.random.key(0), images)
    model = build(drop_block_size=3)

    @jax.jit
    def logits(key, rate):
        rngs = {"dropout": key}
        return model.apply(
            variables, images, train=True, drop_block_rate=rate, rngs=rngs, mutable=["batch_stats"]
        )[0]

    first, second = (logits(jax.random.key(seed), 0.5) for seed in (0, 1))
    plain = build().apply(variables, images, train=True, mutable=["batch_stats"])[0]
    assert not np.allclose(first, second)
    np.testing.assert_allclose(logits(jax.random.key(0), 0.0), plain, atol=1e-5)
    without_rate = model.apply(variables, images, train=True, mutable=["batch_stats"])[0]
    np.testing.assert_allclose(without_rate, plain, atol=1e-5)
