"""The network without normalisation."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.config import ModelConfig, TrainConfig
from experiments.errors import SettingError
from experiments.models.build import build_model
from experiments.models.convnet import ConvNet
from experiments.regularizers import SAM, DropBlock, Dropout, GaussNewton, SehtD, SehtH
from experiments.training.checkpoint import Checkpoints
from experiments.training.loop import build_experiment


@pytest.mark.parametrize(("width", "shape"), [(8, (32, 32, 3)), (2, (8, 8, 1))])
def test_three_stages_of_two_convolutions_and_a_dense_layer(width, shape):
    model = build_model(ModelConfig("convnet", width=width), num_classes=10)
    variables = jax.eval_shape(
        partial(model.init, train=True), jax.random.key(0), jnp.zeros((1, *shape))
    )
    assert variables.keys() == {"params"}
    kernels = {
        name: layer["conv"]["kernel"].shape
        for name, layer in variables["params"].items()
        if name != "head"
    }
    assert kernels == {
        "stage1_conv1": (3, 3, shape[-1], width),
        "stage1_conv2": (3, 3, width, width),
        "stage2_conv1": (3, 3, width, 2 * width),
        "stage2_conv2": (3, 3, 2 * width, 2 * width),
        "stage3_conv1": (3, 3, 2 * width, 4 * width),
        "stage3_conv2": (3, 3, 4 * width, 4 * width),
    }
    assert variables["params"]["head"]["kernel"].shape == (4 * width, 10)


def test_weights_start_as_he_starts_them():
    init = jax.jit(partial(ConvNet(10, width=32).init, train=False))
    params = init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
    for name, layer in params.items():
        weights = layer.get("conv", layer)
        kernel = np.asarray(weights["kernel"])
        expected = (2 / np.prod(kernel.shape[:-1])) ** 0.5
        assert kernel.std() == pytest.approx(expected, rel=4 / (2 * kernel.size) ** 0.5), name
        assert not np.any(weights["bias"]), name


def test_nothing_differs_between_training_and_evaluation():
    model = ConvNet(10, width=2)
    images = jax.random.normal(jax.random.key(1), (2, 8, 8, 1))
    variables = jax.jit(partial(model.init, train=False))(jax.random.key(0), images)
    np.testing.assert_array_equal(
        model.apply(variables, images, train=True), model.apply(variables, images, train=False)
    )


@pytest.mark.parametrize("method", [Dropout(), DropBlock(block_size=3)])
def test_a_method_that_wants_what_it_does_not_have_is_refused(method):
    with pytest.raises(SettingError, match=f"{method.name} can not be used with .* convnet"):
        build_model(ModelConfig("convnet"), 10, (method,))


@pytest.mark.parametrize(
    "method",
    [
        (),
        (SAM(),),
        (GaussNewton(),),
        pytest.param((SehtH(lam=1e-3),), marks=pytest.mark.long),
        pytest.param((SehtD(lam=1e-3, p=0.5),), marks=pytest.mark.long),
    ],
)
def test_it_is_trained_with_every_kind_of_method(tiny_digits, method):
    config = TrainConfig(model=ModelConfig("convnet", width=2), batch_size=20, method=method)
    experiment = build_experiment(config, tiny_digits)
    state = experiment.init(0)
    assert state.network_state == {}
    order = experiment.task.epoch_order(state.key, 0)
    after, metrics = experiment.train_step(state, experiment.task.train_data, order)
    assert np.isfinite(float(metrics["objective"]))
    assert not np.array_equal(
        after.params["stage1_conv1"]["conv"]["kernel"],
        state.params["stage1_conv1"]["conv"]["kernel"],
    )


def test_it_is_evaluated_and_its_checkpoint_is_read_back(tmp_path, tiny_digits):
    model = ModelConfig("convnet", width=2, remat=True)
    config = TrainConfig(model=model, batch_size=20, method=())
    experiment = build_experiment(config, tiny_digits)
    state = experiment.init(0)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state)
        checkpoints.finish()
        restored = checkpoints.restore(experiment.init(1), None, warn=print)
    assert restored is not None
    assert restored[0].network_state == {}
    np.testing.assert_array_equal(
        restored[0].params["head"]["kernel"], state.params["head"]["kernel"]
    )
    figures = experiment.evaluator.evaluate(state.params, {}, tiny_digits.validation)
    assert 0 <= figures.accuracy <= 1
