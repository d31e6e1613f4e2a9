"""Weights that are zero when training starts stay zero."""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from experiments.regularizers.base import Regularizer


class KeepZerosState(NamedTuple):
    """State of `keep_zeros`.

    Attributes:
        is_free: Whether an entry was not zero at the start, for each of the params.
    """

    is_free: PyTree


def keep_zeros() -> optax.GradientTransformation:
    """Take from the gradient what belongs to params that are zero at the start.

    What follows it in a chain sees a network that has no such params, and must leave a param alone
    that is 0 and whose gradients were all 0, as SGD, Adam and AdaHessian do, with momentum and
    decay. (Optax's `selective_transform` and `freeze` take whole leaves alone.)

    Which params that are is part of the state, so that one compiled step serves them all.

    Returns:
        The transformation.
    """

    def init(params: PyTree) -> KeepZerosState:
        return KeepZerosState(jax.tree.map(lambda param: param != 0, params))

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None
    ) -> tuple[PyTree, KeepZerosState]:
        del params
        return jax.tree.map(
            lambda free, update: jnp.where(free, update, jnp.zeros_like(update)),
            state.is_free,
            updates,
        ), state

    return optax.GradientTransformation(init, update)


@dataclasses.dataclass(frozen=True)
class KeepZeros(Regularizer):
    """Fine-tuning of a pruned network: `keep_zeros` before the optimizer.

    It is no word of ``--method``: a network that is not pruned has zeros of another kind, such as
    the first biases. To be named before all other methods, whose optimizers then work on what it
    has left of the gradient.
    """

    name: ClassVar[str] = "keep-zeros"

    def optimizer(self, tx: optax.GradientTransformation) -> optax.GradientTransformation:
        """Take zeros out of the gradient before the optimizer sees it.

        Args:
            tx: The optimizer.

        Returns:
            Both.
        """
        return optax.chain(keep_zeros(), tx)
