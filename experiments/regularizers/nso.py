"""Noise stability optimization."""

import dataclasses
import math
from typing import ClassVar

import jax
import optax
from jaxtyping import Array, Float, PyTree

from experiments.regularizers.base import LossFunction, Outputs, Regularizer, StepInputs


@dataclasses.dataclass(frozen=True)
class NSO(Regularizer):
    r"""Loss at two noisy copies of the params, on either side of them.

    $$\frac{1}{2 K} \sum_{k=1}^{K} L(\theta + U_k) + L(\theta - U_k)
        \approx L(\theta) + \frac{\sigma^2}{2} \operatorname{tr} H, \qquad U_k \sim N(0, \sigma^2)$$

    in the mean over the noise: a trace penalty of strength lambda = sigma^2 / 2, at the price of
    2K plain steps and of first derivatives alone. Zhang, Li and Ju, *Noise Stability Optimization
    for Finding Flat Minima* (2024), Algorithm 1.

    Metrics and BatchNorm's running statistics are means over the noisy evaluations, of which none
    is at the params themselves; the authors' code spends one more on that.

    Attributes:
        sigma: Standard deviation of the noise.
        num_perturbs: Pairs K of noisy copies per step.
    """

    name: ClassVar[str] = "nso"

    sigma: float = 0.01
    num_perturbs: int = 1

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: If one is out of its range.
        """
        if not (math.isfinite(self.sigma) and self.sigma > 0):
            raise ValueError(f"sigma must be above 0 and finite, not {self.sigma}")
        if self.num_perturbs < 1:
            raise ValueError(f"num_perturbs must be at least 1, not {self.num_perturbs}")

    def objective(self, loss_fn: LossFunction, inputs: StepInputs) -> LossFunction:
        """Take the mean of the loss over the noisy copies.

        Args:
            loss_fn: The loss.
            inputs: The key of the step.

        Returns:
            The mean.
        """

        def mean_loss(params: PyTree) -> tuple[Float[Array, ""], Outputs]:
            noises = [
                optax.tree.random_like(key, params, jax.random.normal)
                for key in jax.random.split(inputs.key, self.num_perturbs)
            ]
            evaluations = [
                loss_fn(optax.tree.add_scale(params, scale, noise))
                for noise in noises
                for scale in (self.sigma, -self.sigma)
            ]
            return jax.tree.map(lambda *values: sum(values) / len(values), *evaluations)

        return mean_loss
