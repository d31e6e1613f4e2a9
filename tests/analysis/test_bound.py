"""The generalisation bound of linear models, against values computed by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from seht_jax.analysis.bound import gap_bound, linear_model_bound, norm_2_1

# Two classes, whose logits are (0, log 3) for every input, so softmax is (1/4, 3/4).
LOG_3 = math.log(3)
WEIGHTS = np.array([[0.0, 0.0, 0.0], [LOG_3, 0.0, 0.0]])
INPUTS = np.array([[1.0, 2.0, 2.0], [1.0, 0.0, 0.0], [1.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
LABELS = np.array([1, 1, 1, 0])
# Jacobians (1/4, -1/4), three times, and (-3/4, 3/4); the Hessian's trace is 1 - 1/16 - 9/16.
MU = (3 * 0.25 + 0.75) / 4 * 2**0.5
V = 3 / 8
THETA = math.log(8) ** 3 * 9


def bound(**options):
    return linear_model_bound(
        jnp.asarray(WEIGHTS), jnp.asarray(INPUTS), jnp.asarray(LABELS), **options
    )


def terms(v, **changes):
    arguments = {"norm_bound": 2.0, "mu": 0.5, "theta": 8.0, "num_examples": 8, "loss_bound": 1.0}
    return gap_bound(v=v, **(arguments | changes))


# The norm


def test_the_norm_is_the_sum_of_the_norms_of_columns():
    matrix = jnp.array([[3.0, 0.0, 1.0], [4.0, 2.0, 0.0]])
    np.testing.assert_allclose(norm_2_1(matrix), 5 + 2 + 1)
    np.testing.assert_allclose(norm_2_1(matrix.T), 10**0.5 + 20**0.5)


def test_the_bound_takes_the_norm_of_the_transpose():
    weights = jnp.array([[3.0, 4.0, 0.0], [0.0, 0.0, 2.0]])  # a row for each class
    found = linear_model_bound(weights, jnp.ones((2, 3)), jnp.zeros(2, int))
    np.testing.assert_allclose(found.norm_bound, 5 + 2)


# A case by hand


def test_the_quantities_of_a_linear_model():
    found = bound()
    np.testing.assert_allclose(found.norm_bound, LOG_3)
    np.testing.assert_allclose(found.mu, MU)
    np.testing.assert_allclose(found.v, V)
    np.testing.assert_allclose(found.theta, THETA)
    np.testing.assert_allclose(found.empirical_loss, (3 * math.log(4 / 3) + 1) / 4)


@pytest.mark.parametrize(("b", "delta", "a"), [(1.0, 0.05, LOG_3), (2.0, 0.01, 3.0)])
def test_the_terms_of_a_linear_model(b, delta, a):
    found = bound(loss_bound=b, delta=delta, norm_bound=a).gap
    scale = b * a**2 * THETA / 4
    np.testing.assert_allclose(
        found.jacobian, (a * MU) ** (2 / 3) * (THETA * b) ** (1 / 3) / 4 ** (1 / 3)
    )
    np.testing.assert_allclose(found.hessian, a * math.sqrt(b * V * THETA) / 2)
    np.testing.assert_allclose(found.logarithmic, scale / (math.log(scale / V) ** 2 + 1))
    np.testing.assert_allclose(found.zeta, b * (math.log(1 / delta) + math.log(math.log(4))) / 4)
    np.testing.assert_allclose(found.total, sum(found))


def test_a_loss_above_the_bound_is_cut_off():
    np.testing.assert_allclose(bound(loss_bound=0.2).empirical_loss, 0.2)
    losses = [math.log(4 / 3)] * 3 + [math.log(4)]
    np.testing.assert_allclose(bound(loss_bound=9.0).empirical_loss, np.mean(losses))


def test_the_derivatives_are_with_respect_to_the_outputs():
    """Jacobian and Hessian in the logits by automatic differentiation, for three classes."""
    keys = jax.random.split(jax.random.key(0), 3)
    weights, inputs = jax.random.normal(keys[0], (3, 4)), jax.random.normal(keys[1], (5, 4))
    labels = jax.random.randint(keys[2], (5,), 0, 3)

    def loss(logits, label):
        return optax.softmax_cross_entropy_with_integer_labels(logits, label)

    logits = inputs @ weights.T
    jacobians = jax.jit(jax.vmap(jax.grad(loss)))(logits, labels)
    hessians = jax.jit(jax.vmap(jax.hessian(loss)))(logits, labels)
    found = jax.jit(linear_model_bound)(weights, inputs, labels)
    np.testing.assert_allclose(found.mu, jnp.linalg.norm(jacobians, axis=1).mean())
    np.testing.assert_allclose(found.v, jnp.trace(hessians, axis1=1, axis2=2).mean())


# How it depends on the trace


def test_the_sum_rises_with_the_trace_wherever_it_is_defined():
    scale = 1.0 * 2.0**2 * 8.0 / 8
    values = scale * np.geomspace(1e-12, 1e12, 4001)
    totals = jax.jit(jax.vmap(lambda v: terms(v).total))(jnp.asarray(values))
    assert (np.diff(totals) > 0).all()


def test_so_does_its_derivative_say_where_the_rise_is_least():
    """Near v = e^0.48 B A^2 theta / n the third term falls nearly as fast as the second rises."""
    logarithms = np.linspace(0.0, 2.0, 401)
    slopes = jax.jit(jax.vmap(jax.grad(lambda v: terms(v).total)))(4 * jnp.exp(logarithms))
    assert (slopes > 0).all()
    assert logarithms[np.argmin(slopes)] == pytest.approx(0.48, abs=0.02)
    assert slopes.min() < 0.01 * slopes[0]


def test_the_third_term_alone_rises_up_to_its_scale_and_falls_beyond():
    below, at, above = (float(terms(v).logarithmic) for v in (1.0, 4.0, 16.0))
    assert below < at > above
    assert at == pytest.approx(4.0)


@pytest.mark.parametrize("name", ["norm_bound", "mu", "v", "theta"])
def test_no_term_falls_with_the_others(name):
    v = {} if name == "v" else {"v": 0.3}
    low, high = (terms(**v, **{name: value}) for value in (0.2, 0.4))
    assert all(float(x) <= float(y) for x, y in zip(low, high, strict=True))
    assert low.total < high.total


@pytest.mark.parametrize("zero", [{"v": 0.0}, {"v": 0.0, "norm_bound": 0.0}, {"theta": 0.0}])
def test_at_0_the_terms_have_their_limits(zero):
    found = terms(**({"v": 0.3} | zero))
    assert found.hessian == found.logarithmic == 0
    gradient = jax.grad(lambda a: terms(v=0.0, norm_bound=a).logarithmic)(2.0)
    assert gradient == 0


# Types and arguments


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_low_precision_is_computed_in_float32(dtype):
    found = linear_model_bound(
        jnp.asarray(WEIGHTS, dtype), jnp.asarray(INPUTS, dtype), jnp.asarray(LABELS)
    )
    np.testing.assert_allclose(found.v, V, rtol=1e-2)
    assert found.v.dtype == found.gap.hessian.dtype == jnp.float32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_examples": 1}, "num_examples must be at least 2"),
        ({"loss_bound": 0.0}, "loss_bound must be finite and above 0, got 0.0"),
        ({"delta": 1.0}, "delta must be between 0 and 1, got 1.0"),
        ({"mu": -0.5}, "mu must be at least 0, got -0.5"),
        ({"v": -0.5}, "v must be at least 0, got -0.5"),
    ],
)
def test_a_quantity_out_of_range_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        terms(**({"v": 0.3} | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": jnp.array([0, 1, 1, 2])}, r"labels must be in 0 ... 1, .* from 0 to 2"),
        ({"labels": jnp.array([0, -1, 1, 0])}, r"labels must be in 0 ... 1, .* from -1 to 1"),
        ({"weights": jnp.asarray(WEIGHTS.T)}, r"got weights of shape \(3, 2\)"),
        ({"norm_bound": 1.0}, "norm_bound must be at least the .* norm .* got 1.0"),
        ({"inputs": jnp.ones((1, 3)), "labels": jnp.zeros(1, int)}, "at least 2"),
        ({"labels": jnp.zeros((4, 1), int)}, r"labels a vector, .* labels of \(4, 1\)"),
    ],
)
@pytest.mark.usefixtures("no_runtime_type_checks")
def test_a_model_that_does_not_fit_is_named(changes, message):
    arguments = {
        "weights": jnp.asarray(WEIGHTS),
        "inputs": jnp.asarray(INPUTS),
        "labels": jnp.asarray(LABELS),
    }
    with pytest.raises(ValueError, match=message):
        linear_model_bound(**(arguments | changes))
