r"""Products of jets: matrix products, convolutions and elementwise ones, as few as can be.

The product of two curves has the derivatives

$$(ab)' = a'b + ab', \qquad (ab)'' = a''b + 2a'b' + ab''.$$

Along K directions, that is one product for the value, two for the accelerations, and for each
direction the two of $(ab)'$ and the $a'b'$. Products of large operands are what a
network's time is spent on, so they are made in one of two ways:

*By the formula*, direction by direction, where one factor does not move or the product is small.
(Directions stacked along an axis would be fewer and larger products, which are dense too; XLA's CPU
backend runs them slower.)

*By evaluation*. Where both factors move, the two numbers $(ab)'$ and $a'b'$ follow from
two products, not three, since $ab$ is known already:

$$P_{\pm} = (a \pm s a')(b \pm s b'), \qquad
    (ab)' = \frac{P_+ - P_-}{2s}, \qquad a'b' = \frac{P_+ + P_- - 2ab}{2s^2}.$$

This is exact, whatever the scale s: the evaluation of a polynomial at three points (Toom and Cook),
no difference quotient. Rounding errors are least where both terms of a factor have the same size,
$s^2 = |a||b| / (|a'||b'|)$; then they are at most twice those of the three products for
$(ab)'$, and some four times for $a'b'$. In float16, which has little range, products
are made by the formula. A derivative of it needs no evaluations for the factor that is
differentiated by alone: five products a direction in a step with its gradient, where the formula
needs seven.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.extend import core
from jaxtyping import Array

from seht_jax._compat import bind_equation
from seht_jax.cost import elements, operations
from seht_jax.jet import Jet, add
from seht_jax.precision import accumulation_dtype

# Operations for each element of operands and result. Below it, forming the sums that are evaluated
# costs more than the product that they save, and a branch more than what it skips.
_WORTHWHILE_INTENSITY = 100


Directions: TypeAlias = tuple[Array, ...]


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
    if not moving or not _is_large(equation) or not _has_range(left, right):
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


def _is_large(equation: core.JaxprEqn) -> bool:
    return operations(equation) >= _WORTHWHILE_INTENSITY * elements(equation)


def _has_range(left: Jet, right: Jet) -> bool:
    """Return whether factors are of dtypes in which sums at any scale do not overflow."""
    dtypes = [jet.value.dtype for jet in (left, right)]
    return all(
        jnp.issubdtype(dtype, jnp.inexact) and jnp.finfo(dtype).maxexp >= 128 for dtype in dtypes
    )


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
    conditional = [jet.velocity is not None and jet.condition is not None for jet in (left, right)]
    if not _is_large(equation) or sum(conditional) != 1:
        value = bind_equation(equation, [left.value, right.value])[0]
        return Product(value, _velocity(equation, left, right), None)
    is_left = conditional[0]
    layer, other = (left, right) if is_left else (right, left)

    def in_order(layer: Jet, other: Jet) -> tuple[Jet, Jet]:
        return (layer, other) if is_left else (other, layer)

    product = _where_moving(equation, *in_order(layer, other._replace(velocity=None)))
    if other.velocity is None:
        return product
    carried: Any = _velocity(equation, *in_order(layer._replace(velocity=None), other))
    return product._replace(velocity=tuple(map(add, product.velocity, carried)))


def _directly(equation: core.JaxprEqn, left: Jet, right: Jet) -> Product:
    """Multiply by the formula. Factors may also be tangents, of which a value can be `None`."""
    value = _term(equation, left.value, right.value)
    pairs = zip(left.velocity or (), right.velocity or (), strict=False)
    cross = add(*(_term(equation, d_left, d_right) for d_left, d_right in pairs))
    return Product(value, _velocity(equation, left, right), cross)


def _velocity(equation: core.JaxprEqn, left: Jet, right: Jet) -> tuple[Any, ...] | None:
    nothing = (None,) * max(len(left.velocity or ()), len(right.velocity or ()))
    pairs = zip(left.velocity or nothing, right.velocity or nothing, strict=True)
    velocity = tuple(
        add(_term(equation, d_left, right.value), _term(equation, left.value, d_right))
        for d_left, d_right in pairs
    )
    return velocity if any(stream is not None for stream in velocity) else None


def _term(equation: core.JaxprEqn, left: Any, right: Any) -> Any:
    return None if left is None or right is None else bind_equation(equation, [left, right])[0]


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
        d_left, d_right = map(_nonzero_tangents, primals, tangents)
        for pair in ((d_left, right), (left, d_right)):
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


def _nonzero_tangents(jet: Jet, tangents: Jet) -> Jet:
    """Return the tangents of value and velocity, `None` for each that is zero by its symbol."""
    value = None if isinstance(tangents.value, SymbolicZero) else tangents.value
    if all(isinstance(tangent, SymbolicZero) for tangent in tangents.velocity):
        return Jet(value)
    velocity = (
        jnp.zeros_like(stream) if isinstance(tangent, SymbolicZero) else tangent
        for stream, tangent in zip(jet.velocity, tangents.velocity, strict=True)
    )
    return Jet(value, tuple(velocity))


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
    inverse, half_inverse = ((x / scale).astype(value.dtype) for x in (1.0, 0.5))
    for d_left, d_right in zip(left.velocity or (), right.velocity or (), strict=True):
        left_step, right_step = (d * scale.astype(d.dtype) for d in (d_left, d_right))
        ahead = product(left.value + left_step, right.value + right_step)
        behind = product(left.value - left_step, right.value - right_step)
        velocity.append((ahead - behind) * half_inverse)
        cross = add(cross, (ahead - value) + (behind - value))
    # One factor after the other: the square of a scale may not be a number of the dtype.
    return tuple(velocity), cross * half_inverse * inverse


def _where_moving(equation: core.JaxprEqn, left: Jet, right: Jet) -> Product:
    """Multiply a layer that moves at run time, or not, with a factor that does not."""
    is_left = left.velocity is not None
    layer, other = (left, right) if is_left else (right, left)
    value = bind_equation(equation, [left.value, right.value])[0]
    multiply_gated = _gated_directions(
        equation.primitive, tuple(sorted(equation.params.items())), is_left
    )
    velocity = multiply_gated(layer.condition, value, other.value, layer.velocity)
    return Product(value, velocity, None)


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


def _product_with_layer(
    primitive: core.Primitive, params: tuple[tuple[str, Any], ...], layer_is_left: bool
) -> Callable[[Array, Array], Array]:
    def product(other: Array, layer: Array) -> Array:
        operands = (layer, other) if layer_is_left else (other, layer)
        return primitive.bind(*operands, **dict(params))

    return product


@functools.cache
def _gated_directions(
    primitive: core.Primitive, params: tuple[tuple[str, Any], ...], layer_is_left: bool
) -> Callable[[Array, Array, Array, Directions], Directions]:
    """Build the products of a factor with the velocities of a layer, zeros without a condition.

    The velocities are constants. The value of the product is there to make zeros of its type. For
    the rule and the cache, see `_gated_product`.
    """
    product = _product_with_layer(primitive, params, layer_is_left)

    def products(other: Array, directions: Directions) -> Directions:
        return tuple(product(other, direction) for direction in directions)

    @jax.jit
    def forward(condition: Array, value: Array, other: Array, directions: Directions) -> Directions:
        def moving() -> Directions:
            return products(other, directions)

        def stopped() -> Directions:
            return (jnp.zeros_like(value),) * len(directions)

        return lax.cond(condition, moving, stopped)

    @jax.jit
    def backward(
        condition: Array, other: Array, directions: Directions, cotangents: Directions
    ) -> Array:
        def moving() -> Array:
            transposed = jax.linear_transpose(lambda other: products(other, directions), other)
            return transposed(cotangents)[0]

        return lax.cond(condition, moving, lambda: jnp.zeros_like(other))

    @jax.custom_vjp
    def gated(condition: Array, value: Array, other: Array, directions: Directions) -> Directions:
        return forward(condition, value, other, directions)

    def gated_forward(
        condition: Array, value: Array, other: Array, directions: Directions
    ) -> tuple[Directions, Any]:
        return forward(condition, value, other, directions), (condition, other, directions)

    def gated_backward(
        residuals: Any, cotangents: Directions
    ) -> tuple[None, Array, Array, Directions]:
        _, _, directions = residuals
        constants = tuple(map(jnp.zeros_like, directions))
        no_slope = jnp.zeros_like(cotangents[0])
        return None, no_slope, backward(*residuals, cotangents), constants

    gated.defvjp(gated_forward, gated_backward)
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
    product = _product_with_layer(primitive, params, layer_is_left)

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
        absolute = jnp.abs(lax.stop_gradient(array))
        return jnp.sqrt(jnp.mean(jnp.square(absolute.astype(accumulation_dtype(absolute.dtype)))))

    (d_left, *_), (d_right, *_) = left.velocity, right.velocity
    ratio = (size(left.value) / size(d_left)) * (size(right.value) / size(d_right))
    exponent = jnp.round(0.5 * jnp.log2(ratio))
    # The power must be a number of the factors' dtypes, and so must its inverse.
    limit = min(jnp.finfo(jet.value.dtype).maxexp for jet in (left, right)) - 2
    exponent = jnp.clip(exponent, -limit, limit)
    return jnp.where(jnp.isfinite(ratio) & (ratio > 0), jnp.exp2(exponent), jnp.ones_like(exponent))
