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
            return _where_both_move(equation, left, right, _evaluate_streams, _scale(left, right))
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
    moving = [jet for jet in (left, right) if jet.velocity is not None]
    conditional = [jet for jet in moving if jet.condition is not None]
    worthwhile = operations(equation) >= _WORTHWHILE_INTENSITY * elements(equation)
    match len(moving), len(conditional):
        case 1, 1 if worthwhile:
            return _where_moving(equation, left, right)
        case 2, 1 if worthwhile:
            return _where_both_move(equation, left, right, _first_order_streams, None)

    def product(x: Any, y: Any) -> Any:
        return bind_equation(equation, [x, y])[0]

    return Product(product(left.value, right.value), *_first_order_streams(product, left, right))


def _directly(equation: core.JaxprEqn, left: Jet, right: Jet) -> Product:
    """Multiply by the formula. Factors may also be tangents, of which a value can be `None`."""

    def product(x: Any, y: Any) -> Any:
        return None if x is None or y is None else bind_equation(equation, [x, y])[0]

    velocity, _ = _first_order_streams(product, left, right)
    pairs = zip(left.velocity or (), right.velocity or (), strict=False)
    cross = add(*(product(d_left, d_right) for d_left, d_right in pairs))
    moving = any(stream is not None for stream in velocity)
    return Product(product(left.value, right.value), velocity if moving else None, cross)


def _first_order_streams(
    product: Callable[[Any, Any], Any], left: Jet, right: Jet, *_: Any
) -> tuple[tuple[Any, ...], None]:
    def term(x: Any, y: Any) -> Any:
        return None if x is None or y is None else product(x, y)

    nothing = (None,) * max(len(left.velocity or ()), len(right.velocity or ()))
    return tuple(
        add(term(d_left, right.value), term(left.value, d_right))
        for d_left, d_right in zip(left.velocity or nothing, right.velocity or nothing, strict=True)
    ), None


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
    if right.velocity is None:
        return tuple(product(v, right.value) for v in left.velocity or ()), jnp.zeros_like(value)
    velocity: list[Array] = []
    cross: Any = None
    for d_left, d_right in zip(left.velocity or (), right.velocity, strict=True):
        ahead = product(left.value + scale * d_left, right.value + scale * d_right)
        behind = product(left.value - scale * d_left, right.value - scale * d_right)
        velocity.append((ahead - behind) / (2 * scale))
        cross = add(cross, (ahead - value) + (behind - value))
    return tuple(velocity), cross / (2 * scale**2)


def _where_moving(equation: core.JaxprEqn, left: Jet, right: Jet) -> Product:
    """Multiply a factor that moves at run time, or not, with one that does not."""
    value = bind_equation(equation, [left.value, right.value])[0]
    condition = right.condition if left.velocity is None else left.condition

    def moving() -> Any:
        return _directly(equation, left, right).velocity

    def stopped() -> Any:
        return jax.tree.map(jnp.zeros_like, (value,) * len(left.velocity or right.velocity or ()))

    return Product(value, lax.cond(condition, moving, stopped), None)


def _where_both_move(
    equation: core.JaxprEqn, left: Jet, right: Jet, streams: Callable[..., Any], scale: Any
) -> Product:
    """Multiply a moving factor with a layer, which moves if it was drawn."""
    is_left = left.condition is not None
    layer, other = (left, right) if is_left else (right, left)
    multiply_gated = _gated_product(
        equation.primitive, tuple(sorted(equation.params.items())), is_left, streams
    )
    return multiply_gated(
        layer.condition,
        scale,
        other._replace(condition=None),
        layer._replace(condition=None),
    )


@functools.cache
def _gated_product(
    primitive: core.Primitive,
    params: tuple[tuple[str, Any], ...],
    layer_is_left: bool,
    streams: Callable[..., Any],
) -> Callable[[Array, Any, Jet, Jet], Product]:
    """Build the product of a moving factor with a layer that moves only under a condition.

    JAX's derivative of a `lax.cond` would copy all residuals out of it, so the derivative is a
    rule of its own. The velocity of the layer must be a constant. Layers of one shape share one
    trace, which keeps the time to compile a step with many layers in hand.
    """

    def product(other: Array, layer: Array) -> Array:
        operands = (layer, other) if layer_is_left else (other, layer)
        return primitive.bind(*operands, **dict(params))

    def moving(scale: Any, value: Array, other: Jet, layer: Jet) -> Any:
        return streams(product, other, layer, value, scale)

    def stopped(scale: Any, value: Array, other: Jet, layer: Jet) -> Any:
        return streams(product, other, layer._replace(velocity=None), value, scale)

    @jax.jit
    def forward(condition: Array, scale: Any, other: Jet, layer: Jet) -> Product:
        value = product(other.value, layer.value)
        return Product(value, *lax.cond(condition, moving, stopped, scale, value, other, layer))

    @jax.jit
    def backward(
        condition: Array, scale: Any, other: Jet, layer: Jet, cotangents: Product
    ) -> tuple[Jet, Array]:
        def pulled_back(case: Callable[..., Any]) -> Callable[..., Jet]:
            def pull(scale: Any, other: Jet, layer: Jet, cotangents: Product) -> Jet:
                def linear(other: Jet) -> tuple[Any, Any]:
                    value = product(other.value, layer.value)
                    return value, case(scale, value, other, layer)

                (transposed,) = jax.linear_transpose(linear, other)(
                    (cotangents.value, (cotangents.velocity, cotangents.cross))
                )
                return transposed

            return pull

        by_other = lax.cond(
            condition, pulled_back(moving), pulled_back(stopped), scale, other, layer, cotangents
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
    def gated(condition: Array, scale: Any, other: Jet, layer: Jet) -> Product:
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
