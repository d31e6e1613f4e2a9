"""Cutout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.errors import SettingError
from experiments.regularizers import Batch, Cutout

SAMPLES = 4000


def holes(size, height=8, width=10, samples=SAMPLES):
    batch = Batch(jnp.ones((samples, height, width, 2)), jnp.ones((samples, 3)))
    cut = jax.jit(Cutout(size=size).augment)(jax.random.key(0), batch)
    np.testing.assert_array_equal(cut.labels, batch.labels)
    np.testing.assert_array_equal(cut.inputs[..., 0], cut.inputs[..., 1])
    return np.asarray(cut.inputs[..., 0]) == 0


def covered_lengths(size, length):
    """Return what is covered of an axis, for each centre."""
    starts = np.arange(length) - size // 2
    return np.minimum(starts + size, length) - np.maximum(starts, 0)


@pytest.mark.parametrize("size", [1, 3, 4, 8])
def test_mean_area_is_that_of_squares_clipped_at_the_borders(size):
    areas = np.outer(covered_lengths(size, 8), covered_lengths(size, 10))
    found = holes(size).sum((1, 2))
    assert abs(found.mean() - areas.mean()) <= 4 * areas.std() / SAMPLES**0.5
    assert set(found) <= set(areas.flat)
    assert found.max() == size**2


def test_holes_are_rectangles_that_differ_by_image():
    masks = holes(4, samples=50)
    for mask in masks:
        rows, columns = mask.any(1), mask.any(0)
        np.testing.assert_array_equal(mask, np.outer(rows, columns))
        assert all(np.ptp(np.flatnonzero(axis)) + 1 == axis.sum() for axis in (rows, columns))
    assert len({mask.tobytes() for mask in masks}) > 25


def test_a_size_out_of_range_is_named():
    with pytest.raises(ValueError, match="size must be at least 1, not 0"):
        Cutout(size=0)
    with pytest.raises(
        SettingError, match=r"size 9 is larger than the images, 8x10.*cutout:size=N"
    ):
        holes(9)
