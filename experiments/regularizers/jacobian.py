"""Jacobian regularization."""

import dataclasses
import math
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from experiments.regularizers.base import LossFunction, Outputs, Regularizer, StepInputs

EXACT = -1


@dataclasses.dataclass(frozen=True)
class Jacobian(Regularizer):
    r"""Penalty on the derivative of the logits by the images.

    $$L + \frac{\lambda}{2 B} \sum_b \lVert J_b \rVert_F^2
        \approx L + \frac{\lambda}{2} \cdot \frac{C}{n B} \sum_b \sum_{i=1}^n
        \lVert J_b^T v_{bi} \rVert^2$$

    with C classes and v uniform on the unit sphere. Hoffman, Roberts and Yaida, *Robust Learning
    with Jacobian Regularization* (2019), as in the authors' code.

    As there, one product serves the whole batch, so that what a sample's logits owe to the images
    of others, through BatchNorm's statistics, counts as its own. With random projections that is
    unbiased for the squared norm of the derivative by the whole batch; exact is the exact form
    only where samples are independent of one another.

    Attributes:
        lam: Strength lambda_JR of the penalty.
        n_proj: Random projections per step; -1 takes the exact norm, at the price of as many
            products as there are classes.
    """

    name: ClassVar[str] = "jacobian"
    why_not_text: ClassVar[str] = "it takes the derivative by the inputs, and tokens have none"

    lam: float = 0.01
    n_proj: int = 1

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: If one is out of its range.
        """
        if not (math.isfinite(self.lam) and self.lam >= 0):
            raise ValueError(f"lam must be at least 0 and finite, not {self.lam}")
        if self.n_proj < 1 and self.n_proj != EXACT:
            raise ValueError(f"n_proj must be at least 1, or -1 for exact, not {self.n_proj}")

    def objective(self, loss_fn: LossFunction, inputs: StepInputs) -> LossFunction:
        """Add lambda / 2 times the mean squared norm; logs that mean as ``jacobian_norm_squared``.

        Args:
            loss_fn: The loss.
            inputs: Key, images and network of the step.

        Returns:
            The penalised loss.
        """

        def penalised(params: PyTree) -> tuple[Float[Array, ""], Outputs]:
            loss, outputs = loss_fn(params)
            squared_norm = mean_squared_norm(
                lambda images: inputs.network(params, images)[0],
                inputs.batch.inputs,
                inputs.key,
                self.n_proj,
            )
            loss += 0.5 * self.lam * squared_norm
            return loss, outputs.with_metrics(jacobian_norm_squared=squared_norm)

        return penalised


def mean_squared_norm(
    function: Callable[[Array], Float[Array, "batch classes"]],
    images: Float[Array, "batch height width channels"],
    key: PRNGKeyArray,
    n_proj: int,
) -> Float[Array, ""]:
    """Estimate the mean over the batch of the squared Frobenius norm of the Jacobian.

    Args:
        function: From images to logits.
        images: The batch.
        key: PRNG key of the projections.
        n_proj: Number of projections, or -1 for the exact norm.

    Returns:
        The estimate.
    """
    # The network is evaluated once more than for the loss in the program text alone: the compiler
    # merges the two.
    logits, transposed = jax.vjp(function, images)
    batch, classes = logits.shape
    if n_proj == EXACT:
        basis = jnp.eye(classes, dtype=logits.dtype)
        directions = jnp.broadcast_to(basis[:, None], (classes, batch, classes))
        scale = 1.0
    else:
        normal = jax.random.normal(key, (n_proj, batch, classes), logits.dtype)
        directions = normal / jnp.linalg.norm(normal, axis=-1, keepdims=True)
        scale = classes / n_proj
    (products,) = jax.vmap(transposed)(directions)
    return scale / batch * jnp.sum(jnp.square(products))
