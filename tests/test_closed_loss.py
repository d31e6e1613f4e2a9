"""A traced loss equals the loss, and reads what it captured through its operands."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seht_jax.closed_loss import close_loss


def close(loss_fn, params, *args, has_aux=False, **kwargs):
    return close_loss(loss_fn, params, args, kwargs, has_aux=has_aux)


def test_calling_it_on_its_operands_gives_the_loss():
    def loss_fn(params, x, *, scale):
        return scale * jnp.sum(params["w"] * x)

    loss, operands = close(loss_fn, {"w": jnp.ones(2)}, jnp.arange(2.0), scale=3.0)
    assert loss(operands)[0] == 3
    chex.assert_trees_all_equal(loss.params_of(operands), [jnp.ones(2)])


def test_params_may_be_python_and_numpy_numbers():
    loss, operands = close(lambda params: params["a"] * params["b"], {"a": 2.0, "b": np.ones(())})
    assert loss(operands)[0] == 2
    assert all(isinstance(operand, jax.Array) for operand in operands)


@pytest.mark.parametrize("value", [2.5, np.float32(2.5), np.asarray(2.5)])
def test_the_loss_may_be_a_constant(value):
    loss, operands = close(lambda params: value, jnp.ones(2))
    assert loss(operands)[0] == 2.5


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_it_knows_the_dtype_of_the_loss(dtype):
    assert close(jnp.sum, jnp.ones(2, dtype))[0].dtype == dtype


def test_captured_tracers_become_operands():
    @jax.jit
    def outer(captured):
        loss, operands = close(lambda params: jnp.sum(params * captured), jnp.ones(2))
        assert len(operands) == 2
        doubled = [2 * operands[0], operands[1]]
        return loss(operands)[0], loss(doubled)[0]

    assert outer(jnp.array([1.0, 2.0])) == (3, 6)


def test_the_aux_comes_back_as_it_was():
    def loss_fn(params):
        aux = {"name": "net", "step": 3, "mean": params.mean(), "none": None, "np": np.ones(2)}
        return params.sum(), [aux, jnp.arange(2), jax.random.key(1)]

    loss, operands = close(loss_fn, jnp.ones(2), has_aux=True)
    _, arrays = loss(operands)
    aux, integers, key = loss.restore_aux(arrays)
    assert len(arrays) == 3
    assert (aux["name"], aux["step"], aux["mean"], aux["none"]) == ("net", 3, 1, None)
    np.testing.assert_array_equal(aux["np"], np.ones(2))
    np.testing.assert_array_equal(integers, [0, 1])
    assert key == jax.random.key(1)


def test_the_users_function_is_traced_once():
    calls = []

    def loss_fn(params):
        calls.append(params)
        return params.sum()

    loss, operands = close(loss_fn, jnp.ones(2))
    loss(operands)
    assert len(calls) == 1


def test_a_loss_that_writes_into_its_params_is_refused():
    def loss_fn(params):
        params["mean"] = 0.9 * params["mean"] + 0.1 * jnp.mean(params["w"])
        return jnp.sum(params["w"] ** 2)

    with pytest.raises(TypeError, match=r"changed the params in place, at params\['mean'\]"):
        close(loss_fn, {"w": jnp.ones(2), "mean": jnp.zeros(())})


def test_a_loss_that_adds_to_its_params_is_refused():
    def loss_fn(params):
        params["hidden"] = jnp.sum(params["w"])
        return jnp.sum(params["w"] ** 2)

    with pytest.raises(TypeError, match=r"changed the params in place, at params\['hidden'\]"):
        close(loss_fn, {"w": jnp.ones(2)})
