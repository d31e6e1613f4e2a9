"""Hessian regularization of the full and of the middle network."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.models.resnet import digits_resnet
from experiments.regularizers import Outputs, SankarFull, SankarMiddle
from experiments.regularizers.sankar import paths_in_order
from experiments.tasks.classification import make_network

# Used in the order h, g, ..., a, which is not that of the names.
NAMES = "hgfedcba"
PARAMS = {name: {"w": jnp.array([1.0 + i])} for i, name in enumerate(NAMES)}
IMAGES = jnp.ones((1, 1, 1, 1))


def network(params, images):
    for name in NAMES:
        images = images * params[name]["w"]
    return images, {}


def loss_fn(params):
    # A diagonal Hessian, 12 w^2, for which Rademacher probes are exact.
    loss = sum(jnp.sum(params[name]["w"] ** 4) for name in NAMES)
    return loss, Outputs(network_state={}, metrics={"loss": loss})


def traces(names):
    return sum(12 * float(PARAMS[name]["w"][0]) ** 2 for name in names)


def evaluate(method, inputs_of, step=0):
    penalised = method.objective(loss_fn, inputs_of(step, images=IMAGES, network=network))
    return jax.jit(jax.value_and_grad(penalised, has_aux=True))(PARAMS)


@pytest.mark.parametrize(
    ("method", "probed"), [(SankarFull, NAMES), (SankarMiddle, "fedcb")], ids=["full", "middle"]
)
def test_the_trace_of_the_probed_parameters_is_penalised(method, probed, inputs_of):
    (loss, outputs), gradient = evaluate(method(gamma=0.1), inputs_of)
    plain = float(loss_fn(PARAMS)[0])
    assert float(outputs.metrics["trace_estimate"]) == pytest.approx(traces(probed))
    assert float(loss) == pytest.approx(plain + 0.1 * traces(probed), rel=1e-5)
    for name in NAMES:
        w = float(PARAMS[name]["w"][0])
        expected = 4 * w**3 + (0.1 * 24 * w if name in probed else 0)
        assert float(gradient[name]["w"][0]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("step", "penalised"), [(0, False), (4, False), (5, False), (8, True), (9, False), (12, True)]
)
def test_only_every_freq_th_step_is_penalised_from_the_start_on(step, penalised, inputs_of):
    (loss, outputs), _ = evaluate(SankarFull(gamma=0.1, freq=4, start=5), inputs_of, step)
    expected = float(loss_fn(PARAMS)[0]) + (0.1 * traces(NAMES) if penalised else 0)
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert float(outputs.metrics["layers_drawn"]) == (8 if penalised else 0)


def test_the_order_of_a_network_is_that_of_its_layers(inputs_of):
    model = digits_resnet(10, width=1)
    images = jnp.zeros((2, 8, 8, 1))
    variables = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)
    stats = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), variables["batch_stats"])
    network = make_network(model, stats, jax.random.key(0))
    paths = paths_in_order(inputs_of(images=images, network=network), variables["params"])

    def conv(*path):
        return [(*path, "kernel")]

    def norm(*path):
        return [(*path, "scale"), (*path, "bias")]

    def block(name):
        return conv(name, "conv1") + norm(name, "norm1") + conv(name, "conv2") + norm(name, "norm2")

    assert paths == [
        *conv("stem_conv"),
        *norm("stem_norm"),
        *block("stage1_block1"),
        *block("stage2_block1"),
        *conv("stage2_block1", "shortcut_conv"),
        *norm("stage2_block1", "shortcut_norm"),
        ("head", "kernel"),
        ("head", "bias"),
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gamma": float("nan")}, "gamma must be at least 0 and finite, not nan"),
        ({"gamma": -1e-6}, "gamma must be at least 0 and finite, not -1e-06"),
        ({"num_probes": 0}, "num_probes must be at least 1, not 0"),
        ({"freq": 0}, "freq must be at least 1, not 0"),
        ({"start": -1}, "start must be at least 0, not -1"),
    ],
)
def test_a_setting_out_of_range_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        SankarMiddle(**settings)
