"""A convolution as a product is the same convolution."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.models.convnet import ConvNet
from experiments.models.convolution import convolution_as_product
from experiments.models.resnet import resnet18

LAST = ("NHWC", "HWIO", "NHWC")


@pytest.mark.parametrize("size", [(7, 8), (8, 8)])
@pytest.mark.parametrize("window", [(3, 3), (1, 1), (2, 3)])
@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (1, 2)])
@pytest.mark.parametrize("padding", ["SAME", "VALID", ((1, 1), (1, 1)), ((0, 2), (1, 0))])
def test_the_product_is_the_convolution(size, window, strides, padding):
    keys = jax.random.split(jax.random.key(0))
    inputs = jax.random.normal(keys[0], (2, *size, 3))
    kernel = jax.random.normal(keys[1], (*window, 3, 4))
    expected = jax.lax.conv_general_dilated(
        inputs, kernel, strides, padding, dimension_numbers=LAST, precision="highest"
    )
    got = convolution_as_product(inputs, kernel, strides, padding, precision="highest")
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize(
    "arguments", [{"feature_group_count": 3}, {"lhs_dilation": (2, 2)}, {"rhs_dilation": (1, 2)}]
)
def test_what_is_no_product_is_an_error(arguments):
    with pytest.raises(NotImplementedError, match="without groups and dilations"):
        convolution_as_product(
            jnp.ones((1, 4, 4, 3)), jnp.ones((3, 3, 3, 4)), (1, 1), "SAME", **arguments
        )


@pytest.mark.parametrize("network", [pytest.param(resnet18, marks=pytest.mark.long), ConvNet])
def test_a_network_of_products_has_the_same_loss_and_gradient(network):
    model = network(num_classes=10, width=2)
    images = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
    variables = model.init(jax.random.key(1), images, train=False)

    def value_and_grad(model):
        def loss(params):
            logits = model.apply({**variables, "params": params}, images, train=False)
            return jnp.mean(jax.nn.log_softmax(logits)[:, 0])

        return jax.value_and_grad(loss)(variables["params"])

    calls = []

    def convolution(*args, **kwargs):
        calls.append(args)
        return convolution_as_product(*args, **kwargs)

    products = value_and_grad(model.clone(convolution=convolution))
    assert len(calls) == sum(leaf.ndim == 4 for leaf in jax.tree.leaves(variables["params"]))
    chex.assert_trees_all_close(products, value_and_grad(model), rtol=1e-4, atol=1e-5)
