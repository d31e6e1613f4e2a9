"""The mark between a network and its loss, which the Gauss-Newton form of the penalty needs."""

from collections.abc import Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.extend import core
from jax.extend.core import primitives
from jaxtyping import PyTree

from seht_jax.dataflow import flow, is_inexact, union

# The operations whose bodies `taylor` enters.
ENTERED = (
    primitives.jit_p,
    primitives.closed_call_p,
    primitives.remat_p,
    primitives.cond_p,
    primitives.while_p,
    primitives.scan_p,
)

_ADVICE = (
    "mark the outputs of the network once in the loss, where all of the network is before the mark "
    "and nothing but the loss behind it: logits = seht.outputs(network(params, inputs))"
)
# What is wrong with a mark that is there and seen, for the errors.
UNREACHED = (
    "the arrays that seht.outputs marks do not depend on the probed params, or the loss does not "
    f"depend on them; {_ADVICE}"
)
LINEAR = (
    "the loss is linear, or linear in pieces, in the arrays that seht.outputs marks, so that its "
    f"Gauss-Newton matrix is 0; {_ADVICE}"
)

Outputs = TypeVar("Outputs", bound=PyTree)

_NAME = "seht:outputs"


def outputs(network_outputs: Outputs) -> Outputs:
    r"""Mark where the network ends and the loss begins, for `curvature="gauss_newton"`.

    It returns its argument, everywhere and under every transformation. The Gauss-Newton matrix of
    a loss $L(\theta) = \ell(z(\theta))$ is

    $$G = J^T \, \nabla^2_z \ell \, J, \qquad J = \partial z / \partial \theta,$$

    the Hessian without the curvature of the network z itself. Where z ends is for the user to say:
    G differs from choice to choice. For a loss that is convex in z, G has no negative eigenvalue.

    What reaches the loss beside the marked outputs (weight decay inside of the loss, or a
    temperature behind the mark) has no direction in G: its columns of J are 0. If G depends on it,
    as on a temperature, the penalty is differentiated by it all the same. Several arrays may be
    marked, together or one by one, if none depends on another; they are then outputs together.

    Marks in other places are not refused, and are other matrices: around the params, G is the
    Hessian itself; around hidden activations or probabilities, a part of the network counts as
    loss.

    Args:
        network_outputs: An array, or a pytree of arrays, that the loss is computed from: logits
            rather than probabilities, so that the loss is convex in them.

    Returns:
        The same.

    Raises:
        TypeError: If it holds no floating-point array.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> import seht_jax as seht
        >>> def loss_fn(params):
        ...     prediction = seht.outputs(jnp.sin(params))
        ...     return 0.5 * (prediction - 1.0) ** 2
        >>> penalised = seht.regularize(
        ...     loss_fn, jax.random.key(0), None, 1.0, curvature="gauss_newton", with_estimate=True
        ... )
        >>> _, estimate = penalised(jnp.array(0.0))
        >>> float(estimate.mean)  # cos(0)^2; the Hessian has 1 - sin(0) * (sin(0) - 1) as well
        1.0

    References:
        Schraudolph, *Fast Curvature Matrix-Vector Products for Second-Order Gradient Descent*
        (2002). Martens, *New Insights and Perspectives on the Natural Gradient Method* (2020).
    """
    leaves = jax.tree.leaves(network_outputs)
    if not any(jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) for leaf in leaves):
        message = f"outputs needs a floating-point array to mark, got {network_outputs!r}"
        raise TypeError(message)
    return checkpoint_name(network_outputs, _NAME)


def is_mark(equation: core.JaxprEqn) -> bool:
    """Return whether an equation is a mark.

    Args:
        equation: The equation.

    Returns:
        Whether `outputs` wrote it.
    """
    return equation.primitive is primitives.name_p and equation.params["name"] == _NAME


def check_marked(jaxpr: core.Jaxpr) -> None:
    """Check that the outputs of a network are marked in a loss, once, and where it is seen.

    Args:
        jaxpr: The loss.

    Raises:
        ValueError: If there is no mark, if one is in a function that is not looked into, or if
            marked outputs depend on other ones.
    """
    if _has_mark(jaxpr, inside=False):
        message = (
            "seht.outputs was called inside of a function that the penalty does not look into "
            "(jax.custom_jvp, jax.custom_vjp, jax.shard_map): call it on what that function "
            f"returns, outside of it; {_ADVICE}"
        )
        raise ValueError(message)
    if not _has_mark(jaxpr, inside=True):
        message = f"curvature='gauss_newton' needs to know where the network ends; {_ADVICE}"
        raise ValueError(message)
    flow(jaxpr, [0] * len(jaxpr.invars), _visit_once)


def _has_mark(jaxpr: core.Jaxpr, *, inside: bool) -> bool:
    """Return whether there is a mark inside, or outside, of what is looked into."""
    for equation in jaxpr.eqns:
        bodies = list(core.jaxprs_in_params(equation.params))
        if bodies and equation.primitive not in ENTERED:
            if not inside and any(map(_has_any_mark, bodies)):
                return True
        elif (inside and is_mark(equation)) or any(
            _has_mark(body, inside=inside) for body in bodies
        ):
            return True
    return False


def _has_any_mark(jaxpr: core.Jaxpr) -> bool:
    return any(map(is_mark, jaxpr.eqns)) or any(map(_has_any_mark, core.subjaxprs(jaxpr)))


def _visit_once(equation: core.JaxprEqn, inputs: Sequence[int], _repetitions: int) -> Sequence[int]:
    """Let a bit flow from the marks.

    Raises:
        ValueError: If it arrives at a mark.
    """
    marked = union(inputs)
    if is_mark(equation):
        if marked:
            message = (
                "seht.outputs was called on an array that depends on an array which it was called "
                f"on before (in a loop, in an earlier round); {_ADVICE}"
            )
            raise ValueError(message)
        return [1]
    # Integers, such as a token that was chosen, carry no derivative on.
    return [marked if is_inexact(variable) else 0 for variable in equation.outvars]
