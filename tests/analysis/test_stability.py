"""Linear stability of a point, against systems whose eigenvalues are known."""

import chex
import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from oracle import dense_hessian, without_aux

from seht_jax.analysis.stability import (
    classify,
    classify_params,
    dense_eigenvalues,
    dense_jacobian,
    descent_stability,
    gradient_flow,
)

ROTATION = np.array([[0.0, 1.0], [-1.0, 0.0]])


def linear(*eigenvalues):
    """A linear system that is not symmetric, with these eigenvalues."""
    size = len(eigenvalues)
    triangle = np.diag(eigenvalues) + np.triu(np.ones((size, size)), 1)
    basis = np.random.default_rng(0).normal(size=(size, size))
    matrix = jnp.asarray(basis @ triangle @ np.linalg.inv(basis))
    return lambda x: matrix @ x


def quadratic(*curvatures):
    return lambda x: 0.5 * jnp.sum(jnp.array(curvatures) * x**2)


# The Jacobian


def test_the_jacobian_of_a_pytree_is_in_the_order_of_its_leaves():
    def field(point):
        return {"a": point["b"] ** 2, "b": jnp.stack([point["a"].sum(), point["b"][0]])}

    point = {"a": jnp.array([5.0, 7.0]), "b": jnp.array([2.0, 3.0])}
    expected = [[0, 0, 4, 0], [0, 0, 0, 6], [1, 1, 0, 0], [0, 0, 1, 0]]
    np.testing.assert_array_equal(dense_jacobian(field, point), expected)


def test_the_jacobian_of_gradient_descent_is_minus_the_hessian():
    loss_fn, params, batch = networks.mlp(jnp.tanh)

    def value_fn(params):
        return without_aux(loss_fn)(params, batch)

    hessian = jax.jit(lambda params: dense_hessian(value_fn, params))(params)
    chex.assert_trees_all_close(
        dense_jacobian(gradient_flow(value_fn), params), -np.asarray(hessian), atol=1e-12
    )


def test_gradient_flow_passes_arguments_on():
    flow = gradient_flow(lambda params, x, *, scale: scale * x * params**2)
    assert flow(jnp.array(3.0), 2.0, scale=5.0) == -60


# Kinds of points


@pytest.mark.parametrize(
    ("eigenvalues", "kind", "counts"),
    [
        ((-1.0, -3.0), "asymptotically stable", (2, 0, 0)),
        ((2.0, -3.0), "saddle", (1, 1, 0)),
        ((2.0, 0.5), "unstable", (0, 2, 0)),
        ((0.0, -3.0), "non-hyperbolic", (1, 0, 1)),
        ((0.0, 2.0), "non-hyperbolic", (0, 1, 1)),
        ((0.0, 0.0), "non-hyperbolic", (0, 0, 2)),
        ((1e-9, -1.0), "non-hyperbolic", (1, 0, 1)),
        ((1e-3, -1.0), "saddle", (1, 1, 0)),
        ((1e-9, -1e-9), "non-hyperbolic", (0, 0, 2)),
        ((1e-3, -1e3), "non-hyperbolic", (1, 0, 1)),  # the tolerance grows with the largest
    ],
)
def test_real_eigenvalues_decide(eigenvalues, kind, counts):
    found = classify(linear(*eigenvalues), jnp.zeros(2))
    assert found.kind == kind
    assert (found.num_stable, found.num_unstable, found.num_center) == counts
    np.testing.assert_allclose(found.eigenvalues, sorted(eigenvalues)[::-1], atol=1e-7)


@pytest.mark.parametrize(
    ("growth", "kind"),
    [(-0.1, "asymptotically stable"), (0.1, "unstable"), (0.0, "non-hyperbolic")],
)
def test_of_complex_eigenvalues_the_real_parts_decide(growth, kind):
    found = classify(lambda x: growth * x + ROTATION @ x, jnp.zeros(2))
    assert found.kind == kind
    np.testing.assert_allclose(sorted(found.eigenvalues.imag), [-1, 1])
    np.testing.assert_allclose(found.eigenvalues.real, growth, atol=1e-12)


@pytest.mark.parametrize(
    ("predator_prey", "kind"), [((0.0, 0.0), "saddle"), ((1.0, 1.0), "non-hyperbolic")]
)
def test_lotka_volterra(predator_prey, kind):
    """Prey x and predators y: the origin is a saddle, coexistence a centre."""

    def field(state):
        x, y = state
        return jnp.stack([x * (1 - y), y * (x - 1)])

    assert classify(field, jnp.array(predator_prey)).kind == kind


def test_where_the_field_does_not_vanish_there_is_no_equilibrium():
    found = classify(lambda x: -x, jnp.array([3e-3, 4e-3]))
    assert found.kind == "not an equilibrium"
    assert found.speed == pytest.approx(5e-3)
    assert found.num_stable == 2


@pytest.mark.parametrize(
    ("tolerances", "kind"),
    [
        ({"speed_tolerance": 5.1e-3}, "asymptotically stable"),
        ({"speed_tolerance": 4.9e-3}, "not an equilibrium"),
        ({"speed_tolerance": 1.0, "eigenvalue_tolerance": 0.6}, "non-hyperbolic"),
        ({"speed_tolerance": 1.0, "eigenvalue_tolerance": 0.4}, "asymptotically stable"),
    ],
)
def test_tolerances(tolerances, kind):
    def field(x):
        return -jnp.array([1.0, 0.5]) * x

    assert classify(field, jnp.array([5e-3, 0.0]), **tolerances).kind == kind


# Gradient descent


@pytest.mark.parametrize(
    ("curvatures", "kind"),
    [
        ((1.0, 20.0), "asymptotically stable"),
        ((1.0, -2.0), "saddle"),
        ((-1.0, -2.0), "unstable"),
        ((1.0, 0.0), "non-hyperbolic"),
    ],
)
def test_params_are_classified_by_minus_the_hessian(curvatures, kind):
    found = classify_params(quadratic(*curvatures), jnp.zeros(2))
    assert found.kind == kind
    np.testing.assert_allclose(found.eigenvalues, sorted(-np.array(curvatures))[::-1], atol=1e-12)


def test_a_gradient_that_is_not_0_is_no_equilibrium():
    assert classify_params(quadratic(1.0, 1.0), jnp.array([3.0, 4.0])).speed == pytest.approx(5)


def test_low_precision_is_classified_too():
    params = {"w": jnp.zeros(2, jnp.bfloat16), "b": jnp.zeros((), jnp.float32)}

    def loss_fn(p):
        return (p["w"] ** 2).sum().astype(jnp.float32) + p["b"] ** 2

    found = classify_params(loss_fn, params)
    assert found.kind == "asymptotically stable"
    np.testing.assert_allclose(found.eigenvalues, [-2, -2, -2])


def test_eigenvalues_may_be_computed_by_the_user_from_products():
    seen = []

    def ends(product, point):
        seen.append(product(jax.tree.map(jnp.ones_like, point)))
        return np.array([-20.0, 1.0])

    found = classify_params(quadratic(20.0, -1.0), jnp.zeros(2), eigenvalues=ends)
    assert found.kind == "saddle"
    np.testing.assert_allclose(seen[0], [-20, 1])


# Steps of a finite length


@pytest.mark.parametrize(
    ("learning_rate", "stable"), [(0.001, True), (0.0999, True), (0.1, False), (0.11, False)]
)
def test_the_largest_eigenvalue_limits_the_learning_rate(learning_rate, stable):
    found = jax.jit(descent_stability)(jnp.array([1.0, 20.0, 5.0]), learning_rate)
    assert bool(found.stable) is stable
    np.testing.assert_allclose(found.max_learning_rate, 0.1)
    np.testing.assert_allclose(found.multipliers, 1 - learning_rate * np.array([1, 20, 5]))


@pytest.mark.parametrize("eigenvalues", [(0.0, 1.0), (-1.0, 1.0)])
def test_an_eigenvalue_that_is_not_positive_contracts_for_no_learning_rate(eigenvalues):
    found = descent_stability(np.array(eigenvalues), 0.1)
    assert not found.stable
    assert found.max_learning_rate == 0


@pytest.mark.parametrize(("learning_rate", "stable"), [(0.39, True), (0.41, False)])
def test_complex_eigenvalues_limit_the_learning_rate_too(learning_rate, stable):
    found = descent_stability(jnp.array([1 + 2j, 1 - 2j]), learning_rate)
    assert bool(found.stable) is stable
    np.testing.assert_allclose(found.max_learning_rate, 0.4)


@pytest.mark.parametrize("learning_rate", [0.09, 0.11])
def test_the_condition_is_what_gradient_descent_does(learning_rate):
    loss_fn = quadratic(1.0, 20.0)
    eigenvalues = -classify_params(loss_fn, jnp.zeros(2)).eigenvalues.real

    def descend(start):
        def step(_, x):
            return x - learning_rate * jax.grad(loss_fn)(x)

        return jax.lax.fori_loop(0, 200, step, start)

    distance = jnp.linalg.norm(jax.jit(descend)(jnp.array([1e-3, 1e-3])))
    assert bool(distance < 1e-3) is bool(descent_stability(eigenvalues, learning_rate).stable)


# Arguments


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: classify(1.0, jnp.zeros(2)), TypeError, "field must be a function"),
        (lambda: gradient_flow(None), TypeError, "loss_fn must be a function"),
        (lambda: classify(lambda x: x, jnp.zeros(2, int)), TypeError, "is of dtype int64"),
        (lambda: classify(lambda x: x[:1], jnp.zeros(2)), ValueError, r"\(2,\), got \(1,\)"),
        (lambda: dense_jacobian(lambda x: {"a": x}, jnp.zeros(2)), ValueError, "field must return"),
        (lambda: classify(lambda x: x / 0, jnp.zeros(2)), ValueError, "field is not finite"),
        (
            lambda: classify(lambda x: x, jnp.zeros(2), speed_tolerance=-1.0),
            ValueError,
            "speed_tolerance must be finite and at least 0, got -1.0",
        ),
        (
            lambda: classify(lambda x: x, jnp.zeros(2), eigenvalue_tolerance=np.nan),
            ValueError,
            "eigenvalue_tolerance must be finite and at least 0, got nan",
        ),
        (
            lambda: classify(lambda x: x, jnp.zeros(2), eigenvalues=lambda *_: np.array([])),
            ValueError,
            "eigenvalues must return a vector of at least one finite number",
        ),
        (
            lambda: descent_stability(jnp.ones(2), 0.0),
            ValueError,
            "learning_rate must be above 0, got 0.0",
        ),
        (lambda: descent_stability(jnp.ones(2), "0.1"), TypeError, "learning_rate must be a real"),
        (lambda: descent_stability(jnp.ones(0), 0.1), ValueError, "eigenvalues must not be empty"),
    ],
)
@pytest.mark.usefixtures("no_runtime_type_checks")
def test_wrong_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_eigenvalues_of_a_linear_map():
    found = dense_eigenvalues(lambda v: 3 * (ROTATION @ v), jnp.ones(2))
    np.testing.assert_allclose(sorted(found.imag), [-3, 3])
