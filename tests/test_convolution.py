"""The canonical convolutions equal the original ones, wherever they stand."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend import core

from seht_jax.convolution import _canonical_jaxpr, canonical_on_cpu

LAYOUTS = {
    1: [("NCH", "OIH", "NCH"), ("NHC", "HIO", "NHC"), ("HNC", "OHI", "CNH")],
    2: [("NCHW", "OIHW", "NCHW"), ("NHWC", "HWIO", "NHWC"), ("CWNH", "HOWI", "HCNW")],
    3: [("NCHWD", "OIHWD", "NCHWD"), ("NHWDC", "HWDIO", "NHWDC")],
}
SETTINGS = {
    "plain": {},
    "strides": {"window_strides": (2, 1, 2)},
    "padding": {"padding": ((1, 2), (0, 1), (2, 0))},
    "negative_padding": {"padding": ((-1, 2), (1, -1), (0, 0))},
    "lhs_dilation": {"lhs_dilation": (2, 1, 2), "padding": ((1, 0), (1, 1), (0, 0))},
    "rhs_dilation": {"rhs_dilation": (1, 2, 1)},
    "feature_groups": {"feature_group_count": 2},
    "batch_groups": {"batch_group_count": 2},
}


def normal(shape, dtype=float):
    return jnp.asarray(np.random.default_rng(len(shape)).normal(size=shape), dtype)


def convolution(ndim, layout, settings, dtype=float):
    """Return a convolution and its operands, of sizes that differ along every axis."""
    options = {
        name: value[:ndim] if isinstance(value, tuple) else value
        for name, value in settings.items()
    }
    options = {"window_strides": (1,) * ndim, "padding": ((0, 0),) * ndim, **options}
    features, batches = (options.get(f"{kind}_group_count", 1) for kind in ("feature", "batch"))
    sizes = dict(zip("HWD", (5, 6, 4), strict=True))
    window = dict(zip("HWD", (2, 3, 2), strict=True))
    image = [{"N": 2 * batches, "C": 3 * features, **sizes}[axis] for axis in layout[0]]
    kernel = [{"O": 4 * features * batches, "I": 3, **window}[axis] for axis in layout[1]]
    operands = (
        normal(image, dtype),
        normal(kernel, dtype),
    )

    def convolve(image, kernel):
        return lax.conv_general_dilated(image, kernel, dimension_numbers=layout, **options)

    return convolve, operands


def with_backward(convolve):
    """Return the value and both backward convolutions."""

    def function(*operands):
        value, backward = jax.vjp(convolve, *operands)
        return value, backward(jnp.cos(value))

    return function


def equations(jaxpr, primitive):
    """List the equations of a primitive, those of sub-jaxprs too."""
    found = [equation for equation in jaxpr.eqns if equation.primitive.name == primitive]
    return found + [e for sub in core.subjaxprs(jaxpr) for e in equations(sub, primitive)]


def rewritten(function, *operands):
    """Return the jaxpr of the branch for the CPU."""
    closed = jax.make_jaxpr(function)(*operands)
    return jax.make_jaxpr(functools.partial(_canonical_jaxpr, closed.jaxpr, closed.consts))(
        *jax.tree.leaves(operands)
    ).jaxpr


def is_canonical(equation):
    spec = equation.params["dimension_numbers"]
    ndim = len(spec.lhs_spec)
    spatial = tuple(range(1, ndim - 1))
    return (
        spec.lhs_spec == (0, ndim - 1, *spatial)
        and spec.out_spec == (0, ndim - 1, *spatial)
        and spec.rhs_spec == (ndim - 1, ndim - 2, *range(ndim - 2))
    )


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("ndim", LAYOUTS)
def test_forward_and_backward_equal_the_original(ndim, setting):
    pairs = [convolution(ndim, layout, SETTINGS[setting]) for layout in LAYOUTS[ndim]]
    functions = [with_backward(convolve) for convolve, _ in pairs]
    operands = [operands for _, operands in pairs]

    def results(wrap):
        return jax.jit(
            lambda operands: [wrap(f)(*x) for f, x in zip(functions, operands, strict=True)]
        )(operands)

    expected = results(lambda f: f)
    actual = results(canonical_on_cpu)
    chex.assert_trees_all_equal_shapes_and_dtypes(actual, expected)
    chex.assert_trees_all_close(actual, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("setting", ["plain", "strides", "padding", "lhs_dilation", "rhs_dilation"])
@pytest.mark.parametrize("ndim", [1, 2])
def test_forward_and_backward_are_canonical(ndim, setting):
    for layout in LAYOUTS[ndim]:
        convolve, operands = convolution(ndim, layout, SETTINGS[setting])
        found = equations(rewritten(with_backward(convolve), *operands), "conv_general_dilated")
        assert len(found) == 3
        assert all(map(is_canonical, found))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_dtypes_stay(dtype):
    convolve, operands = convolution(2, LAYOUTS[2][0], {}, dtype)
    actual = jax.jit(canonical_on_cpu(with_backward(convolve)))(*operands)
    expected = jax.jit(with_backward(convolve))(*operands)
    chex.assert_trees_all_equal_shapes_and_dtypes(actual, expected)
    chex.assert_trees_all_close(actual, expected, rtol=0.05, atol=0.05)


def test_the_accumulation_dtype_stays():
    _, operands = convolution(2, LAYOUTS[2][0], {}, jnp.bfloat16)

    def convolve(image, kernel):
        return lax.conv_general_dilated(
            image, kernel, (1, 1), "SAME", preferred_element_type=jnp.float32
        )

    assert jax.jit(canonical_on_cpu(convolve))(*operands).dtype == jnp.float32


def test_the_structure_of_arguments_and_results_stays():
    convolve, (image, kernel) = convolution(2, LAYOUTS[2][0], {})

    def function(images, rest):
        return {"a": [convolve(images["x"], rest[0])], "b": (None, rest[1])}

    actual = canonical_on_cpu(function)({"x": image}, (kernel, 3.0))
    chex.assert_trees_all_close(actual, function({"x": image}, (kernel, jnp.asarray(3.0))))


def test_a_function_without_convolutions_is_left_as_it_is():
    jaxpr = jax.make_jaxpr(canonical_on_cpu(jnp.sin))(1.0)
    assert [equation.primitive.name for equation in jaxpr.eqns] == ["sin"]


# Inside of other operations


def square(image, kernel):
    """A convolution that keeps the image's shape."""
    return jnp.tanh(lax.conv_general_dilated(image, kernel, (1, 1), "SAME"))


@jax.custom_jvp
def custom_jvp(image, kernel):
    return square(image, kernel)


@custom_jvp.defjvp
def _custom_jvp_rule(primals, tangents):
    value, slope = jax.jvp(square, primals, tangents)
    return value, 2 * slope


@jax.custom_vjp
def custom_vjp(image, kernel):
    return square(image, kernel)


def _custom_vjp_backward(residuals, cotangent):
    return tuple(3 * x for x in jax.vjp(square, *residuals)[1](cotangent))


custom_vjp.defvjp(lambda *operands: (square(*operands), operands), _custom_vjp_backward)


def scan(image, kernel):
    return lax.scan(lambda x, k: (square(x, k), x.mean()), image, jnp.stack([kernel] * 3))


def cond(image, kernel):
    return lax.cond(image.sum() > 0, square, lambda x, k: square(x, 2 * k), image, kernel)


def while_loop(image, kernel):
    def body(state):
        return state[0] + 1, square(state[1], kernel)

    return lax.while_loop(lambda state: state[0] < 3, body, (0, image))[1]


def while_condition(image, kernel):
    def unfinished(state):
        return state[0] + square(state[1], kernel).mean() < 2

    return lax.while_loop(unfinished, lambda state: (state[0] + 1, state[1] + 0.1), (0.0, image))


STRUCTURES = {
    "scan": scan,
    "cond": cond,
    "while_loop": while_loop,
    "while_condition": while_condition,
    "checkpoint": jax.checkpoint(square),
    "checkpoint_in_scan": lambda x, k: lax.scan(
        jax.checkpoint(lambda x, _: (square(x, k), None)), x, length=2
    )[0],
    "jit": jax.jit(square),
    "custom_jvp": custom_jvp,
    "custom_vjp": custom_vjp,
    "vmap": lambda x, k: jax.vmap(square, (None, 0))(x, jnp.stack([k, 2 * k])),
    "vmap_images": lambda x, k: jax.vmap(square, (0, None))(jnp.stack([x, 2 * x]), k),
    "map": lambda x, k: lax.map(lambda k: square(x, k), jnp.stack([k, 2 * k])),
    "consts": lambda x, k: (
        square(x, k) + square(jnp.ones((1, 2, 3, 3)), np.ones((2, 2, 3, 3))).sum()
    ),
}
FORWARD_ONLY = ("while_loop", "while_condition")


def operands_of_square():
    return normal((1, 2, 4, 5)), normal((2, 2, 3, 3))


def value_and_gradients(name):
    function = STRUCTURES[name]

    def scalar(*operands):
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(function(*operands)))

    if name in FORWARD_ONLY:
        return lambda *operands: (function(*operands), jax.jvp(scalar, operands, operands))
    return lambda *operands: (function(*operands), jax.grad(scalar, argnums=(0, 1))(*operands))


@pytest.mark.parametrize("name", STRUCTURES)
def test_convolutions_inside_of_other_operations(name):
    function, operands = value_and_gradients(name), operands_of_square()
    found = equations(rewritten(function, *operands), "conv_general_dilated")
    assert found
    assert all(e.params["feature_group_count"] > 1 or is_canonical(e) for e in found)
    actual = jax.jit(canonical_on_cpu(function))(*operands)
    expected = jax.jit(function)(*operands)
    chex.assert_trees_all_close(actual, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["custom_jvp", "custom_vjp", "checkpoint", "scan", "cond", "jit"])
def test_the_result_is_differentiated_by_the_users_rules(name):
    function, operands = STRUCTURES[name], operands_of_square()

    def gradient(wrap):
        def scalar(*operands):
            return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(wrap(function)(*operands)))

        return jax.jit(jax.grad(scalar, argnums=(0, 1)))(*operands)

    expected = gradient(lambda f: f)
    chex.assert_trees_all_close(gradient(canonical_on_cpu), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("prevent_cse", [True, False])
def test_checkpoints_keep_their_parameters(prevent_cse):
    remat = jax.checkpoint(
        square, prevent_cse=prevent_cse, policy=jax.checkpoint_policies.dots_saveable
    )

    def function(*operands):
        return jax.grad(lambda *x: remat(*x).sum())(*operands)

    operands = operands_of_square()
    before = equations(jax.make_jaxpr(function)(*operands).jaxpr, "remat2")
    after = equations(rewritten(function, *operands), "remat2")
    assert len(before) == len(after) > 0
    for old, new in zip(before, after, strict=True):
        assert {k: v for k, v in old.params.items() if k != "jaxpr"} == {
            k: v for k, v in new.params.items() if k != "jaxpr"
        }
    assert before[-1].params["differentiated"]
    assert before[-1].params["prevent_cse"] == prevent_cse


def test_xla_still_leaves_convolutions_in_branches_as_they_are():
    """Where this fails, a newer jaxlib has made `convolution.py` obsolete: measure; delete it."""

    def kernel_gradient(image, cotangent):
        def convolve(kernel):
            return lax.conv_general_dilated(
                image, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )

        return jax.linear_transpose(convolve, jnp.ones((3, 3, 8, 8)))(cotangent)[0]

    def layouts(function, *operands):
        program = jax.jit(function).lower(*operands).compile().as_text()
        return {
            line.split("dim_labels=")[1].split(",")[0]
            for line in program.splitlines()
            if "dim_labels=" in line
        }

    def in_a_branch(flag, *operands):
        return lax.cond(flag, kernel_gradient, lambda *_: jnp.zeros((3, 3, 8, 8)), *operands)

    operands = (jnp.ones((4, 6, 6, 8)), jnp.ones((4, 6, 6, 8)))
    assert layouts(kernel_gradient, *operands) == {"b01f_01io->b01f"}
    assert layouts(in_a_branch, True, *operands) != {"b01f_01io->b01f"}
    canonical = canonical_on_cpu(kernel_gradient)
    assert layouts(
        lambda flag, *x: lax.cond(flag, canonical, lambda *_: jnp.zeros((3, 3, 8, 8)), *x),
        True,
        *operands,
    ) == {"b01f_01io->b01f"}
