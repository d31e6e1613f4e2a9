"""What is measured of a network that is tested."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from study_worker import BASE

import seht_jax as seht
from experiments.analyse.trained import TrainedNetwork
from experiments.config import LanguageModelConfig, TextConfig
from experiments.data.load import load_data
from experiments.study.measure import (
    calibration_error,
    prepare_measurement,
    root_mean_squares,
    trace_estimator,
)
from experiments.study.protocol import Measurement
from experiments.tasks.build import build_task
from experiments.tasks.language import EVALUATION_STRANDS

MEASUREMENT = Measurement(
    examples=20, batch_size=10, trace_probes=3, eigenvalue_examples=20, eigenvalue_products=3
)


def test_the_calibration_error_is_the_mean_gap_of_the_bins():
    confidences = np.array([0.95, 0.85, 0.15, 0.05])
    hits = np.array([True, False, False, True])
    # Two bins: |1 - 1.8| / 4 and |1 - 0.2| / 4.
    assert calibration_error(confidences, hits, 2) == pytest.approx(0.8 / 4 + 0.8 / 4)
    assert calibration_error(np.array([1.0, 1.0]), np.array([True, True]), 15) == 0
    assert calibration_error(np.array([1.0, 1.0]), np.array([False, False]), 15) == 1


def perceptron(params, inputs):
    """Two layers with biases and ReLU between; its loss is half the square of the outputs."""
    hidden = jax.nn.relu(inputs @ params["first"]["kernel"] + params["first"]["bias"])
    return jnp.mean(
        0.5 * seht.outputs(hidden @ params["second"]["kernel"] + params["second"]["bias"]) ** 2
    )


PARAMS = {
    "first": {"kernel": jnp.array([[1.0, -2.0], [0.5, 3.0]]), "bias": jnp.array([0.1, 0.2])},
    "second": {"kernel": jnp.array([[0.7], [-1.1]]), "bias": jnp.array([0.3])},
}
INPUTS = jnp.array([[1.0, 2.0], [-0.5, 1.0], [2.0, 0.3]])


def measure(params, scales=None, num_probes=500):
    scales = root_mean_squares(params) if scales is None else scales
    estimate = trace_estimator(lambda params, batch, _: perceptron(params, batch), "gauss_newton")
    return estimate(jax.random.key(0), num_probes, params, scales, [INPUTS[:2], INPUTS[2:]], ())


def test_the_trace_of_the_mean_loss_is_that_of_the_batches():
    ones = jax.tree.map(lambda leaf: jnp.ones(()), PARAMS)
    found = measure(PARAMS, ones)
    estimate = seht.hutchinson_trace(
        perceptron, jax.random.key(1), num_probes=500, curvature="gauss_newton"
    )(PARAMS, INPUTS)
    error = (found.standard_error**2 + float(estimate.standard_error) ** 2) ** 0.5
    assert abs(found.mean - float(estimate.mean)) < 4 * error
    assert 0 < found.standard_error < 0.1 * found.mean


def test_the_relative_trace_weighs_the_exact_block_traces():
    expected = 0.0
    for layer, name in (
        ("first", "kernel"),
        ("first", "bias"),
        ("second", "kernel"),
        ("second", "bias"),
    ):

        def outputs(array, layer=layer, name=name):
            params = {**PARAMS, layer: {**PARAMS[layer], name: array}}
            hidden = jax.nn.relu(INPUTS @ params["first"]["kernel"] + params["first"]["bias"])
            return hidden @ params["second"]["kernel"] + params["second"]["bias"]

        array = PARAMS[layer][name]
        jacobian = jax.jacobian(outputs)(array)  # the loss is half the mean of the squares
        trace = jnp.sum(jacobian**2) / len(INPUTS)
        expected += float(jnp.sum(array**2) / array.size * trace)
    found = measure(PARAMS)
    assert abs(found.mean - expected) < 4 * found.standard_error
    assert found.standard_error < 0.1 * expected


def test_the_relative_trace_does_not_depend_on_the_scale_of_the_weights():
    scaled = {
        "first": jax.tree.map(lambda leaf: 10 * leaf, PARAMS["first"]),
        "second": {**PARAMS["second"], "kernel": PARAMS["second"]["kernel"] / 10},
    }
    np.testing.assert_allclose(perceptron(scaled, INPUTS), perceptron(PARAMS, INPUTS), rtol=1e-5)
    # The same signs, so that the estimates are equal and not only their means.
    assert measure(scaled).mean == pytest.approx(measure(PARAMS).mean, rel=1e-4)


@pytest.mark.parametrize("kind", ["images", pytest.param("text", marks=pytest.mark.long)])
def test_all_figures_are_measured(kind, digits):
    config, data = BASE, digits
    if kind == "text":
        config = dataclasses.replace(
            BASE,
            data=TextConfig(train_tokens=2000, evaluation_tokens=500, length=5),
            model=LanguageModelConfig(width=4, num_layers=1),
        )
        data = load_data(config.data)
    task = build_task(config, data)
    params, state = task.init(jax.random.key(0))
    figures = prepare_measurement(task, data, MEASUREMENT)(TrainedNetwork(params, state))
    assert all(np.isfinite(value) for value in figures.values())
    assert figures["params_norm"] == pytest.approx(float(optax.tree.norm(params)))
    assert figures["gauss_newton_trace"] > 0
    assert 0 <= figures["calibration_error"] <= 1
    assert figures["relative_trace"] > 0


def test_confidences_agree_with_the_evaluation(digits):
    task = build_task(BASE, digits)
    params, state = task.init(jax.random.key(0))
    confidences, hits = task.evaluator().confidences(params, state, digits.test)
    assert len(confidences) == len(hits) == len(digits.test.labels)
    evaluation = task.evaluator().evaluate(params, state, digits.test)
    assert hits.mean() == pytest.approx(evaluation.accuracy)
    assert np.all((confidences > 0.1) & (confidences <= 1))


def test_confidences_of_a_text_are_those_of_every_token_that_counts():
    config = dataclasses.replace(
        BASE,
        data=TextConfig(train_tokens=2000, evaluation_tokens=503, length=7),
        model=LanguageModelConfig(width=4, num_layers=1),
    )
    data = load_data(config.data)
    task = build_task(config, data)
    params, state = task.init(jax.random.key(0))
    confidences, hits = task.evaluator().confidences(params, state, data.test)
    assert len(confidences) == len(hits) == EVALUATION_STRANDS * (50 - 1)
    words = len(data.vocabulary)
    assert np.all((confidences >= 1 / words) & (confidences <= 1))
