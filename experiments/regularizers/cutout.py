"""Cutout."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from experiments.errors import SettingError
from experiments.regularizers.base import Batch, Regularizer


@dataclasses.dataclass(frozen=True)
class Cutout(Regularizer):
    """One square of zeros in every training image.

    DeVries and Taylor, *Improved Regularization of Convolutional Neural Networks with Cutout*
    (2017). The centre is uniform over all pixels, so that part of the square may lie outside of
    the image and the hole is smaller than ``size ** 2`` in the mean. Images are normalised before,
    so that 0 is the mean colour.

    Attributes:
        size: Side of the square; 16 for CIFAR-10 and 8 for CIFAR-100 in the source.
    """

    name: ClassVar[str] = "cutout"
    why_not_text: ClassVar[str] = "it cuts squares out of images"

    size: int = 16

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: If one is out of its range.
        """
        if self.size < 1:
            raise ValueError(f"size must be at least 1, not {self.size}")

    def augment(self, key: PRNGKeyArray, batch: Batch) -> Batch:
        """Cut the squares out.

        Args:
            key: PRNG key of this step and method.
            batch: The batch.

        Returns:
            The batch with other images.

        Raises:
            SettingError: If the square is larger than the images.
        """
        number, height, width, _ = batch.inputs.shape
        # Not an int in the training step; the settings are checked before, with the int.
        if isinstance(self.size, int) and self.size > min(height, width):
            raise SettingError(
                f"cutout's size {self.size} is larger than the images, {height}x{width}: pass "
                "cutout:size=N with a smaller N"
            )
        row_key, column_key = jax.random.split(key)
        in_rows = self._covered(row_key, number, height)
        in_columns = self._covered(column_key, number, width)
        hole = in_rows[:, :, None, None] & in_columns[:, None, :, None]
        return batch._replace(inputs=jnp.where(hole, 0, batch.inputs))

    def _covered(self, key: PRNGKeyArray, number: int, length: int) -> jax.Array:
        """Draw which of the positions along one axis a square covers: ``(number, length)``."""
        starts = jax.random.randint(key, (number, 1), 0, length) - self.size // 2
        positions = jnp.arange(length)
        return (starts <= positions) & (positions < starts + self.size)
