"""Label smoothing."""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from experiments.regularizers.base import Regularizer


@dataclasses.dataclass(frozen=True)
class LabelSmoothing(Regularizer):
    r"""Cross-entropy with the uniform distribution, added with a weight.

    $$\text{CE}(y, p) + w\, \text{CE}(u, p)
        = (1 + w)\, \text{CE}((1 - \varepsilon) y + \varepsilon u,\, p),
        \qquad u_k = \frac{1}{K}, \quad \varepsilon = \frac{w}{1 + w}$$

    The right-hand side is the usual form, Szegedy et al., *Rethinking the Inception Architecture
    for Computer Vision* (2016), times 1 + w; the weight of an epsilon is
    w = epsilon / (1 - epsilon). The SEHT paper states weights.

    Attributes:
        weight: The weight w.
    """

    name: ClassVar[str] = "label-smoothing"

    weight: float = 0.1

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: If one is out of its range.
        """
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise ValueError(f"weight must be at least 0 and finite, not {self.weight}")

    @property
    def epsilon(self) -> float:
        """The share of the uniform distribution in the smoothed labels."""
        return self.weight / (1 + self.weight)

    def loss(
        self, logits: Float[Array, "*batch classes"], labels: Shaped[Array, "..."]
    ) -> Float[Array, ""]:
        """Compute w times the mean cross-entropy with the uniform distribution.

        Args:
            logits: The network's outputs.
            labels: Those of the batch, which have no influence.

        Returns:
            The term.
        """
        # The mean over the classes too: the uniform distribution has 1 / K for each.
        return -self.weight * jnp.mean(jax.nn.log_softmax(logits))
