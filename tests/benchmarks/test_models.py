"""The networks that are measured."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks.models import QUICK_SIZES, SIZES, build_benchmark_model


@pytest.mark.parametrize("name", SIZES)
def test_every_network_has_a_loss(name):
    assert QUICK_SIZES[name].keys() == SIZES[name].keys()
    model = build_benchmark_model(name, QUICK_SIZES[name])
    loss, aux = jax.eval_shape(model.loss_fn, model.params, *model.batch)
    assert (loss.shape, loss.dtype) == ((), jnp.float32)
    assert (aux is None) == (name in {"lstm", "transformer", "mlp"})
    assert model.num_params == sum(leaf.size for leaf in jax.tree.leaves(model.params))


def test_a_network_that_is_not_known_is_named():
    with pytest.raises(ValueError, match=r"one of resnet18, .*, not 'vgg'"):
        build_benchmark_model("vgg", {})
