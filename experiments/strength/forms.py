"""The forms of the penalty that are compared, each with one number for its strength."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

import seht_jax as seht

ValueFunction: TypeAlias = Callable[[PyTree], Float[Array, ""]]
Form: TypeAlias = Callable[[ValueFunction, PyTree, PyTree, PRNGKeyArray, Float[Array, ""]], PyTree]
"""From a loss, params, the gradient of the loss, a key and a strength to the penalty's gradient."""

BOUND = 10.0


def penalty_gradient(
    form: str,
    value_fn: ValueFunction,
    params: PyTree,
    slope: PyTree,
    key: PRNGKeyArray,
    strength: Float[Array, ""],
) -> PyTree:
    """Compute what a form adds to the gradient of a loss.

    Args:
        form: A key of `FORMS`.
        value_fn: The loss.
        params: Where.
        slope: The gradient of the loss.
        key: A PRNG key of the probe.
        strength: Lambda, or the share of the loss gradient's norm; 0 is no penalty.

    Returns:
        A pytree like the params.
    """
    return FORMS[form](value_fn, params, slope, key, strength)


def _of_transformation(share: bool, **options: Any) -> Form:
    """Make a form from `add_hessian_trace`."""

    def gradient(
        value_fn: ValueFunction,
        params: PyTree,
        slope: PyTree,
        key: PRNGKeyArray,
        strength: Float[Array, ""],
    ) -> PyTree:
        settings = {"lam": jnp.inf, "relative": strength} if share else {"lam": strength}
        tx = seht.add_hessian_trace(None, key=key, **settings, **options)
        updates, _ = tx.update(slope, tx.init(params), params, value_fn=value_fn)
        return jax.tree.map(jnp.subtract, updates, slope)

    return gradient


def _of_loss(
    transform: Callable[[Float[Array, ""]], Float[Array, ""]] = lambda estimate: estimate,
    **options: Any,
) -> Form:
    """Make a form from `regularize`, of a function of the estimate."""

    def gradient(
        value_fn: ValueFunction,
        params: PyTree,
        slope: PyTree,
        key: PRNGKeyArray,
        strength: Float[Array, ""],
    ) -> PyTree:
        del slope

        def penalty(params: PyTree) -> Float[Array, ""]:
            one = jnp.ones_like(strength)
            penalised = seht.regularize(value_fn, key, None, one, **options)
            return strength * transform(penalised(params) - value_fn(params))

        return jax.grad(penalty)(params)

    return gradient


FORMS: dict[str, Form] = {
    "hessian": _of_transformation(share=False),
    "gauss-newton": _of_transformation(share=False, curvature="gauss_newton"),
    "hessian, share": _of_transformation(share=True),
    "gauss-newton, share": _of_transformation(share=True, curvature="gauss_newton"),
    "hessian, bound": _of_loss(bound=BOUND),
    "hessian, positive part": _of_loss(jax.nn.relu),
}
