"""What a data set is here: three splits of uint8 images that stay on the device."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8


def make_dataset(
    train: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    num_classes: int,
) -> "Dataset":
    """Put three pairs of images and labels on the device.

    Args:
        train: Uint8 images ``(examples, height, width, channels)`` and integer labels.
        validation: Likewise.
        test: Likewise.
        num_classes: Number of classes.

    Returns:
        The data set, with the mean and standard deviation of the training images per channel.
    """
    pixels = train[0].astype(np.float64)
    return Dataset(
        train=_to_device(*train),
        validation=_to_device(*validation),
        test=_to_device(*test),
        mean=jnp.asarray(pixels.mean(axis=(0, 1, 2)), jnp.float32),
        standard_deviation=jnp.asarray(pixels.std(axis=(0, 1, 2)), jnp.float32),
        num_classes=num_classes,
    )


def stratified_holdout(labels: np.ndarray, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Choose a part of a data set in which every class has its share.

    The shares are rounded so that the part has exactly ``size`` examples: the classes with the
    largest remainders get one more.

    Args:
        labels: Integer labels ``(examples,)``.
        size: Number of examples to hold out.
        seed: Seed of the choice.

    Returns:
        Indices of the rest and of the part held out, both sorted.

    Raises:
        ValueError: If ``size`` is negative or leaves nothing.
    """
    if not 0 <= size < len(labels):
        raise ValueError(
            f"cannot hold out {size} of {len(labels)} examples; "
            f"the number must lie between 0 and {len(labels) - 1}"
        )
    random = np.random.default_rng(seed)
    classes, counts = np.unique(labels, return_counts=True)
    shares = size * counts / len(labels)
    quotas = np.floor(shares).astype(int)
    largest_remainders = np.argsort(quotas - shares, kind="stable")
    quotas[largest_remainders[: size - quotas.sum()]] += 1
    held_out = np.concatenate(
        [
            random.permutation(np.flatnonzero(labels == label))[:quota]
            for label, quota in zip(classes, quotas, strict=True)
        ]
    )
    held_out = np.sort(held_out)
    return np.setdiff1d(np.arange(len(labels)), held_out), held_out


def _to_device(images: np.ndarray, labels: np.ndarray) -> "Split":
    return Split(jnp.asarray(images, jnp.uint8), jnp.asarray(labels, jnp.int32))


class Split(NamedTuple):
    """Images and labels.

    Attributes:
        images: ``(examples, height, width, channels)``, raw pixel values.
        labels: ``(examples,)``.
    """

    images: UInt8[Array, "examples height width channels"]
    labels: Int[Array, " examples"]


class Dataset(NamedTuple):
    """Three splits, and the statistics of the training images.

    Attributes:
        train: What the weights are fitted to.
        validation: Held out from the training set, for choosing settings.
        test: Reported once, at the last epoch.
        mean: Mean pixel of the training split per channel, in raw pixel units.
        standard_deviation: Standard deviation likewise.
        num_classes: Number of classes.
    """

    train: Split
    validation: Split
    test: Split
    mean: Float[Array, " channels"]
    standard_deviation: Float[Array, " channels"]
    num_classes: int
