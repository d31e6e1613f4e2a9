"""The forms of the penalty that are compared, each with one number for its strength."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

import seht_jax as seht

ValueFunction: TypeAlias = Callable[[PyTree], Float[Array, ""]]

BOUND = 10.0
P = 0.05


class Losses(NamedTuple):
    """The loss of one batch, as a function of the params, in the two modes of BatchNorm.

    Attributes:
        train: With the statistics of the batch, which depend on the params.
        evaluation: With the running statistics, which are constants.
    """

    train: ValueFunction
    evaluation: ValueFunction


Form: TypeAlias = Callable[[Losses, PyTree, PyTree, PRNGKeyArray, Float[Array, ""]], PyTree]
"""From a loss, params, its gradient in training, a key and a strength to the penalty's gradient."""


def penalty_gradient(
    form: str,
    losses: Losses,
    params: PyTree,
    slope: PyTree,
    key: PRNGKeyArray,
    strength: Float[Array, ""],
) -> PyTree:
    """Compute what a form adds to the gradient of a loss.

    Args:
        form: A key of `FORMS`.
        losses: The loss.
        params: Where.
        slope: The gradient of the loss in training.
        key: A PRNG key of the probe.
        strength: Lambda, or the share of the loss gradient's norm; 0 is no penalty.

    Returns:
        A pytree like the params.
    """
    return FORMS[form](losses, params, slope, key, strength)


def _of_transformation(*, share: bool = False, p: float | None = None, **options: Any) -> Form:
    """Make a form from `add_hessian_trace`."""

    def gradient(
        losses: Losses,
        params: PyTree,
        slope: PyTree,
        key: PRNGKeyArray,
        strength: Float[Array, ""],
    ) -> PyTree:
        settings = {"lam": jnp.inf, "relative": strength} if share else {"lam": strength}
        tx = seht.add_hessian_trace(p, key=key, **settings, **options)
        updates, _ = tx.update(slope, tx.init(params), params, value_fn=losses.train)
        return jax.tree.map(jnp.subtract, updates, slope)

    return gradient


def _of_loss(
    transform: Callable[[Float[Array, ""]], Float[Array, ""]] = lambda estimate: estimate,
    mode: Literal["train", "evaluation"] = "train",
    **options: Any,
) -> Form:
    """Make a form from `regularize`, of a function of the estimate, in a mode of BatchNorm."""

    def gradient(
        losses: Losses,
        params: PyTree,
        slope: PyTree,
        key: PRNGKeyArray,
        strength: Float[Array, ""],
    ) -> PyTree:
        del slope
        value_fn: ValueFunction = getattr(losses, mode)

        def penalty(params: PyTree) -> Float[Array, ""]:
            one = jnp.ones_like(strength)
            penalised = seht.regularize(value_fn, key, None, one, **options)
            return strength * transform(penalised(params) - value_fn(params))

        return jax.grad(penalty)(params)

    return gradient


_GAUSS_NEWTON = _of_transformation(curvature="gauss_newton")

RECOMMENDED = "gauss-newton, scale-free, rising"
"""The form to begin with: the method `gauss-newton` of the trainer."""

FORMS: dict[str, Form] = {
    "hessian": _of_transformation(),
    "gauss-newton": _GAUSS_NEWTON,
    "gauss-newton, calibrated": _GAUSS_NEWTON,
    "gauss-newton, calibrated, rising": _GAUSS_NEWTON,
    RECOMMENDED: _of_transformation(curvature="gauss_newton", scale_free=True),
    "hessian, SEHT-D": _of_transformation(p=P, rescale=True),
    "gauss-newton, SEHT-D, calibrated, rising": _of_transformation(
        p=P, rescale=True, curvature="gauss_newton"
    ),
    "hessian, share": _of_transformation(share=True),
    "gauss-newton, share": _of_transformation(share=True, curvature="gauss_newton"),
    "hessian, bound": _of_loss(bound=BOUND),
    "hessian, positive part": _of_loss(jax.nn.relu),
    "hessian, running statistics": _of_loss(mode="evaluation"),
}

CALIBRATED = frozenset(form for form in FORMS if "calibrated" in form)
"""Forms whose strength is lambda times tr(G) before the first step: each network has its lambda."""

RISE: dict[str, int] = {form: 2 if form == RECOMMENDED else 1 for form in FORMS if "rising" in form}
"""Forms whose strength rises from 0 to its full value at the last step, with the power by which it
does: 1 is a line, 2 a parabola, which leaves the first part of a training nearly alone."""
