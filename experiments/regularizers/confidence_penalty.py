"""The confidence penalty."""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from experiments.regularizers.base import Regularizer


@dataclasses.dataclass(frozen=True)
class ConfidencePenalty(Regularizer):
    r"""Reward for predictions of high entropy.

    $$L - \beta \cdot \text{mean}_b\, H(p_b), \qquad H(p) = -\sum_k p_k \log p_k$$

    Pereyra et al., *Regularizing Neural Networks by Penalizing Confident Output Distributions*
    (2017). The code that the SEHT paper's authors published *adds* the entropy, which makes
    predictions more confident, and sums it over the batch; the sign and the mean here are the
    source's.

    Attributes:
        weight: Strength beta.
    """

    name: ClassVar[str] = "confidence-penalty"

    weight: float = 0.1

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: If one is out of its range.
        """
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise ValueError(f"weight must be at least 0 and finite, not {self.weight}")

    def loss(
        self, logits: Float[Array, "*batch classes"], labels: Shaped[Array, "..."]
    ) -> Float[Array, ""]:
        """Compute minus beta times the mean entropy.

        Args:
            logits: The network's outputs.
            labels: Those of the batch, which have no influence.

        Returns:
            The term.
        """
        log_probabilities = jax.nn.log_softmax(logits)
        entropies = -jnp.sum(jnp.exp(log_probabilities) * log_probabilities, axis=-1)
        return -self.weight * jnp.mean(entropies)
