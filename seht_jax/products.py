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
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.extend import core
from jaxtyping import Array

from seht_jax._compat import as_varying, bind_equation, varying_axes
from seht_jax.cost import elements, operations
from seht_jax.jet import Jet, add

# Operations for each element of operands and result. Below it, forming the sums that are evaluated
# costs more than the product that they save, and a branch more than what it skips.
_WORTHWHILE_INTENSITY = 100


class Product(NamedTuple):
    """A product of two factors, without the terms that hold an acceleration.

    Attributes:
        value: The value ab.
        velocity: The first derivatives a'b + ab', one for each direction; `None` for zeros.
        cross: The sum over the directions of a'b'; `None` for zero.
    """

    value: Any
    velocity: tuple[Any, ...] | None
    cross: Any


def multiply(equation: core.JaxprEqn, left: Jet, right: Jet) -> Product:
    """Multiply two factors.

    Args:
        equation: An equation whose primitive is linear in each of two operands.
        left: The left factor; its acceleration is not used.
        right: The right factor, along the same directions; its acceleration is not used.

    Returns:
        The product.
    """
    left, right = (jet._replace(acceleration=None) for jet in (left, right))
    moving = [jet for jet in (left, right) if jet.velocity is not None]
    if not moving or operations(equation) < _WORTHWHILE_INTENSITY * elements(equation):
        return _directly(equation, left, right)
    if len(moving) == 2:
        return _by_evaluation(equation, left, right)
    (condition,) = (jet.condition for jet in moving)
    if condition is None:
        return _directly(equation, left, right)
    value = bind_equation(equation, [left.value, right.value])[0]
    return _where_moving(
        condition,
        value,
        lambda: _directly(equation, left, right)._replace(value=None),
        lambda: Product(None, None, None),
    )


def _directly(equation: core.JaxprEqn, left: Jet, right: Jet) -> Product:
    """Multiply by the formula. Factors may also be tangents, of which a value can be `None`."""

    def product(x: Any, y: Any) -> Any:
        return None if x is None or y is None else bind_equation(equation, [x, y])[0]

    velocity, cross = [], None
    for k in range(max(len(left.velocity or ()), len(right.velocity or ()))):
        d_left, d_right = (None if x.velocity is None else x.velocity[k] for x in (left, right))
        velocity.append(add(product(d_left, right.value), product(left.value, d_right)))
        cross = add(cross, product(d_left, d_right))
    moving = any(stream is not None for stream in velocity)
    return Product(product(left.value, right.value), tuple(velocity) if moving else None, cross)


def _by_evaluation(equation: core.JaxprEqn, left: Jet, right: Jet) -> Product:
    """Multiply two moving factors by evaluation, with a derivative rule of its own.

    The derivative by the kernel of a layer, whose velocity is a constant, needs the plain products
    of the formula alone; only that by the activations is evaluated.
    """

    @jax.custom_jvp
    def evaluated(left: Jet, right: Jet) -> Product:
        return _evaluate(equation, left, right, _scale(left, right))

    @functools.partial(evaluated.defjvp, symbolic_zeros=True)
    def derivative(primals: tuple[Jet, Jet], tangents: tuple[Jet, Jet]) -> tuple[Product, Product]:
        left, right = primals
        scale = _scale(left, right)
        result = _evaluate(equation, left, right, scale)
        terms = [jax.tree.map(jnp.zeros_like, result)]
        for pair in (
            (_tangent(tangents[0], left.condition), right),
            (left, _tangent(tangents[1], right.condition)),
        ):
            complete = all(jet.value is not None and jet.velocity is not None for jet in pair)
            terms.append(
                _evaluate(equation, *pair, scale) if complete else _directly(equation, *pair)
            )
        velocities = [term.velocity for term in terms if term.velocity is not None]
        return result, Product(
            add(*(term.value for term in terms)),
            tuple(add(*streams) for streams in zip(*velocities, strict=True)),
            add(*(term.cross for term in terms)),
        )

    return evaluated(left, right)


def _tangent(tangents: Jet, condition: Array | None) -> Jet:
    """Return what is not symbolically zero of the tangents of a jet."""
    value, *velocity = (
        None if isinstance(x, SymbolicZero) else x for x in (tangents.value, *tangents.velocity)
    )
    whole = all(stream is not None for stream in velocity)
    return Jet(value, tuple(velocity) if whole else None, condition=condition)


def _evaluate(equation: core.JaxprEqn, left: Jet, right: Jet, scale: Array) -> Product:
    """Multiply two moving factors; linear in each of them, if the scale does not depend on it."""

    def product(x: Array, y: Array) -> Array:
        return bind_equation(equation, [x, y])[0]

    value = product(left.value, right.value)

    def streams() -> Product:
        velocity, cross = [], None
        for d_left, d_right in zip(left.velocity, right.velocity, strict=True):
            ahead = product(left.value + scale * d_left, right.value + scale * d_right)
            behind = product(left.value - scale * d_left, right.value - scale * d_right)
            velocity.append((ahead - behind) / (2 * scale))
            cross = add(cross, (ahead - value) + (behind - value))
        return Product(None, tuple(velocity), cross / (2 * scale**2))

    if (left.condition is None) == (right.condition is None):
        return streams()._replace(value=value)
    if left.condition is None:
        condition, stopped = right.condition, (left, right._replace(velocity=None))
    else:
        condition, stopped = left.condition, (left._replace(velocity=None), right)
    return _where_moving(
        condition,
        value,
        streams,
        lambda: _directly(equation, *stopped)._replace(value=None),
    )


def _where_moving(
    condition: Array,
    value: Array,
    moving: Callable[[], Product],
    stopped: Callable[[], Product],
) -> Product:
    """Choose at run time how to compute velocity and cross term."""
    shapes = jax.eval_shape(moving)

    def zeros(shape: jax.ShapeDtypeStruct) -> Array:
        return as_varying(jnp.zeros(shape.shape, shape.dtype), varying_axes(value))

    def completed() -> Product:
        _, velocity, cross = stopped()
        return Product(
            None,
            jax.tree.map(zeros, shapes.velocity) if velocity is None else velocity,
            jax.tree.map(zeros, shapes.cross) if cross is None else cross,
        )

    return lax.cond(condition, moving, completed)._replace(value=value)


def _scale(left: Jet, right: Jet) -> Array:
    """Return the scale at which rounding errors are least, as a power of two."""

    def size(array: Array) -> Array:
        return jnp.sqrt(jnp.mean(jnp.square(jnp.abs(lax.stop_gradient(array)))))

    (d_left, *_), (d_right, *_) = left.velocity, right.velocity
    ratio = (size(left.value) * size(right.value)) / (size(d_left) * size(d_right))
    exponent = jnp.round(0.5 * jnp.log2(ratio))
    scale = jnp.where(jnp.isfinite(exponent), jnp.exp2(exponent), jnp.ones_like(exponent))
    return scale.astype(left.value.dtype)
