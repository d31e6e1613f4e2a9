"""Augmentation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.data.augment import crop_and_flip, normalise, random_crop, random_flip

# Every pixel of an image has its own value, and none is 0, which is the padding.
IMAGES = np.tile(np.arange(1, 49, dtype=np.uint8).reshape(1, 4, 4, 3), (64, 1, 1, 1))


def windows(padding):
    padded = np.pad(IMAGES[0], ((padding, padding), (padding, padding), (0, 0)))
    corners = range(2 * padding + 1)
    return {padded[i : i + 4, j : j + 4].tobytes() for i in corners for j in corners}


@pytest.mark.parametrize("padding", [0, 1, 4])
def test_a_crop_is_a_window_of_the_padded_image(padding):
    crops = np.asarray(random_crop(jax.random.key(0), IMAGES, padding))
    assert crops.shape == IMAGES.shape
    assert {crop.tobytes() for crop in crops} <= windows(padding)


def test_all_windows_occur():
    crops = np.asarray(random_crop(jax.random.key(0), np.repeat(IMAGES, 4, axis=0), 1))
    assert {crop.tobytes() for crop in crops} == windows(1)


def test_a_flip_mirrors_about_half_of_the_images():
    flipped = np.asarray(random_flip(jax.random.key(0), IMAGES))
    mirrored = np.array([np.array_equal(image, IMAGES[0, :, ::-1]) for image in flipped])
    unchanged = np.array([np.array_equal(image, IMAGES[0]) for image in flipped])
    assert np.all(mirrored ^ unchanged)
    assert 16 < mirrored.sum() < 48


@pytest.mark.parametrize("augment", [crop_and_flip, random_flip])
def test_the_key_decides(augment):
    first, again, other = (augment(jax.random.key(seed), IMAGES) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_augmentation_keeps_raw_pixels():
    assert jax.jit(crop_and_flip)(jax.random.key(0), IMAGES).dtype == jnp.uint8


def test_normalised_training_images_have_mean_0_and_deviation_1(digits):
    images = normalise(digits.train.images, digits.mean, digits.standard_deviation)
    assert images.dtype == jnp.float32
    assert float(images.mean()) == pytest.approx(0, abs=1e-5)
    assert float(images.std()) == pytest.approx(1, abs=1e-5)
