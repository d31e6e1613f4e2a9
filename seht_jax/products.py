r"""Products of jets: matrix products, convolutions and elementwise ones, with few of them.

The product of two curves has the derivatives

.. math:: (ab)' = a'b + ab', \qquad (ab)'' = a''b + 2a'b' + ab''.

Along K directions, that is one product for the value, two for the accelerations, and for each
direction the two of :math:`(ab)'` and the :math:`a'b'`. Products of large operands are what a
network's time is spent on, so they are made in one of two ways:

*Dense*. Where one factor does not move, the velocities of the other are more rows or columns of one
product (`jax.vmap` does that). A sum over the directions of products of velocities is one product
too, with the directions as more terms of its inner sum.

*By evaluation*. Where both factors move, the two numbers :math:`(ab)'` and :math:`a'b'` follow from
two products, not three, since :math:`ab` is known already:

.. math:: P_{\pm} = (a \pm s a')(b \pm s b'), \qquad
    (ab)' = \frac{P_+ - P_-}{2s}, \qquad a'b' = \frac{P_+ + P_- - 2ab}{2s^2}.

This is exact, whatever the scale s: the evaluation of a polynomial at three points (Toom and Cook),
no difference quotient. Rounding errors are least where both terms of a factor have the same size,
:math:`s^2 = |a||b| / (|a'||b'|)`; then they are at most twice those of the three products for
:math:`(ab)'`. A derivative of it needs no evaluations for the factor that is differentiated by
alone: five products a direction in a step with its gradient, where the formula needs seven.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.extend import core
from jax.extend.core.primitives import conv_general_dilated_p, dot_general_p, mul_p
from jaxtyping import Array

from seht_jax._compat import bind_equation

# Operations for each element of operands and result, above which three products cost more than two
# and the sums that prepare them.
_WORTHWHILE_INTENSITY = 100


class Factor(NamedTuple):
    """A factor of a product, or the product.

    Attributes:
        value: The value.
        velocity: Its first derivatives, stacked along a leading axis; `None` for zero.
    """

    value: Any
    velocity: Any


class Product(NamedTuple):
    """A product of two moving factors.

    Attributes:
        value: The value ab.
        velocity: The first derivatives a'b + ab', stacked along a leading axis.
        cross: The sum over the directions of a'b'.
    """

    value: Any
    velocity: Any
    cross: Any


def multiply(equation: core.JaxprEqn, left: Factor, right: Factor) -> Product:
    """Multiply two factors.

    Args:
        equation: A `mul`, `dot_general` or `conv_general_dilated` equation.
        left: The left factor.
        right: The right factor, along the same directions.

    Returns:
        The product; streams that are structurally zero are `None`.
    """
    if (
        left.velocity is None
        or right.velocity is None
        or equation.primitive is mul_p
        or operations(equation)
        < _WORTHWHILE_INTENSITY * sum(math.prod(v.aval.shape) for v in (*equation.invars, *equation.outvars))
    ):
        return _directly(equation, left, right)
    return _by_evaluation(equation, left, right)


def operations(equation: core.JaxprEqn) -> int:
    """Count the floating-point operations of one equation.

    Args:
        equation: The equation; its sub-jaxprs are not counted.

    Returns:
        Two for each multiplication and addition of a matrix product or convolution, and one for
        each element of the result of anything else.
    """
    size = sum(math.prod(v.aval.shape) for v in equation.outvars if hasattr(v.aval, "shape"))
    if equation.primitive is dot_general_p:
        (contracted, _), _ = equation.params["dimension_numbers"]
        return 2 * size * math.prod(equation.invars[0].aval.shape[i] for i in contracted)
    if equation.primitive is conv_general_dilated_p:
        kernel = equation.invars[1].aval.shape
        features = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
        return 2 * size * (math.prod(kernel) // max(features, 1))
    return size


def _directly(equation: core.JaxprEqn, left: Factor, right: Factor) -> Product:
    def product(x: Any, y: Any) -> Any:
        return None if x is None or y is None else bind_equation(equation, [x, y])[0]

    velocities = [
        jax.vmap(product, axes)(*factors)
        for axes, factors in (
            ((0, None), (left.velocity, right.value)),
            ((None, 0), (left.value, right.velocity)),
        )
        if factors[0] is not None and factors[1] is not None
    ]
    cross = None
    if left.velocity is not None and right.velocity is not None:
        cross = _SUMMED[equation.primitive](equation, left.velocity, right.velocity)
    return Product(
        product(left.value, right.value),
        functools.reduce(jnp.add, velocities) if velocities else None,
        cross,
    )


def _by_evaluation(equation: core.JaxprEqn, left: Factor, right: Factor) -> Product:
    @jax.custom_jvp
    def evaluated(left: Factor, right: Factor) -> Product:
        return _evaluate(equation, left, right, _scale(left, right))

    @functools.partial(evaluated.defjvp, symbolic_zeros=True)
    def derivative(primals: Any, tangents: Any) -> Any:
        left, right = primals
        scale = _scale(left, right)
        d_left, d_right = (
            Factor(*(None if isinstance(x, SymbolicZero) else x for x in factor))
            for factor in tangents
        )
        terms = []
        for factors in ((d_left, right), (left, d_right)):
            if all(stream is not None for factor in factors for stream in factor):
                terms.append(_evaluate(equation, *factors, scale))
            else:
                terms.append(_directly(equation, *factors))
        result = _evaluate(equation, left, right, scale)
        return result, Product(
            *(
                functools.reduce(jnp.add, [d for d in ds if d is not None], jnp.zeros_like(stream))
                for stream, *ds in zip(result, *terms, strict=True)
            )
        )

    return evaluated(left, right)


def _evaluate(equation: core.JaxprEqn, left: Factor, right: Factor, scale: Array) -> Product:
    def product(x: Array, y: Array) -> Array:
        return bind_equation(equation, [x, y])[0]

    value = product(left.value, right.value)
    velocities, crosses = [], []
    for i in range(len(left.velocity)):
        d_left, d_right = scale * left.velocity[i], scale * right.velocity[i]
        ahead = product(left.value + d_left, right.value + d_right)
        behind = product(left.value - d_left, right.value - d_right)
        velocities.append((ahead - behind) / (2 * scale))
        crosses.append(((ahead - value) + (behind - value)) / (2 * scale**2))
    return Product(value, jnp.stack(velocities), functools.reduce(jnp.add, crosses))


def _scale(left: Factor, right: Factor) -> Array:
    """Return the scale at which rounding errors are least, as a power of two."""

    def size(array: Array) -> Array:
        return jnp.sqrt(jnp.mean(jnp.square(jax.lax.stop_gradient(array))))

    ratio = (size(left.value) * size(right.value)) / (size(left.velocity) * size(right.velocity))
    exponent = jnp.round(0.5 * jnp.log2(ratio))
    return jnp.where(jnp.isfinite(exponent), jnp.exp2(exponent), jnp.ones_like(exponent))


def _multiply_and_sum(_: core.JaxprEqn, left: Array, right: Array) -> Array:
    return jnp.sum(left * right, axis=0)


def _dot_general_and_sum(equation: core.JaxprEqn, left: Array, right: Array) -> Array:
    """Contract the directions too."""
    contracted, batch = equation.params["dimension_numbers"]

    def later(dimensions: Sequence[int]) -> tuple[int, ...]:
        return tuple(dimension + 1 for dimension in dimensions)

    numbers = (tuple((0, *later(dims)) for dims in contracted), tuple(map(later, batch)))
    return bind_equation(equation, [left, right], dimension_numbers=numbers)[0]


def _convolve_and_sum(equation: core.JaxprEqn, left: Array, right: Array) -> Array:
    """Make the directions a part of the input features, over which a convolution sums."""
    params = equation.params
    if params["batch_group_count"] > 1:
        multiply: Any = lambda x, y: bind_equation(equation, [x, y])[0]  # noqa: E731
        return functools.reduce(jnp.add, map(multiply, left, right))
    spec = params["dimension_numbers"]
    return bind_equation(
        equation,
        [
            # In groups of features, the directions stand inside of each group.
            _merge_directions(left, spec.lhs_spec[1], params["feature_group_count"]),
            _merge_directions(right, spec.rhs_spec[1], 1),
        ],
    )[0]


def _merge_directions(array: Array, axis: int, groups: int) -> Array:
    """Merge the leading axis into another one, whose index becomes (group, direction, rest)."""
    directions, *shape = array.shape
    split = array.reshape(directions, *shape[:axis], groups, -1, *shape[axis + 1 :])
    moved = jnp.moveaxis(split, 0, axis + 1)
    return moved.reshape(*shape[:axis], directions * shape[axis], *shape[axis + 1 :])


_SUMMED: dict[core.Primitive, Callable[[core.JaxprEqn, Array, Array], Array]] = {
    mul_p: _multiply_and_sum,
    dot_general_p: _dot_general_and_sum,
    conv_general_dilated_p: _convolve_and_sum,
}
