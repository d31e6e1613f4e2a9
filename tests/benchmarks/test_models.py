"""The networks that are measured."""

import jax
import jax.numpy as jnp
import pytest
from jax.extend import core
from test_taylor import FUNCTIONS, example

from benchmarks.models import QUICK_SIZES, SIZES, build_benchmark_model
from seht_jax.dataflow import is_inexact


@pytest.mark.parametrize("name", SIZES)
def test_every_network_has_a_loss(name):
    assert QUICK_SIZES[name].keys() == SIZES[name].keys()
    model = build_benchmark_model(name, QUICK_SIZES[name])
    loss, aux = jax.eval_shape(model.loss_fn, model.params, *model.batch)
    assert (loss.shape, loss.dtype) == ((), jnp.float32)
    assert (aux is None) == (name in {"lstm", "transformer", "mlp"})
    assert model.num_params == sum(leaf.size for leaf in jax.tree.leaves(model.params))


def primitives_of(jaxpr):
    """The names of the operations that return real or complex numbers, also in bodies."""
    own = {
        equation.primitive.name
        for equation in jaxpr.eqns
        if any(is_inexact(variable) for variable in equation.outvars)
    }
    return own.union(*map(primitives_of, core.subjaxprs(jaxpr)))


@pytest.mark.parametrize("name", SIZES)
def test_every_operation_is_one_whose_derivatives_are_tested(name):
    x, _ = example()
    tested = set().union(
        *(primitives_of(jax.make_jaxpr(function)(x).jaxpr) for function in FUNCTIONS.values())
    )
    model = build_benchmark_model(name, QUICK_SIZES[name])
    loss = jax.make_jaxpr(model.loss_fn)(model.params, *model.batch)
    assert primitives_of(loss.jaxpr) - tested == set()


def test_a_network_that_is_not_known_is_named():
    with pytest.raises(ValueError, match=r"one of resnet18, .*, not 'vgg'"):
        build_benchmark_model("vgg", {})
