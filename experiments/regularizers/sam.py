"""Sharpness-aware minimization."""

import dataclasses
import math
from functools import partial
from typing import Any, ClassVar

import optax
import optax.contrib
from jaxtyping import PyTree

from experiments.regularizers.base import Regularizer


@dataclasses.dataclass(frozen=True)
class SAM(Regularizer):
    r"""Gradient at the point nearby where the loss is highest, to first order.

    $$\nabla L\left(\theta + \rho\, \frac{g}{\lVert g \rVert}\right),
        \qquad g = \nabla L(\theta)$$

    Foret et al., *Sharpness-Aware Minimization for Efficiently Improving Generalization* (2021),
    by `optax.contrib.sam`. It costs two plain steps.

    The first gradient is the objective's alone: clipping and weight decay act on the second. Logged
    metrics and BatchNorm's running statistics are those of the first evaluation, at the params.

    Attributes:
        rho: Length of the step to that point, over all parameters.
    """

    name: ClassVar[str] = "sam"
    why_not_accumulate: ClassVar[str] = (
        "it takes the gradient a second time, and only that of the last batch is at hand"
    )

    rho: float = 0.05

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: If one is out of its range.
        """
        if not (math.isfinite(self.rho) and self.rho > 0):
            raise ValueError(f"rho must be above 0 and finite, not {self.rho}")

    def optimizer(self, tx: optax.GradientTransformation) -> optax.GradientTransformation:
        """Let the optimizer have the gradient at the other point.

        Args:
            tx: The optimizer.

        Returns:
            The wrapped optimizer, which needs ``grad_fn``.
        """
        # Not `optax.contrib.normalize`, which divides a gradient of zeros by zero.
        ascent = optax.chain(optax.normalize_by_update_norm(eps=1e-12), optax.sgd(self.rho))
        outer = optax.with_extra_args_support(tx)

        def sam(**extra_args: Any) -> optax.GradientTransformationExtraArgs:
            # `optax.contrib.sam` hands no extra arguments on. In opaque mode both gradients are one
            # step, so that BatchNorm's statistics move once.
            update = partial(outer.update, **extra_args)
            inner = optax.GradientTransformation(outer.init, update)
            return optax.contrib.sam(inner, ascent, opaque_mode=True)

        def update(
            updates: PyTree, state: Any, params: Any = None, **extra_args: Any
        ) -> tuple[PyTree, Any]:
            grad_fn = extra_args["grad_fn"]
            return sam(**extra_args).update(updates, state, params, grad_fn=grad_fn)

        return optax.GradientTransformationExtraArgs(lambda params: sam().init(params), update)
