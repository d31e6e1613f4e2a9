"""A learning rate that is divided when the validation loss stops falling."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

PLATEAU_FACTOR = 0.25


class PlateauState(NamedTuple):
    """State of `scale_on_plateau`.

    Attributes:
        scale: What the updates are multiplied with.
        lowest_loss: The lowest validation loss so far.
    """

    scale: Float[Array, ""]
    lowest_loss: Float[Array, ""]


def scale_on_plateau() -> optax.GradientTransformation:
    """Scale updates by a factor that `after_epoch` lowers.

    `optax.contrib.reduce_on_plateau` decides at each step, by the loss of that step; here it is
    decided once in an epoch, outside of the step.

    Returns:
        The transformation of updates.
    """

    def init(params: PyTree) -> PlateauState:
        del params
        # With dtypes: a weak type would become a strong one, and the step be compiled once more.
        return PlateauState(jnp.ones((), jnp.float32), jnp.asarray(jnp.inf, jnp.float32))

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None
    ) -> tuple[PyTree, PlateauState]:
        del params
        return optax.tree.scale(state.scale, updates), state

    return optax.GradientTransformation(init, update)


def is_lower(loss: float, lowest: Float[Array, ""]) -> bool:
    """Tell whether a validation loss is the lowest so far.

    Args:
        loss: The loss; nan is not lower than any.
        lowest: The lowest before.

    Returns:
        Whether it is, in the precision in which the lowest is kept.
    """
    return bool(jnp.asarray(loss, lowest.dtype) < lowest)


def after_epoch(opt_state: PyTree, validation_loss: float) -> PyTree:
    """Lower the learning rate, unless the validation loss is the lowest so far.

    Args:
        opt_state: State of an optimizer with `scale_on_plateau` in it; that of another optimizer
            does not change.
        validation_loss: The loss after the epoch.

    Returns:
        The state to go on with.
    """

    def followed(part: Any) -> Any:
        if not isinstance(part, PlateauState):
            return part
        if not is_lower(validation_loss, part.lowest_loss):
            return part._replace(scale=part.scale * PLATEAU_FACTOR)
        return part._replace(lowest_loss=jnp.asarray(validation_loss, part.lowest_loss.dtype))

    return jax.tree.map(followed, opt_state, is_leaf=lambda part: isinstance(part, PlateauState))
