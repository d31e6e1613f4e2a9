"""Mixup."""

import dataclasses
import math
from typing import ClassVar

import jax
from jaxtyping import PRNGKeyArray

from experiments.regularizers.base import Batch, Regularizer


@dataclasses.dataclass(frozen=True)
class Mixup(Regularizer):
    """Convex combinations of pairs of images and of their labels.

    Zhang et al., *mixup: Beyond Empirical Risk Minimization* (2018), in the form of its authors'
    code: one share per batch, drawn from Beta(alpha, alpha), and the partners are a permutation of
    the batch. The accuracy in the training log counts the class that has the larger share.

    Attributes:
        alpha: Parameter of the beta distribution; 1 makes the share uniform, 0 mixes nothing.
    """

    name: ClassVar[str] = "mixup"
    why_not_text: ClassVar[str] = "it mixes inputs, and tokens can not be mixed"

    alpha: float = 1.0

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: If one is out of its range.
        """
        if not (math.isfinite(self.alpha) and self.alpha >= 0):
            raise ValueError(f"alpha must be at least 0 and finite, not {self.alpha}")

    def augment(self, key: PRNGKeyArray, batch: Batch) -> Batch:
        """Mix the batch with a permutation of itself.

        Args:
            key: PRNG key of this step and method.
            batch: The batch.

        Returns:
            Mixed images and labels.
        """
        # 0 stays a number in the training step, and only 0.
        if isinstance(self.alpha, int | float) and self.alpha == 0:
            return batch
        share_key, partner_key = jax.random.split(key)
        dtype = batch.inputs.dtype
        share = jax.random.beta(share_key, self.alpha, self.alpha, dtype=dtype)
        partners = jax.random.permutation(partner_key, len(batch.labels))
        return jax.tree.map(lambda array: share * array + (1 - share) * array[partners], batch)
