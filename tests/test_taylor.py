"""Taylor propagation equals JAX's own derivatives, for every kind of operation."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.extend import core
from jax.extend.core import primitives
from jax.interpreters import ad, mlir
from jax.sharding import PartitionSpec as P

import seht_jax as seht
from seht_jax import products
from seht_jax.jet import Jet
from seht_jax.taylor import propagate, propagates

SIZE = 6
NUM_DIRECTIONS = 3


def curvature(function, x, directions):
    """Return value, velocities and acceleration of a function of one array."""
    closed = jax.make_jaxpr(function)(x)
    assert propagates(closed.jaxpr)
    (result,) = propagate(closed.jaxpr, closed.consts, [Jet(x, tuple(directions))])
    zeros = jnp.zeros_like(result.value)
    return (
        result.value,
        (zeros,) * len(directions) if result.velocity is None else result.velocity,
        zeros if result.acceleration is None else result.acceleration,
    )


def expected_curvature(function, x, directions):
    def along(direction):
        def first(x):
            return jax.jvp(function, (x,), (direction,))[1]

        return first(x), jax.jvp(first, (x,), (direction,))[1]

    velocities, accelerations = zip(*map(along, directions), strict=True)
    return function(x), velocities, sum(accelerations)


def example(size=SIZE):
    keys = jax.random.split(jax.random.key(3))
    x = 0.3 + jax.random.uniform(keys[0], (size,))
    return x, list(jax.random.normal(keys[1], (NUM_DIRECTIONS, size)))


def matrix(x, rows=2):
    return x.reshape(rows, -1)


def image(x):
    return jnp.outer(x, jnp.sin(x)).reshape(1, SIZE, SIZE // 2, 2)


def convolve(x, kernel, **options):
    options = {"window_strides": (1, 1), "padding": "SAME"} | options
    return lax.conv_general_dilated(
        x, kernel, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options
    )


def kernel(x, shape):
    return jnp.resize(jnp.cos(3 * x), shape)


def grouped(x):
    return convolve(image(x), kernel(x, (2, 2, 1, 4)), feature_group_count=2)


def batch_grouped(x):
    images = jnp.concatenate([image(x), image(x * x)])
    return convolve(images, kernel(x, (2, 2, 2, 4)), batch_group_count=2)


def definite(x):
    return matrix(x) @ matrix(x).T + jnp.eye(2)


def through_scan(x):
    def step(carry, xs):
        count, total = carry
        total = jnp.tanh(total * xs[0] + x[count])
        return (count + 1, total), (total * xs[1], count)

    (_, last), (totals, counts) = lax.scan(
        step, (jnp.int32(0), x[0]), (x[:4], jnp.arange(4.0)), reverse=True
    )
    return last + jnp.sum(totals * counts.astype(x.dtype))


def through_scan_of_a_still_carry(x):
    # The carry moves from the second round on.
    def step(carry, x):
        return carry * 0.5 + x * carry**2, carry

    return jnp.sum(lax.scan(step, jnp.ones(()), x)[1])


def through_while(x):
    def body(state):
        count, x = state
        return count + 1, jnp.sin(x) * x

    return lax.while_loop(lambda state: state[0] < 3, body, (0, x))[1]


def newton(x):
    """The cube root, by as many rounds as it takes: not the same number for each x."""

    def going(state):
        return jnp.abs(state**3 - x) > 1e-3

    return lax.while_loop(going, lambda state: state - (state**3 - x) / (3 * state**2), 1.0 + 0 * x)


def through_batched_whiles(x):
    return jax.vmap(newton)(jnp.exp(x)), jax.vmap(jax.vmap(newton))(jnp.exp(2 * matrix(x)))


def through_cond(x):
    return lax.cond(x[0] > 0.1, lambda x: x**3, lambda x: x, x)


def through_cond_of_a_constant(x):
    return lax.switch(jnp.int32(0), [jnp.sin, jnp.zeros_like, lambda x: x], x)


def through_platforms(x):
    return lax.platform_dependent(x, cpu=jnp.sin, tpu=jnp.cos, default=jnp.tanh)


@jax.custom_jvp
def scaled_rule(x):
    return x**3


@scaled_rule.defjvp
def _(primals, tangents):
    return scaled_rule(*primals), 6 * primals[0] ** 2 * tangents[0]  # twice the derivative


def dropout(x):
    # The mask depends on a setting that is in force while the loss is traced.
    with jax.threefry_partitionable(False):
        return jnp.where(jax.random.bernoulli(jax.random.key(0), 0.5, x.shape), x**2, 0.0)


def devices(x):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=P("data"), out_specs=P())
    def mean(x):
        return lax.pmean(jnp.sum(jnp.sin(x) * x), "data")

    return mean(x)


def attention(x):
    queries = jnp.outer(x, jnp.cos(x)).reshape(2, 3, SIZE)
    weights = jax.nn.softmax(jnp.einsum("btd,bsd->bts", queries, jnp.sin(queries)))
    return jnp.einsum("bts,bsd->btd", weights, queries)


def layer_norm(x):
    centred = x - x.mean()
    return centred * lax.rsqrt(jnp.mean(centred**2) + 0.1) * x


FUNCTIONS = {
    **{
        name: getattr(jnp, name)
        for name in [
            "sin",
            "cos",
            "tanh",
            "sinh",
            "cosh",
            "exp",
            "exp2",
            "expm1",
            "log",
            "log1p",
            "sqrt",
            "square",
            "abs",
            "cumsum",
            "sort",
            "sign",
            "floor",
            "cumprod",
            "prod",
            "max",
            "min",
            "arctan",
            "arcsinh",
        ]
    },
    "erf": jax.lax.erf,
    "erfc": jax.lax.erfc,
    "rsqrt": lax.rsqrt,
    "sigmoid": jax.nn.sigmoid,
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
    "relu": lambda x: jax.nn.relu(x - 0.7) * x,
    "softplus": jax.nn.softplus,
    "log_softmax": jax.nn.log_softmax,
    "logsumexp": jax.nn.logsumexp,
    "integer_pow": lambda x: x**-3,
    "pow": lambda x: x ** jnp.flip(x),
    "product": lambda x: x * jnp.sin(x),
    "quotient": lambda x: jnp.sin(x) / x,
    "quotient_of_a_constant": lambda x: 1 / x,
    "quotient_by_a_constant": lambda x: x**2 / 3,
    "quotient_by_what_accelerates_only": lambda x: jnp.sum(x) / (1 + (x - x) + x**2),
    "maximum": lambda x: jnp.maximum(x, 0.5) ** 2,
    "clip": lambda x: jnp.clip(x, 0.4, 0.9) ** 2,
    "where": lambda x: jnp.where(x > 0.6, x**2, x),
    "logaddexp": lambda x: jnp.logaddexp(x, jnp.flip(x)),
    "atan2": lambda x: jnp.arctan2(x, jnp.flip(x)),
    "stop_gradient": lambda x: lax.stop_gradient(x) * x**2,
    "matrix_product": lambda x: matrix(x).T @ jnp.sin(matrix(x)),
    "batched_product": lambda x: jnp.einsum(
        "bij,bjk->bik", *[x.reshape(2, 1, 3), x.reshape(2, 3, 1)]
    ),
    "convolution": lambda x: convolve(image(x), kernel(x, (2, 3, 2, 3))),
    "strided_convolution": lambda x: convolve(
        image(x), kernel(x, (3, 2, 2, 1)), window_strides=(2, 1), rhs_dilation=(1, 2)
    ),
    "transposed_convolution": lambda x: convolve(
        image(x), kernel(x, (2, 2, 2, 1)), lhs_dilation=(2, 2), padding=((1, 0), (0, 1))
    ),
    "grouped_convolution": grouped,
    "batch_grouped_convolution": batch_grouped,
    "max_pool": lambda x: lax.reduce_window(
        image(x) ** 2, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 1, 1), "VALID"
    ),
    "average_pool": lambda x: lax.reduce_window(
        image(x) ** 2, 0.0, lax.add, (1, 2, 2, 1), (1, 2, 1, 1), "VALID"
    ),
    "gather": lambda x: x[jnp.array([2, 0, 2])] ** 2,
    "scatter": lambda x: jnp.zeros(4).at[jnp.array([1, 3, 1])].add(x[:3] ** 2),
    "scatter_set": lambda x: x.at[1].set(x[0] ** 2),
    "scatter_multiply": lambda x: (
        jnp.ones(4).at[jnp.array([1, 3, 0])].multiply(x[:3] ** 2, unique_indices=True)
    ),
    "dynamic_slice": lambda x: lax.dynamic_slice(x**2, (1,), (3,)),
    "dynamic_update": lambda x: lax.dynamic_update_slice(x**2, x[:2], (1,)),
    "concatenate": lambda x: jnp.concatenate([x**2, jnp.ones(2), x]),
    "pad": lambda x: jnp.pad(x**2, 1, constant_values=2.0),
    "top_k": lambda x: lax.top_k(x**2, 3)[0],
    "argsort": lambda x: x[jnp.argsort(x)] * jnp.arange(6.0),
    "variance": jnp.var,
    "norm": jnp.linalg.norm,
    "fft": lambda x: jnp.abs(jnp.fft.fft(x)) ** 2,
    "rfft": lambda x: jnp.fft.irfft(jnp.fft.rfft(x) ** 2),
    "solve": lambda x: jnp.linalg.solve(definite(x), x[:2]),
    "solve_triangular": lambda x: jax.scipy.linalg.solve_triangular(
        jnp.tril(definite(x)), x[:2], lower=True
    ),
    "cholesky": lambda x: jnp.linalg.cholesky(definite(x)),
    "eigvalsh": lambda x: jnp.linalg.eigvalsh(definite(x)),
    "log_determinant": lambda x: jnp.linalg.slogdet(definite(x))[1],
    "jit": jax.jit(lambda x: jax.jit(jnp.sin)(x) * x),
    "checkpoint": lambda x: jax.checkpoint(lambda x: jnp.sin(x**2))(x) * x,
    "scan": through_scan,
    "scan_of_a_still_carry": through_scan_of_a_still_carry,
    "associative_scan": lambda x: lax.associative_scan(jnp.multiply, x),
    "fori_loop": lambda x: lax.fori_loop(0, 3, lambda i, y: jnp.sin(y) + x[i], x),
    "cond": through_cond,
    "switch": through_cond_of_a_constant,
    "platforms": through_platforms,
    "custom_jvp": lambda x: scaled_rule(jnp.sin(x)),
    "dropout": dropout,
    "shard_map": devices,
    "vmap": jax.vmap(lambda a: lax.psum(a**2, "i") * a, axis_name="i"),
    "split": lambda x: jnp.concatenate([part**2 for part in jnp.split(x * x[0], [2, 3])]),
    "name": lambda x: checkpoint_name(x**2, "squares") * x,
    "attention": attention,
    "layer_norm": layer_norm,
    "cross_entropy": lambda x: optax.softmax_cross_entropy_with_integer_labels(
        matrix(x**2), jnp.array([1, 0])
    ),
}


@pytest.fixture(params=FUNCTIONS)
def function(request):
    return FUNCTIONS[request.param]


def test_the_streams_are_the_derivatives(function):
    x, directions = example()
    chex.assert_trees_all_close(
        jax.jit(functools.partial(curvature, function))(x, directions),
        jax.jit(functools.partial(expected_curvature, function))(x, directions),
        rtol=1e-10,
        atol=1e-12,
    )


def test_the_gradient_of_the_acceleration_is_the_third_derivative(function):
    x, directions = example()

    def gradient(streams):
        return jax.grad(lambda x: jnp.sum(streams(function, x, directions)[2]))

    chex.assert_trees_all_close(
        jax.jit(gradient(curvature))(x),
        jax.jit(gradient(expected_curvature))(x),
        rtol=1e-9,
        atol=1e-11,
    )


# Reverse mode, which the gradient of the acceleration takes, does not go through a while loop.
@pytest.mark.parametrize(
    "function",
    [
        through_while,
        lambda x: through_batched_whiles(x)[0],
        lambda x: through_batched_whiles(x)[1],
    ],
    ids=["one", "batched", "batched_twice"],
)
def test_a_while_loop_is_entered(function):
    x, directions = example()
    chex.assert_trees_all_close(
        curvature(function, x, directions),
        expected_curvature(function, x, directions),
        rtol=1e-10,
    )


def test_a_loss_may_hold_a_batched_while_loop_that_is_not_differentiated():
    def loss_fn(x):
        return jnp.sum(lax.stop_gradient(through_batched_whiles(x)[0]) * x**3)

    x, _ = example()
    penalised = seht.regularize(loss_fn, jax.random.key(0), None, 0.1)
    roots = through_batched_whiles(x)[0]
    expected = 3 * roots * x**2 + 0.1 * 6 * roots
    chex.assert_trees_all_close(jax.jit(jax.grad(penalised))(x), expected, rtol=1e-10)


# Random programs


def through_rounds(x):
    return lax.fori_loop(0, 2, lambda i, y: jnp.sin(y) + x * i.astype(float), x)


def by_a_condition(x):
    return lax.cond(jnp.sum(x) > 0, lambda x: x**2, jnp.cos, x)


UNARY = (
    jnp.sin,
    through_rounds,
    by_a_condition,
    jax.checkpoint(lambda x: jnp.sin(x) * x),
    jnp.exp,
    jnp.tanh,
    jnp.flip,
    jnp.cumsum,
    jax.nn.relu,
    lambda x: x.reshape(2, -1).T.ravel(),
)
BINARY = (
    jnp.add,
    jnp.multiply,
    jnp.subtract,
    jnp.maximum,
    lambda x, y: x / (1.5 + y**2),
    lambda x, y: (x.reshape(2, -1) @ y.reshape(-1, 2)).ravel()[jnp.array([0, 1, 2, 3, 0, 1])],
)


@st.composite
def programs(draw):
    steps = draw(
        st.lists(
            st.tuples(
                st.sampled_from(range(len(UNARY) + len(BINARY))),
                st.integers(0, 9),
                st.integers(0, 9),
            ),
            min_size=2,
            max_size=8,
        )
    )

    def program(x):
        values = [x, jnp.cos(x), jnp.linspace(-1.0, 1.0, SIZE)]
        for operation, i, j in steps:
            left, right = values[-1 - i % len(values)], values[-1 - j % len(values)]
            if operation < len(UNARY):
                values.append(UNARY[operation](left))
            else:
                values.append(BINARY[operation - len(UNARY)](left, right))
        return sum(map(jnp.sum, values[3:]))

    return program


@settings(max_examples=25, deadline=None, derandomize=True)
@given(programs(), st.sampled_from([0, 100]))
def test_random_programs(program, intensity):
    x, directions = example()
    with jax.enable_x64(True), pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "_WORTHWHILE_INTENSITY", intensity)
        x, directions = jax.tree.map(lambda a: jnp.asarray(a, float), (x, directions))
        # Compiled as two programs: one for each operation would take longer.
        actual = jax.jit(functools.partial(curvature, program))(x, directions)
        expected = jax.jit(functools.partial(expected_curvature, program))(x, directions)
    scale = 1 + abs(float(expected[2]))
    chex.assert_trees_all_close(actual, expected, rtol=1e-9, atol=1e-9 * scale)


# Structure


def jets(function, *inputs):
    closed = jax.make_jaxpr(function)(*(jet.value for jet in inputs))
    return propagate(closed.jaxpr, closed.consts, inputs)


def convolved(x):
    return jnp.sum(convolve(image(x), kernel(x, (2, 2, 2, 4))) ** 3)


@pytest.mark.parametrize("intensity", [0, 100], ids=["evaluated", "by_the_formula"])
@pytest.mark.parametrize("function", [attention, convolved, through_scan])
def test_together_and_one_by_one_is_the_same(function, intensity, monkeypatch):
    monkeypatch.setattr(products, "_WORTHWHILE_INTENSITY", intensity)
    x, directions = example()
    _, together, total = curvature(function, x, directions)
    alone = [curvature(function, x, [direction]) for direction in directions]
    chex.assert_trees_all_close(together, tuple(result[1][0] for result in alone), rtol=1e-12)
    chex.assert_trees_all_close(total, sum(result[2] for result in alone), rtol=1e-10)


@pytest.mark.parametrize(
    ("function", "moves", "accelerates"),
    [
        (lambda x, still: jnp.sin(still) @ jnp.ones(SIZE), False, False),
        (lambda x, still: x[1:] * still[1:] + 2, True, False),
        (lambda x, still: jax.nn.relu(x), True, False),
        (lambda x, still: jnp.max(jnp.abs(x - still)), True, False),
        (lambda x, still: jnp.sign(x), False, False),
        (lambda x, still: jax.jit(lax.stop_gradient)(x), False, False),
        (lambda x, still: x * x, True, True),
        (lambda x, still: lax.scan(lambda c, a: (c + a, c * 2), still[0], x)[1], True, False),
    ],
)
def test_zeros_are_structural(function, moves, accelerates):
    x, directions = example()
    (result,) = jets(function, Jet(x, tuple(directions)), Jet(jnp.cos(x)))
    assert (result.velocity is not None, result.acceleration is not None) == (moves, accelerates)


def test_integers_do_not_move():
    x, directions = example()
    result, rounded = jets(lambda x: (x.astype(int), jnp.argmax(x)), Jet(x, tuple(directions)))
    assert not result.moves
    assert not rounded.moves


def count(jaxpr, name):
    return sum(equation.primitive.name == name for equation in jaxpr.eqns) + sum(
        count(body, name) for body in core.subjaxprs(jaxpr)
    )


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (FUNCTIONS["checkpoint"], primitives.remat_p.name),
        (through_scan, "scan"),
        (through_cond, "cond"),
        (through_while, "while"),
    ],
)
def test_control_flow_is_entered_once(function, name):
    x, directions = example()
    program = jax.make_jaxpr(functools.partial(curvature, function))(x, directions)
    assert count(program.jaxpr, name) == 1


def test_checkpoint_still_saves_memory():
    x, directions = example()

    def saved(function):
        def acceleration(x):
            return jnp.sum(curvature(function, x, directions)[2])

        return len(jax.tree.leaves(jax.eval_shape(lambda x: jax.vjp(acceleration, x)[1], x)))

    def deep(x):
        for _ in range(5):
            x = jnp.sin(x) * x
        return x

    assert saved(jax.checkpoint(deep)) < saved(deep) / 3


def test_what_can_not_be_propagated_is_named():
    @jax.custom_vjp
    def reversed_gradient(x):
        return x

    reversed_gradient.defvjp(lambda x: (x, None), lambda _, cotangent: (-cotangent,))

    def with_reference(x):
        reference = jax.new_ref(x)
        reference[...] = jnp.sin(reference[...])
        return reference[...]

    for function in (
        reversed_gradient,
        jax.jit(reversed_gradient),
        jax.checkpoint(reversed_gradient),
        lambda x: lax.scan(lambda c, a: (c, reversed_gradient(a)), 0.0, x)[1],
        with_reference,
    ):
        assert not propagates(jax.make_jaxpr(function)(jnp.ones(3)).jaxpr)


def test_the_context_of_an_operation_is_kept():
    x, directions = example()
    value, _, _ = jax.jit(functools.partial(curvature, dropout))(x, directions)
    np.testing.assert_array_equal(value, jax.jit(dropout)(x))


def through_no_rounds(x):
    total, ys = lax.scan(lambda carry, y: (carry * y, carry + y), x, jnp.zeros((0, SIZE)))
    return jnp.sum(total**3) + jnp.sum(ys)


def through_linear_call(x):
    def forward(scale, y):
        return scale * y

    return jax.custom_derivatives.linear_call(forward, forward, jnp.arange(float(SIZE)), x**3)


unknown_p = core.Primitive("unknown_cube")
unknown_p.def_impl(lambda x: x**3)
unknown_p.def_abstract_eval(lambda x: x)
ad.defjvp(unknown_p, lambda tangent, x: 3 * x**2 * tangent)
mlir.register_lowering(unknown_p, mlir.lower_fun(lambda x: x**3, multiple_results=False))


@pytest.mark.parametrize(
    "function", [through_no_rounds, through_linear_call, unknown_p.bind], ids=lambda f: str(f)[:30]
)
def test_unusual_operations_are_right(function):
    x, directions = example()
    chex.assert_trees_all_close(
        jax.jit(functools.partial(curvature, function))(x, directions),
        jax.jit(functools.partial(expected_curvature, function))(x, directions),
        rtol=1e-10,
    )
