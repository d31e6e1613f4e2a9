"""What the blocks of the residual networks drop, how much of it, and where."""

from functools import partial

import flax.linen as nn
import jax
import numpy as np
import pytest

from experiments.models.resnet import ResNet
from experiments.models.wide_resnet import wide_resnet

RATE = 0.3
SHARES = (0, 0.25, 1)  # of DropBlock's rate, in three stages

# Three stages of one block; the first has an identity as its shortcut, the others a convolution.
NETWORKS = {
    "resnet": partial(ResNet, (1, 1, 1), 10, width=4),
    "wide-resnet": partial(wide_resnet, 10, 1, 10),
}
each_network = pytest.mark.parametrize("network", NETWORKS)


def run(network, *, train=True, drop_block_rate=0.0, **settings):
    """Return the outputs of all layers, the params, and those of the three blocks alone."""
    build = NETWORKS[network]
    images = jax.random.normal(jax.random.key(1), (16, 8, 8, 3))
    variables = jax.jit(partial(build().init, train=False))(jax.random.key(0), images)
    apply = partial(
        build(**settings).apply,
        train=train,
        drop_block_rate=drop_block_rate,
        capture_intermediates=True,
        mutable=["batch_stats", "intermediates"],
    )
    _, state = jax.jit(apply)(variables, images, rngs={"dropout": jax.random.key(2)})
    layers = state["intermediates"]
    stage = "stage" if network == "resnet" else "group"
    names = [f"{stage}{i}_block1" for i in (1, 2, 3)]
    return layers, [(layers[name], variables["params"][name]) for name in names]


def output(layers, name=None):
    (found,) = (layers if name is None else layers[name])["__call__"]
    return np.asarray(found)


def activated_before_second_convolution(network, block):
    return np.maximum(output(block, "norm1" if network == "resnet" else "norm2"), 0)


def check_second_convolution(block, params, inputs):
    """Check what it takes, by what it returns."""
    kernel = params["conv2"]["kernel"]
    convolution = nn.Conv(kernel.shape[-1], (3, 3), padding=1, use_bias=False)
    expected = convolution.apply({"params": {"kernel": kernel}}, inputs)
    np.testing.assert_allclose(output(block, "conv2"), expected, rtol=1e-4, atol=1e-5)


def check_dropped(before, after, share):
    """Check that a share of the values is zero and the rest scaled; return by how much."""
    present, kept = before != 0, after != 0
    scale = after[kept][0] / before[kept][0]
    np.testing.assert_allclose(after, np.where(kept, before * scale, 0), rtol=1e-5)
    error = (share * (1 - share) / present.sum()) ** 0.5
    assert abs((present & ~kept).sum() / present.sum() - share) <= 4 * error
    return scale


@each_network
def test_dropout_scales_what_it_keeps_of_what_the_second_convolution_takes(network):
    _, blocks = run(network, dropout_rate=RATE)
    for block, params in blocks:
        dropped = output(block, "dropout")
        scale = check_dropped(activated_before_second_convolution(network, block), dropped, RATE)
        assert scale == pytest.approx(1 / (1 - RATE), rel=1e-5)
        check_second_convolution(block, params, dropped)


@each_network
def test_dropout_keeps_everything_in_evaluation(network):
    _, blocks = run(network, train=False, dropout_rate=RATE)
    for block, params in blocks:
        expected = activated_before_second_convolution(network, block)
        np.testing.assert_array_equal(output(block, "dropout"), expected)
        check_second_convolution(block, params, expected)


@each_network
def test_drop_block_acts_in_three_places_of_a_block_by_the_share_of_its_stage(network):
    # Squares of one pixel, which do not overlap: exactly the rate is dropped, in the mean.
    layers, blocks = run(network, drop_block_size=1, drop_block_rate=RATE)
    is_resnet = network == "resnet"
    inputs = (
        np.maximum(output(layers, "stem_norm"), 0) if is_resnet else output(layers, "stem_conv")
    )
    for (block, params), share in zip(blocks, SHARES, strict=True):
        shortcut = "shortcut_norm" if is_resnet else "shortcut_conv"
        before = {
            "drop_block1": activated_before_second_convolution(network, block),
            "drop_block2": output(block, "norm2" if is_resnet else "conv2"),
            "drop_block_shortcut": output(block, shortcut) if shortcut in block else inputs,
        }
        for place, values in before.items():
            scale = check_dropped(values, output(block, place), share * RATE)
            assert scale == pytest.approx(1 / (1 - share * RATE), rel=0.1)
        check_second_convolution(block, params, output(block, "drop_block1"))
        total = output(block, "drop_block2") + output(block, "drop_block_shortcut")
        expected = np.maximum(total, 0) if is_resnet else total
        np.testing.assert_allclose(output(block), expected, rtol=1e-6)
        inputs = output(block)
