"""The residual networks."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from experiments.config import ModelConfig
from experiments.models.build import build_model
from experiments.models.resnet import (
    digits_resnet,
    resnet18,
    torch_default_bias_init,
    torch_default_kernel_init,
)


def shapes(model, image_shape):
    images = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
    return jax.eval_shape(
        lambda key, images: model.init_with_output(key, images, train=True),
        jax.random.key(0),
        images,
    )


@pytest.mark.parametrize(
    ("model", "image_shape", "expected"),
    [
        (resnet18(10), (32, 32, 3), 11_173_962),
        (resnet18(100), (32, 32, 3), 11_220_132),
        (digits_resnet(10, width=8), (8, 8, 1), 5_122),
    ],
)
def test_number_of_parameters(model, image_shape, expected):
    _, variables = shapes(model, image_shape)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == expected


@pytest.mark.parametrize("num_classes", [2, 10])
@pytest.mark.parametrize(
    ("model", "image_shape"), [(resnet18, (32, 32, 3)), (digits_resnet, (8, 8, 1))]
)
def test_logits_have_one_column_per_class(model, image_shape, num_classes):
    logits, _ = shapes(model(num_classes, width=4), image_shape)
    assert logits.shape == (2, num_classes)


def test_bfloat16_computes_float32_logits_from_float32_params():
    with jax.numpy_dtype_promotion("standard"):  # flax's BatchNorm promotes implicitly
        logits, variables = shapes(digits_resnet(10, dtype=jnp.bfloat16), (8, 8, 1))
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_stages_halve_the_image_and_double_the_channels():
    model = resnet18(10, width=2)
    images = jnp.zeros((1, 32, 32, 3))
    _, state = jax.eval_shape(
        lambda key: model.init_with_output(key, images, train=False, capture_intermediates=True),
        jax.random.key(0),
    )
    blocks = state["intermediates"]
    found = [blocks[f"stage{i}_block2"]["__call__"][0].shape[1:] for i in (1, 2, 3, 4)]
    assert found == [(32, 32, 2), (16, 16, 4), (8, 8, 8), (4, 4, 16)]


def test_weights_are_uniform_within_one_over_the_root_of_fan_in():
    shape = (3, 3, 16, 64)
    weights = np.asarray(torch_default_kernel_init()(jax.random.key(0), shape))
    bound = (3 * 3 * 16) ** -0.5
    assert bound * 0.99 < np.abs(weights).max() <= bound
    assert weights.std() == pytest.approx(bound / 3**0.5, rel=0.02)


def test_bias_is_uniform_within_one_over_the_root_of_fan_in():
    bias = np.asarray(torch_default_bias_init(25)(jax.random.key(0), (10_000,)))
    assert 0.199 < np.abs(bias).max() <= 0.2
    assert bias.std() == pytest.approx(0.2 / 3**0.5, rel=0.02)


def test_running_statistics_move_by_a_tenth():
    model = digits_resnet(10, width=2)
    images = jax.random.normal(jax.random.key(1), (16, 8, 8, 1))
    variables = jax.jit(partial(model.init, train=False))(jax.random.key(0), images)
    _, updated = model.apply(variables, images, train=True, mutable=["batch_stats"])
    stem = model.apply(
        variables, images, train=False, capture_intermediates=True, mutable=["intermediates"]
    )[1]["intermediates"]["stem_conv"]["__call__"][0]
    np.testing.assert_allclose(
        updated["batch_stats"]["stem_norm"]["mean"], 0.1 * stem.mean((0, 1, 2)), atol=1e-6
    )


def test_dropout_acts_in_training_and_takes_no_parameters():
    plain, model = digits_resnet(10, width=2), digits_resnet(10, width=2, dropout_rate=0.5)
    images = jax.random.normal(jax.random.key(1), (4, 8, 8, 1))
    variables = jax.jit(partial(plain.init, train=False))(jax.random.key(0), images)

    @jax.jit
    def logits(key):
        rngs = {"dropout": key}
        return model.apply(variables, images, train=True, rngs=rngs, mutable=["batch_stats"])[0]

    assert not np.allclose(logits(jax.random.key(0)), logits(jax.random.key(1)))
    np.testing.assert_array_equal(
        model.apply(variables, images, train=False), plain.apply(variables, images, train=False)
    )


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (ModelConfig("resnet18", width=64), 11_173_962),
        (ModelConfig("digits-resnet", width=8), 5_266),
        (ModelConfig("wide-resnet", width=10, depth=28), 36_479_194),
    ],
)
def test_every_network_of_the_configuration_is_built(config, expected):
    _, variables = shapes(build_model(config, num_classes=10), (32, 32, 3))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == expected


def test_a_resnet_starts_as_pytorch_starts_it():
    params = jax.jit(partial(resnet18(10, width=8).init, train=False))(
        jax.random.key(0), jnp.zeros((1, 8, 8, 3))
    )["params"]
    layers = {
        path[:-1]: kernel
        for path, kernel in flatten_dict(params).items()
        if path[-1] == "kernel" and kernel.ndim > 1
    }
    assert len(layers) == 21
    for path, kernel in layers.items():
        bound = np.prod(kernel.shape[:-1]) ** -0.5
        assert 0.9 * bound < np.abs(kernel).max() <= bound, path
