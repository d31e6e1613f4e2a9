"""Products by evaluation equal those of the formula, where they are used and in float32."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import seht_jax as seht
from seht_jax import products
from seht_jax.jet import Jet
from seht_jax.products import multiply


def convolve(x, kernel):
    return lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


PRODUCTS = {
    "dot_general": (jnp.matmul, (24, 32), (32, 20)),
    "convolution": (convolve, (2, 5, 5, 4), (3, 3, 4, 6)),
}


@pytest.fixture(autouse=True)
def every_product_is_worth_it(monkeypatch):
    monkeypatch.setattr(products, "_WORTHWHILE_INTENSITY", 0)


@pytest.fixture(params=PRODUCTS)
def case(request):
    """An equation, and two factors that move in two directions."""
    function, *shapes = PRODUCTS[request.param]
    keys = iter(jax.random.split(jax.random.key(0), 6))
    factors = [
        Jet(
            jax.random.normal(next(keys), shape),
            tuple(jax.random.normal(next(keys), shape) for _ in range(2)),
        )
        for shape in shapes
    ]
    (equation,) = jax.make_jaxpr(function)(*(jet.value for jet in factors)).jaxpr.eqns
    return function, equation, *factors


def formula(function, left, right):
    velocity = tuple(
        function(d_left, right.value) + function(left.value, d_right)
        for d_left, d_right in zip(left.velocity, right.velocity, strict=True)
    )
    cross = sum(map(function, left.velocity, right.velocity))
    return function(left.value, right.value), velocity, cross


def along_a_tangent(f):
    return lambda jets: jax.jvp(f, (jets,), (jax.tree.map(jnp.cos, jets),))


def test_two_evaluations_make_three_products(case):
    function, equation, left, right = case
    chex.assert_trees_all_close(
        tuple(multiply(equation, left, right)), formula(function, left, right), rtol=1e-10
    )


def test_five_products_a_direction_make_a_step_with_its_gradient(case):
    _, equation, left, right = case

    def gradient(left_value, left_velocity, right_value):
        product = multiply(
            equation, Jet(left_value, left_velocity), Jet(right_value, right.velocity)
        )
        return sum(jnp.sum(jnp.sin(stream)) for stream in jax.tree.leaves(product))

    program = jax.jit(jax.value_and_grad(gradient, (0, 1, 2)))
    compiled = program.lower(left.value, left.velocity, right.value).compile().as_text()
    kind = "dot(" if equation.primitive.name == "dot_general" else "convolution("
    # Three for the value (with the products of its gradient), and five for each direction.
    assert compiled.count(f" {kind}") == 3 + 5 * len(left.velocity)


@pytest.mark.parametrize("sides", [(0,), (1,), (0, 1)])
def test_the_derivative_is_that_of_the_formula(case, sides):
    function, equation, *factors = case

    def loss(product_of, jets):
        moved = list(factors)
        for side, jet in zip(sides, jets, strict=True):
            moved[side] = jet
        return sum(jnp.sum(jnp.sin(s)) for s in jax.tree.leaves(product_of(*moved)))

    jets = [factors[side] for side in sides]

    def along_a_tangent(f):
        return lambda jets: jax.jvp(f, (jets,), (jax.tree.map(jnp.cos, jets),))

    def of_the_derivative(f):
        return jax.grad(lambda jets: jnp.sum(jax.grad(f)(jets)[0].value ** 2))

    for transform in (jax.grad, along_a_tangent, of_the_derivative):
        actual, expected = (
            jax.jit(transform(functools.partial(loss, product_of)))(jets)
            for product_of in (
                functools.partial(multiply, equation),
                functools.partial(formula, function),
            )
        )
        chex.assert_trees_all_close(actual, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("drawn", [True, False])
@pytest.mark.parametrize("both_move", [True, False])
@pytest.mark.parametrize("side", [0, 1])
def test_a_layer_moves_if_it_was_drawn(case, drawn, both_move, side):
    function, equation, *factors = case
    zero = jax.tree.map(lambda x: x if drawn else jnp.zeros_like(x), factors[side].velocity)
    factors[side] = factors[side]._replace(velocity=zero)
    if not both_move:
        factors[1 - side] = factors[1 - side]._replace(velocity=None)

    def result(product_of, values, drawn):
        moved = [jet._replace(value=v) for jet, v in zip(factors, values, strict=True)]
        product = product_of(moved, drawn)
        return sum(jnp.sum(jnp.sin(s)) for s in jax.tree.leaves(product)), product

    def conditional(moved, drawn):
        moved[side] = moved[side]._replace(condition=drawn)
        value, velocity, cross = multiply(equation, *moved)
        return value, velocity, jnp.zeros_like(value) if cross is None else cross

    def unconditional(moved, drawn):
        still = jax.tree.map(jnp.zeros_like, moved[1 - side].value)
        if not both_move:
            moved[1 - side] = moved[1 - side]._replace(velocity=(still, still))
        return formula(function, *moved)

    values = [jet.value for jet in factors]
    actual, expected = (
        jax.jit(jax.value_and_grad(functools.partial(result, form), has_aux=True))(
            values, jnp.asarray(drawn)
        )
        for form in (conditional, unconditional)
    )
    chex.assert_trees_all_close(actual, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("left_size", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("right_size", [1e-4, 1.0, 1e4])
def test_rounding_errors_are_those_of_the_formula(case, left_size, right_size):
    """Whatever the sizes of the velocities are; the sum of all streams is what is used."""
    function, _, left, right = case
    left, right = (
        jet._replace(velocity=tuple(size * v for v in jet.velocity))
        for jet, size in ((left, left_size), (right, right_size))
    )
    single = jax.tree.map(lambda x: x.astype(jnp.float32), (left, right))
    (equation,) = jax.make_jaxpr(function)(*(jet.value for jet in single)).jaxpr.eqns
    exact = formula(function, left, right)

    def error(result):
        return [
            float(jnp.linalg.norm((a - b).ravel()) / jnp.linalg.norm(b.ravel()))
            for a, b in zip(jax.tree.leaves(result), jax.tree.leaves(exact), strict=True)
        ]

    *of_value_and_velocity, of_cross = error(
        jax.tree.map(lambda x: x.astype(float), tuple(multiply(equation, *single)))
    )
    assert max(of_value_and_velocity) < 2e-6
    # A cross term much smaller than the second derivative that it is a part of may be less exact.
    share = min(left_size, right_size) / max(left_size, right_size)
    assert of_cross < 2e-6 / share**0.5


def test_velocities_of_zero_are_no_trouble(case):
    _, equation, left, right = case
    still = left._replace(velocity=jax.tree.map(jnp.zeros_like, left.velocity))
    product = multiply(equation, still, right)
    np.testing.assert_allclose(product.cross, 0, atol=1e-10)
    chex.assert_tree_all_finite(tuple(product))


@pytest.mark.parametrize(("intensity", "evaluated"), [(0, True), (1e9, False)])
def test_large_products_are_evaluated_and_small_ones_made_by_the_formula(
    case, intensity, evaluated, monkeypatch
):
    _, equation, left, right = case
    monkeypatch.setattr(products, "_WORTHWHILE_INTENSITY", intensity)
    program = jax.make_jaxpr(lambda: multiply(equation, left, right))()
    names = [equation.primitive.name for equation in program.eqns]
    assert ("custom_jvp_call" in names) == evaluated


def test_a_product_with_integers_is_made_by_the_formula(monkeypatch):
    monkeypatch.setattr(products, "_WORTHWHILE_INTENSITY", 0)
    weights = jnp.arange(12, dtype=jnp.int8).reshape(3, 4)

    def loss_fn(x):
        return jnp.sum(lax.dot(weights, x, preferred_element_type=jnp.float32) ** 2)

    x = jnp.ones((4, 2), jnp.float32)
    penalised = seht.regularize(loss_fn, jax.random.key(0), None, 0.1, with_estimate=True)
    gradients, estimate = jax.jit(jax.grad(penalised, has_aux=True))(x)
    np.testing.assert_allclose(gradients, jax.grad(loss_fn)(x), rtol=1e-6)
    assert estimate.mean > 0


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
@pytest.mark.parametrize(
    "sizes", [(1.0, 1.0, 1.0, 1.0), (0.01, 30.0, 0.01, 30.0), (1, 1e-3, 1, 1e-2)]
)
def test_low_precision_has_its_own_errors_alone(case, dtype, sizes):
    function, _, left, right = case
    left, right = (
        Jet(
            (size * jet.value).astype(dtype),
            tuple((step * v).astype(dtype) for v in jet.velocity),
        )
        for jet, size, step in ((left, *sizes[:2]), (right, *sizes[2:]))
    )
    if function is jnp.matmul:
        function = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)
    (equation,) = jax.make_jaxpr(function)(left.value, right.value).jaxpr.eqns
    actual = multiply(equation, left, right)
    exact = jax.tree.map(lambda x: x.astype(float), (left, right))
    expected = formula(case[0], *exact)
    tolerance = 8 * float(jnp.finfo(dtype).eps)
    for stream, wanted in zip(
        jax.tree.leaves(tuple(actual)), jax.tree.leaves(expected), strict=True
    ):
        assert jnp.max(jnp.abs(stream.astype(float) - wanted)) < tolerance * jnp.max(
            jnp.abs(wanted)
        )


def test_a_derivative_by_the_velocity_along_one_direction_alone_is_complete(case):
    _, equation, left, right = case

    def gradient(only):
        def total(velocity):
            jet = left._replace(velocity=(velocity, left.velocity[1]))
            return sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(only(equation, jet, right)))

        return jax.grad(total)(left.velocity[0])

    chex.assert_trees_all_close(gradient(multiply), gradient(products._directly), rtol=1e-9)
