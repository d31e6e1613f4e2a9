"""Hessian-vector products and the sums over parameters."""

import chex
import jax
import jax.numpy as jnp
import networks
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from oracle import case_with_hessian, without_aux

import seht_jax as seht
from seht_jax.curvature import inner_product


def direction_like(params):
    return optax.tree.random_like(jax.random.key(3), params, jax.random.normal)


@pytest.mark.parametrize("name", networks.CASES)
def test_hvp_is_the_dense_hessian_times_the_vector(name):
    case, hessian = case_with_hessian(name)
    direction = direction_like(case.params)
    product = jax.jit(seht.hvp(without_aux(case.loss_fn), direction))(case.params, case.batch)
    chex.assert_trees_all_equal_shapes_and_dtypes(product, case.params)
    np.testing.assert_allclose(
        ravel_pytree(product)[0], hessian @ ravel_pytree(direction)[0], rtol=1e-8, atol=1e-10
    )


def test_hvp_drops_the_aux():
    def loss_fn(params):
        return jnp.sum(params**3), {"name": "cubic"}

    product = seht.hvp(loss_fn, jnp.ones(2), has_aux=True)(jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(product, [6.0, 12.0])


def test_hvp_passes_keywords_and_non_arrays_on():
    def loss_fn(params, power, *, scale, name):
        return scale * jnp.sum(params**power) if name == "cubic" else jnp.zeros(())

    product = seht.hvp(loss_fn, jnp.array([1.0, -1.0]))
    actual = product(jnp.array([2.0, 3.0]), 3, scale=0.5, name="cubic")
    np.testing.assert_allclose(actual, [6.0, -9.0])


def test_hvp_keeps_the_structure_of_the_params():
    params = {"a": [jnp.ones(2), None], "b": (jnp.ones(()), {"c": jnp.ones((1, 2))})}
    product = seht.hvp(lambda params: sum(jnp.sum(x**2) for x in jax.tree.leaves(params)), params)(
        params
    )
    chex.assert_trees_all_equal(product, jax.tree.map(lambda x: 2 * x, params))


@pytest.mark.parametrize(
    ("tangent", "message"),
    [
        ({"a": jnp.ones(2)}, "must have the same tree structure"),
        ({"a": jnp.ones(2), "b": jnp.ones(4)}, "different primal and tangent shapes"),
        ({"a": jnp.ones(2), "b": jnp.ones(3, jnp.int32)}, "dtypes must be equal"),
    ],
)
def test_a_direction_unlike_the_params_is_refused(tangent, message):
    params = {"a": jnp.ones(2, jnp.float32), "b": jnp.ones(3, jnp.float32)}
    product = seht.hvp(lambda params: jnp.sum(params["a"]) * jnp.sum(params["b"]), tangent)
    with pytest.raises((TypeError, ValueError), match=message):
        product(params)


def test_inner_products_are_summed_in_the_dtype_asked_for():
    # 4,096 ones: a bfloat16 sum would stop at 256.
    ones = [jnp.ones(2048, jnp.bfloat16), jnp.ones((2, 1024), jnp.bfloat16)]
    total = inner_product(ones, ones, jnp.float32)
    assert (total, total.dtype) == (4096, jnp.float32)
