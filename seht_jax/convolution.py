"""Convolutions that XLA's CPU backend runs fast wherever they stand.

XLA canonicalises the layout of convolutions in the entry computation only. Inside the branch of a
`lax.cond` or the body of a `lax.scan` the backward convolutions of a network, whose layouts are
unusual, fall into a naive loop on the CPU: the kernel gradient of a 3x3 convolution with 64
channels took 1783 ms inside a `lax.cond` and 20 ms outside it. The penalty lives inside such a
branch, so there its convolutions are written in the canonical layout (NHWC activations, HWIO
kernels) with explicit transposes. GPU and TPU do not need it and do not get it.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax import lax
from jax.core import eval_jaxpr
from jax.extend import core
from jax.extend.core.primitives import conv_general_dilated_p
from jax.typing import ArrayLike

from seht_jax._compat import bind_equation

Result = TypeVar("Result")


def canonical_on_cpu(function: Callable[..., Result]) -> Callable[..., Result]:
    """Rewrite a function's convolutions to the canonical layout, on the CPU only.

    The choice is made when the program is lowered (`lax.platform_dependent`), so one traced
    function serves every platform, and on the others the rewrite is absent from the program.

    Args:
        function: A function from pytrees of arrays to a pytree of arrays.

    Returns:
        A function with the same signature and the same values.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> def convolve(image, kernel):
        ...     return jax.lax.conv(image, kernel, (1, 1), "SAME")
        >>> image, kernel = jnp.ones((1, 3, 4, 4)), jnp.ones((2, 3, 3, 3))
        >>> bool(
        ...     jnp.array_equal(canonical_on_cpu(convolve)(image, kernel), convolve(image, kernel))
        ... )
        True
    """

    @functools.wraps(function)
    def canonical(*args: Any) -> Result:
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
        leaves = jax.tree.leaves(args)
        if _has_convolution(closed.jaxpr):
            results = lax.platform_dependent(
                *closed.consts,
                *leaves,
                cpu=functools.partial(_evaluate, closed.jaxpr, evaluate=_canonical_jaxpr),
                default=functools.partial(_evaluate, closed.jaxpr, evaluate=eval_jaxpr),
            )
        else:
            results = eval_jaxpr(closed.jaxpr, closed.consts, *leaves)
        return jax.tree.unflatten(jax.tree.structure(shapes), results)

    return canonical


def _evaluate(jaxpr: core.Jaxpr, *operands: Any, evaluate: Callable[..., list[Any]]) -> list[Any]:
    num_consts = len(jaxpr.constvars)
    return evaluate(jaxpr, operands[:num_consts], *operands[num_consts:])


def _canonical_jaxpr(jaxpr: core.Jaxpr, consts: Sequence[Any], *args: Any) -> list[Any]:
    """Evaluate a jaxpr with its convolutions, and those of its sub-jaxprs, canonical."""
    values: dict[core.Var, Any] = dict(
        zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True)
    )

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    for equation in jaxpr.eqns:
        inputs = [read(atom) for atom in equation.invars]
        if equation.primitive is conv_general_dilated_p and _gains(equation):
            results = [_canonical_convolution(equation, *inputs)]
        else:
            results = bind_equation(equation, inputs, **_canonical_subjaxprs(equation))
        values.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _gains(equation: core.JaxprEqn) -> bool:
    # Grouped (depthwise) and 3-D backward convolutions were measured to be faster left alone.
    params = equation.params
    return (
        len(params["window_strides"]) <= 2
        and params["feature_group_count"] == params["batch_group_count"] == 1
    )


def _canonical_convolution(equation: core.JaxprEqn, lhs: ArrayLike, rhs: ArrayLike) -> jax.Array:
    spec = equation.params["dimension_numbers"]
    batch, feature, *spatial = range(len(spec.lhs_spec))
    channels_last = (batch, *spatial, feature)  # the positions of N, spatial, C in an NC... spec
    lhs_order = [spec.lhs_spec[i] for i in channels_last]
    out_order = [spec.out_spec[i] for i in channels_last]
    rhs_order = [*spec.rhs_spec[2:], spec.rhs_spec[1], spec.rhs_spec[0]]
    last = len(spatial) + 1
    canonical_spec = lax.ConvDimensionNumbers(
        lhs_spec=(0, last, *range(1, last)),
        rhs_spec=(last, last - 1, *range(last - 1)),
        out_spec=(0, last, *range(1, last)),
    )
    (result,) = bind_equation(
        equation,
        [lax.transpose(lhs, lhs_order), lax.transpose(rhs, rhs_order)],
        dimension_numbers=canonical_spec,
    )
    return lax.transpose(result, np.argsort(out_order))


def _canonical_subjaxprs(equation: core.JaxprEqn) -> dict[str, Any]:
    """Return the parameters of a structured equation (scan, cond, ...) that change."""
    return {
        name: jax.tree.map(_canonical_parameter, value, is_leaf=_is_jaxpr)
        for name, value in equation.params.items()
        if any(_has_convolution(jaxpr) for jaxpr in core.jaxprs_in_params({name: value}))
    }


def _canonical_parameter(parameter: Any) -> Any:
    if isinstance(parameter, core.ClosedJaxpr):
        jaxpr, consts = parameter.jaxpr, parameter.consts
        return jax.make_jaxpr(functools.partial(_canonical_jaxpr, jaxpr, consts))(
            *parameter.in_avals
        )
    if isinstance(parameter, core.Jaxpr):
        # Open jaxprs (that of `jax.checkpoint`) have no constants, and the rewrite adds none.
        avals = [variable.aval for variable in parameter.invars]
        return jax.make_jaxpr(functools.partial(_canonical_jaxpr, parameter, ()))(*avals).jaxpr
    return parameter


def _has_convolution(jaxpr: core.Jaxpr) -> bool:
    return any(equation.primitive is conv_general_dilated_p for equation in jaxpr.eqns) or any(
        map(_has_convolution, core.subjaxprs(jaxpr))
    )


def _is_jaxpr(value: Any) -> bool:
    return isinstance(value, core.Jaxpr | core.ClosedJaxpr)
