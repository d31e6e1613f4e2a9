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
        velocity: Its first derivatives, one for each direction; `None` for zeros.
    """

    value: Any
    velocity: tuple[Any, ...] | None


class Product(NamedTuple):
    """A product of two moving factors.

    Attributes:
        value: The value ab.
        velocity: The first derivatives a'b + ab', one for each direction.
        cross: The sum over the directions of a'b'.
    """

    value: Any
    velocity: tuple[Any, ...] | None
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

    num_directions = max(len(left.velocity or ()), len(right.velocity or ()))
    velocities, crosses = [], []
    for k in range(num_directions):
        d_left, d_right = (
            None if factor.velocity is None else factor.velocity[k] for factor in (left, right)
        )
        velocities.append(_sum(product(d_left, right.value), product(left.value, d_right)))
        crosses.append(product(d_left, d_right))
    moving = num_directions > 0 and velocities[0] is not None
    return Product(
        product(left.value, right.value), tuple(velocities) if moving else None, _sum(*crosses)
    )


def _by_evaluation(equation: core.JaxprEqn, left: Factor, right: Factor) -> Product:
    @jax.custom_jvp
    def evaluated(left: Factor, right: Factor) -> Product:
        return _evaluate(equation, left, right, _scale(left, right))

    @functools.partial(evaluated.defjvp, symbolic_zeros=True)
    def derivative(primals: Any, tangents: Any) -> Any:
        left, right = primals
        scale = _scale(left, right)
        terms = [
            _evaluate(equation, *factors, scale)
            if all(None not in (factor.value, *(factor.velocity or (None,))) for factor in factors)
            else _directly(equation, *factors)
            for factors in (
                (_without_zeros(tangents[0]), right),
                (left, _without_zeros(tangents[1])),
            )
        ]
        result = _evaluate(equation, left, right, scale)
        zeros = jax.tree.map(jnp.zeros_like, result)
        return result, Product(
            _sum(*(term.value for term in terms)),
            tuple(
                _sum(zero, *(term.velocity[k] for term in terms if term.velocity is not None))
                for k, zero in enumerate(zeros.velocity)
            ),
            _sum(zeros.cross, *(term.cross for term in terms)),
        )

    return evaluated(left, right)


def _without_zeros(tangents: Factor) -> Factor:
    value, velocity = (
        jax.tree.map(
            lambda x: None if isinstance(x, SymbolicZero) else x,
            stream,
            is_leaf=lambda x: isinstance(x, SymbolicZero),
        )
        for stream in tangents
    )
    return Factor(value, None if None in velocity else velocity)


def _evaluate(equation: core.JaxprEqn, left: Factor, right: Factor, scale: Array) -> Product:
    def product(x: Array, y: Array) -> Array:
        return bind_equation(equation, [x, y])[0]

    value = product(left.value, right.value)
    velocities, crosses = [], []
    for d_left, d_right in zip(left.velocity, right.velocity, strict=True):
        ahead = product(left.value + scale * d_left, right.value + scale * d_right)
        behind = product(left.value - scale * d_left, right.value - scale * d_right)
        velocities.append((ahead - behind) / (2 * scale))
        crosses.append((ahead - value) + (behind - value))
    return Product(value, tuple(velocities), _sum(*crosses) / (2 * scale**2))


def _scale(left: Factor, right: Factor) -> Array:
    """Return the scale at which rounding errors are least, as a power of two."""

    def size(array: Array) -> Array:
        return jnp.sqrt(jnp.mean(jnp.square(jax.lax.stop_gradient(array))))

    (first, *_), (second, *_) = left.velocity, right.velocity
    ratio = (size(left.value) * size(right.value)) / (size(first) * size(second))
    exponent = jnp.round(0.5 * jnp.log2(ratio))
    return jnp.where(jnp.isfinite(exponent), jnp.exp2(exponent), jnp.ones_like(exponent))


def _sum(*terms: Any) -> Any:
    present = [term for term in terms if term is not None]
    return functools.reduce(jnp.add, present) if present else None
