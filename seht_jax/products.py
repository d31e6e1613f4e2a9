r"""Products of jets: matrix products, convolutions and elementwise ones, as few as can be.

The product of two curves has the derivatives

.. math:: (ab)' = a'b + ab', \qquad (ab)'' = a''b + 2a'b' + ab''.

Along K directions, that is one product for the value, two for the accelerations, and for each
direction the two of :math:`(ab)'` and the :math:`a'b'`. Products of large operands are what a
network's time is spent on, so they are made in one of two ways:

*By the formula*, direction by direction, where one factor does not move or the product is small.
(Directions stacked along an axis would be fewer and larger products, which are dense too; XLA's CPU
backend runs them slower.)

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

from seht_jax._compat import bind_equation
from seht_jax.cost import elements, operations
from seht_jax.jet import Jet, add

# Operations for each element of operands and result. Below it, forming the sums that are evaluated
# costs more than the product that they save, and a branch more than what it skips.
_WORTHWHILE_INTENSITY = 100


class Product(NamedTuple):
    """A product of two factors, without the terms that hold an acceleration.

    Attributes:
        value: The value ab.
        velocity: A tuple of the first derivatives a'b + ab'; `None` for zeros.
        cross: The sum over the directions of a'b'; `None` for zero.
    """

    value: Any
    velocity: Any
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
    conditional = [jet for jet in moving if jet.condition is not None]
    match len(moving), len(conditional):
        case 1, 1:
            return _where_moving(equation, left, right)
        case 2, 1:
            return _where_both_move(equation, left, right)
        case 2, _:
            return _by_evaluation(equation, left, right)
    return _directly(equation, left, right)


def multiply_to_first_order(equation: core.JaxprEqn, left: Jet, right: Jet) -> Product:
    """Multiply two factors of which nothing but the first derivative is asked for.

    There is nothing to gain by evaluation: (ab)' takes two products either way.

    Args:
        equation: An equation whose primitive is linear in each of two operands.
        left: The left factor, without acceleration.
        right: The right factor, along the same directions.

    Returns:
        The product, without a cross term.
    """
    worthwhile = operations(equation) >= _WORTHWHILE_INTENSITY * elements(equation)
    conditional = [jet.velocity is not None and jet.condition is not None for jet in (left, right)]
    if not worthwhile or sum(conditional) != 1:
        return _directly(equation, left, right)._replace(cross=None)
    is_left = conditional[0]
    layer, other = (left, right) if is_left else (right, left)

    def in_order(layer: Jet, other: Jet) -> tuple[Jet, Jet]:
        return (layer, other) if is_left else (other, layer)

    product = _where_moving(equation, *in_order(layer, other._replace(velocity=None)))
    if other.velocity is None:
        return product
    carried = _directly(equation, *in_order(layer._replace(velocity=None), other))
    return product._replace(velocity=tuple(map(add, product.velocity, carried.velocity)))


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
        for pair in ((_tangent(tangents[0]), right), (left, _tangent(tangents[1]))):
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


def _tangent(tangents: Jet) -> Jet:
    """Return what is not symbolically zero of the tangents of a jet."""
    value, *velocity = (
        None if isinstance(x, SymbolicZero) else x for x in (tangents.value, *tangents.velocity)
    )
    whole = all(stream is not None for stream in velocity)
    return Jet(value, tuple(velocity) if whole else None)


def _evaluate(equation: core.JaxprEqn, left: Jet, right: Jet, scale: Array) -> Product:
    """Multiply two moving factors; linear in each of them, if the scale does not depend on it."""

    def product(x: Array, y: Array) -> Array:
        return bind_equation(equation, [x, y])[0]

    value = product(left.value, right.value)
    return Product(value, *_evaluate_streams(product, left, right, value, scale))


def _evaluate_streams(
    product: Callable[[Array, Array], Array], left: Jet, right: Jet, value: Array, scale: Array
) -> tuple[tuple[Array, ...], Array]:
    velocity: list[Array] = []
    cross: Any = None
    for d_left, d_right in zip(left.velocity or (), right.velocity or (), strict=True):
        ahead = product(left.value + scale * d_left, right.value + scale * d_right)
        behind = product(left.value - scale * d_left, right.value - scale * d_right)
        velocity.append((ahead - behind) / (2 * scale))
        cross = add(cross, (ahead - value) + (behind - value))
    return tuple(velocity), cross / (2 * scale**2)


def _where_moving(equation: core.JaxprEqn, left: Jet, right: Jet) -> Product:
    """Multiply a layer that moves at run time, or not, with a factor that does not."""
    is_left = left.velocity is not None
    layer, other = (left, right) if is_left else (right, left)
    value = bind_equation(equation, [left.value, right.value])[0]
    multiply_gated = _gated_directions(
        equation.primitive, tuple(sorted(equation.params.items())), is_left
    )
    return Product(value, multiply_gated(layer.condition, other.value, layer.velocity), None)


def _where_both_move(equation: core.JaxprEqn, left: Jet, right: Jet) -> Product:
    """Multiply a moving factor with a layer, which moves if it was drawn."""
    is_left = left.condition is not None
    layer, other = (left, right) if is_left else (right, left)
    multiply_gated = _gated_product(
        equation.primitive, tuple(sorted(equation.params.items())), is_left
    )
    return multiply_gated(
        layer.condition,
        _scale(left, right),
        other._replace(condition=None),
        layer._replace(condition=None),
    )


@functools.cache
def _gated_directions(
    primitive: core.Primitive, params: tuple[tuple[str, Any], ...], layer_is_left: bool
) -> Callable[[Array, Array, tuple[Array, ...]], tuple[Array, ...]]:
    """Build the products of a factor with the velocities of a layer, zeros without a condition.

    The velocities are constants. For the rule and the cache, see `_gated_product`.
    """

    def product(other: Array, direction: Array) -> Array:
        operands = (direction, other) if layer_is_left else (other, direction)
        return primitive.bind(*operands, **dict(params))

    def products(other: Array, directions: tuple[Array, ...]) -> tuple[Array, ...]:
        return tuple(product(other, direction) for direction in directions)

    def zeros(function: Callable[..., Any], *operands: Any) -> Any:
        shapes = jax.eval_shape(function, *operands)
        return jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)

    @jax.jit
    def forward(condition: Array, other: Array, directions: tuple[Array, ...]) -> tuple[Array, ...]:
        stopped = functools.partial(zeros, products)
        return lax.cond(condition, products, stopped, other, directions)

    def pull_back(
        other: Array, directions: tuple[Array, ...], cotangents: tuple[Array, ...]
    ) -> Array:
        return jax.linear_transpose(lambda other: products(other, directions), other)(cotangents)[0]

    @jax.jit
    def backward(
        condition: Array,
        other: Array,
        directions: tuple[Array, ...],
        cotangents: tuple[Array, ...],
    ) -> Array:
        stopped = functools.partial(zeros, pull_back)
        return lax.cond(condition, pull_back, stopped, other, directions, cotangents)

    @jax.custom_vjp
    def gated(condition: Array, other: Array, directions: tuple[Array, ...]) -> tuple[Array, ...]:
        return forward(condition, other, directions)

    def gated_backward(
        residuals: Any, cotangents: tuple[Array, ...]
    ) -> tuple[None, Array, tuple[Array, ...]]:
        _, _, directions = residuals
        constants = tuple(map(jnp.zeros_like, directions))
        return None, backward(*residuals, cotangents), constants

    gated.defvjp(lambda *operands: (forward(*operands), operands), gated_backward)
    return gated


@functools.cache
def _gated_product(
    primitive: core.Primitive, params: tuple[tuple[str, Any], ...], layer_is_left: bool
) -> Callable[[Array, Array, Jet, Jet], Product]:
    """Build the product of a moving factor with a layer that moves only under a condition.

    JAX's derivative of a `lax.cond` would copy all residuals out of it, so the derivative is a
    rule of its own. The velocity of the layer must be a constant. Layers of one shape share one
    trace, which keeps the time to compile a step with many layers in hand.
    """

    def product(other: Array, layer: Array) -> Array:
        operands = (layer, other) if layer_is_left else (other, layer)
        return primitive.bind(*operands, **dict(params))

    def evaluated(scale: Array, value: Array, other: Jet, layer: Jet) -> Any:
        return _evaluate_streams(product, other, layer, value, scale)

    def stopped(_scale: Array, value: Array, other: Jet, layer: Jet) -> Any:
        return tuple(product(v, layer.value) for v in other.velocity or ()), jnp.zeros_like(value)

    @jax.jit
    def forward(condition: Array, scale: Array, other: Jet, layer: Jet) -> Product:
        value = product(other.value, layer.value)
        return Product(value, *lax.cond(condition, evaluated, stopped, scale, value, other, layer))

    @jax.jit
    def backward(
        condition: Array, scale: Array, other: Jet, layer: Jet, cotangents: Product
    ) -> tuple[Jet, Array]:
        def pulled_back(streams: Callable[..., Any]) -> Callable[..., Jet]:
            def pull(scale: Array, other: Jet, layer: Jet, cotangents: Product) -> Jet:
                def linear(other: Jet) -> tuple[Any, Any]:
                    value = product(other.value, layer.value)
                    return value, streams(scale, value, other, layer)

                (transposed,) = jax.linear_transpose(linear, other)(
                    (cotangents.value, (cotangents.velocity, cotangents.cross))
                )
                return transposed

            return pull

        by_other = lax.cond(
            condition, pulled_back(evaluated), pulled_back(stopped), scale, other, layer, cotangents
        )
        moved = zip(
            (other.value, *(other.velocity or ())),
            (cotangents.value, *(cotangents.velocity or ())),
            strict=True,
        )
        by_layer = add(
            *(
                jax.linear_transpose(functools.partial(product, stream), layer.value)(cotangent)[0]
                for stream, cotangent in moved
            )
        )
        return by_other, by_layer

    @jax.custom_vjp
    def gated(condition: Array, scale: Array, other: Jet, layer: Jet) -> Product:
        return forward(condition, scale, other, layer)

    def gated_backward(residuals: Any, cotangents: Product) -> tuple[None, None, Jet, Jet]:
        by_other, by_layer = backward(*residuals, cotangents)
        _, _, _, layer = residuals
        constant = jax.tree.map(jnp.zeros_like, layer.velocity)
        return None, None, by_other, Jet(by_layer, constant)

    gated.defvjp(lambda *operands: (forward(*operands), operands), gated_backward)
    return gated


def _scale(left: Jet, right: Jet) -> Array:
    """Return the scale at which rounding errors are least, as a power of two."""

    def size(array: Array) -> Array:
        return jnp.sqrt(jnp.mean(jnp.square(jnp.abs(lax.stop_gradient(array)))))

    (d_left, *_), (d_right, *_) = left.velocity, right.velocity
    ratio = (size(left.value) * size(right.value)) / (size(d_left) * size(d_right))
    exponent = jnp.round(0.5 * jnp.log2(ratio))
    scale = jnp.where(jnp.isfinite(exponent), jnp.exp2(exponent), jnp.ones_like(exponent))
    return scale.astype(left.value.dtype)
