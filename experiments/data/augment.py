"""Augmentation and normalisation of batches, on the device and inside the jitted step."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, UInt8

CIFAR_PADDING = 4


def random_crop(
    key: PRNGKeyArray, images: UInt8[Array, "batch height width channels"], padding: int
) -> UInt8[Array, "batch height width channels"]:
    """Pad every image with black on all sides and cut the original size out at random.

    Args:
        key: PRNG key.
        images: Raw pixels.
        padding: Pixels added on each side.

    Returns:
        Images of the same shape, each moved by up to ``padding`` pixels in both directions.
    """
    batch, height, width, channels = images.shape
    sides = (padding, padding)
    padded = jnp.pad(images, ((0, 0), sides, sides, (0, 0)))
    corners = jax.random.randint(key, (batch, 2), 0, 2 * padding + 1)

    def crop(image: Array, corner: Array) -> Array:
        start = (corner[0], corner[1], 0)
        return jax.lax.dynamic_slice(image, start, (height, width, channels))

    return jax.vmap(crop)(padded, corners)


def random_flip(
    key: PRNGKeyArray, images: UInt8[Array, "batch height width channels"]
) -> UInt8[Array, "batch height width channels"]:
    """Mirror each image left to right with probability one half.

    Args:
        key: PRNG key.
        images: Raw pixels.

    Returns:
        Images of the same shape.
    """
    mirrored = jax.random.bernoulli(key, shape=(images.shape[0], 1, 1, 1))
    return jnp.where(mirrored, images[:, :, ::-1], images)


def crop_and_flip(
    key: PRNGKeyArray, images: UInt8[Array, "batch height width channels"]
) -> UInt8[Array, "batch height width channels"]:
    """Apply the usual augmentation of CIFAR: a crop out of four pixels' padding, and a flip.

    Args:
        key: PRNG key.
        images: Raw pixels.

    Returns:
        Images of the same shape.
    """
    crop_key, flip_key = jax.random.split(key)
    return random_flip(flip_key, random_crop(crop_key, images, CIFAR_PADDING))


def normalise(
    images: UInt8[Array, "batch height width channels"],
    mean: Float[Array, " channels"],
    standard_deviation: Float[Array, " channels"],
) -> Float[Array, "batch height width channels"]:
    """Shift and scale each channel by the training set's statistics.

    Args:
        images: Raw pixels.
        mean: Mean per channel, in raw pixel units.
        standard_deviation: Standard deviation per channel, in raw pixel units.

    Returns:
        float32 images.
    """
    shape = (1, 1, 1, -1)
    centred = images.astype(jnp.float32) - mean.reshape(shape)
    return centred / standard_deviation.reshape(shape)
