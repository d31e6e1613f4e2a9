"""Traces of channels against the dense Hessian, and what is made of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.models.resnet import digits_resnet
from experiments.pruning.sensitivity import (
    ChannelTraces,
    chance,
    channel_samples,
    convolutions,
    hessian_sensitivity,
    magnitude,
)

NUM_PROBES = 400
SHAPES = {"conv1": (3, 3, 1, 2), "conv2": (1, 1, 2, 3)}


@pytest.fixture(autouse=True)
def enable_x64():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture
def params():
    """Two convolutions, and a head that is none."""
    random = np.random.default_rng(0)
    tree = {name: {"kernel": random.normal(size=shape)} for name, shape in SHAPES.items()}
    tree["head"] = {"kernel": random.normal(size=(3, 2)), "bias": np.zeros(2)}
    return jax.tree.map(jnp.asarray, tree)


def loss_fn(params, images):
    hidden = images
    for name in SHAPES:
        hidden = jax.lax.conv_general_dilated(
            hidden,
            params[name]["kernel"],
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        hidden = jnp.tanh(hidden)
    logits = jnp.mean(hidden, axis=(1, 2)) @ params["head"]["kernel"] + params["head"]["bias"]
    return jnp.mean(jax.nn.logsumexp(logits, axis=-1))


def images():
    return jnp.asarray(np.random.default_rng(1).normal(size=(4, 4, 4, 1)))


def dense_blocks(params):
    """The dense Hessian in all kernels, and which channel each of its rows belongs to."""
    kernels = convolutions(params)

    def loss_of(vector):
        parts = jnp.split(vector, np.cumsum([each.size for each in kernels.values()])[:-1])
        replaced = {
            name: {"kernel": part.reshape(SHAPES[name])}
            for name, part in zip(kernels, parts, strict=True)
        }
        return loss_fn(params | replaced, images())

    vector = jnp.concatenate([each.ravel() for each in kernels.values()])
    channels = [
        np.broadcast_to([f"{name}[{i}]" for i in range(shape[-1])], shape).ravel()
        for name, shape in SHAPES.items()
    ]
    return np.asarray(jax.jit(jax.hessian(loss_of))(vector)), np.concatenate(channels)


def test_traces_are_those_of_the_dense_hessian_and_errors_those_of_its_entries(params):
    keys = jax.random.split(jax.random.key(0), NUM_PROBES)
    sample = jax.jit(jax.vmap(lambda key: channel_samples(loss_fn, key)(params, images())))
    samples = sample(keys)
    hessian, channels = dense_blocks(params)
    squares = hessian**2 * (1 - np.eye(len(hessian)))
    for name, found in samples.items():
        traces = ChannelTraces(np.asarray(found))
        for i in range(SHAPES[name][-1]):
            inside = channels == f"{name}[{i}]"
            exact = np.trace(hessian[np.ix_(inside, inside)])
            off_diagonal = squares[np.ix_(inside, inside)].sum()
            variance = 2 * off_diagonal + squares[np.ix_(inside, ~inside)].sum()
            error = np.sqrt(variance / NUM_PROBES)
            assert abs(traces.mean[i] - exact) < 4 * error
            assert traces.standard_error[i] == pytest.approx(error, rel=0.25)


def test_one_probe_is_exact_where_the_hessian_is_diagonal(params):
    def quadratic(params):
        squares = jax.tree.map(lambda leaf: jnp.sum(leaf**2), params)
        return 2 * squares["conv1"]["kernel"] + 3 * squares["conv2"]["kernel"]

    samples = channel_samples(quadratic, jax.random.key(0))(params)
    np.testing.assert_allclose(samples["conv1"], [4.0 * 9] * 2)
    np.testing.assert_allclose(samples["conv2"], [6.0 * 2] * 3)


def test_sensitivity_is_the_formula():
    kernel = np.zeros((3, 3, 2, 2))
    kernel[0, 0, 0], kernel[1, 2, 1] = [3.0, 1.0], [4.0, 2.0]
    traces = {"conv": ChannelTraces(np.array([[1.0, 30.0], [3.0, 42.0]]))}
    scores = hessian_sensitivity(traces, {"conv": kernel})
    np.testing.assert_allclose(scores["conv"], [2 / 36 * 25, 36 / 36 * 5])
    np.testing.assert_allclose(magnitude({"conv": kernel})["conv"], [25, 5])


def test_magnitude_is_the_sensitivity_of_a_hessian_that_is_the_identity(params):
    kernels = convolutions(params)
    traces = {
        name: ChannelTraces(np.full((2, shape[-1]), float(np.prod(shape[:-1]))))
        for name, shape in SHAPES.items()
    }
    sensitivities, lengths = hessian_sensitivity(traces, kernels), magnitude(kernels)
    for name in SHAPES:
        np.testing.assert_allclose(2 * sensitivities[name], lengths[name])


def test_chance_depends_on_the_seed_alone(params):
    kernels = convolutions(params)
    first, again, other = (np.concatenate(list(chance(i, kernels).values())) for i in (0, 0, 1))
    assert (first == again).all()
    assert not (first == other).any()


def test_all_convolutions_of_a_network_are_found():
    model = digits_resnet(10, width=2)
    variables = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), train=False)
    )
    blocks = [f"stage{i}_block1/conv{j}" for i in (1, 2) for j in (1, 2)]
    names = {"stem_conv", "stage2_block1/shortcut_conv", *blocks}
    assert set(convolutions(variables["params"])) == names
