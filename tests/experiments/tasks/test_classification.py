"""The loss, its evaluation, and its curvature."""

import dataclasses
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import seht_jax as seht
from experiments.data.augment import normalise
from experiments.data.dataset import Split
from experiments.models.resnet import digits_resnet
from experiments.regularizers import Batch, Regularizer
from experiments.tasks.classification import (
    EVALUATION_BATCH_SIZE,
    Classification,
    ImageEvaluator,
    make_loss_fn,
    make_network,
)


@dataclasses.dataclass(frozen=True)
class Constant(Regularizer):
    """Adds a constant to the loss."""

    def loss(self, _logits, _labels):
        return jnp.asarray(0.5)


class Shallow(nn.Module):
    """A network that is small enough for its exact trace."""

    @nn.compact
    def __call__(self, images, *, train):
        features = nn.Dense(4)(images.reshape(len(images), -1))
        features = nn.BatchNorm(use_running_average=not train)(features)
        return nn.Dense(10)(nn.tanh(features))


class Dropping(nn.Module):
    """A network with nothing but dropout."""

    @nn.compact
    def __call__(self, images, *, train):
        features = nn.BatchNorm(use_running_average=not train)(images.reshape(len(images), -1))
        return nn.Dense(10)(nn.Dropout(0.5, deterministic=not train)(features))


def batch_of(dataset, size=20):
    return Batch(
        normalise(dataset.train.images[:size], dataset.mean, dataset.standard_deviation),
        jax.nn.one_hot(dataset.train.labels[:size], 10),
    )


def prepare(model, dataset):
    batch = batch_of(dataset)
    variables = jax.jit(partial(model.init, train=False))(jax.random.key(0), batch.inputs)
    return batch, variables["params"], variables["batch_stats"]


def test_loss_is_the_mean_cross_entropy(tiny_digits):
    model = digits_resnet(10, width=2)
    batch, params, stats = prepare(model, tiny_digits)
    network = make_network(model, stats, jax.random.key(0))
    loss, outputs = make_loss_fn(network, (), batch)(params)
    logits, updated = model.apply(
        {"params": params, "batch_stats": stats}, batch.inputs, train=True, mutable=["batch_stats"]
    )
    assert float(loss) == pytest.approx(
        float(optax.softmax_cross_entropy(logits, batch.labels).mean())
    )
    assert float(outputs.metrics["accuracy"]) == pytest.approx(
        np.mean(logits.argmax(-1) == batch.labels.argmax(-1))
    )
    for found, expected in zip(
        jax.tree.leaves(outputs.network_state), jax.tree.leaves(updated["batch_stats"]), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


def test_terms_of_methods_are_added_but_not_logged_as_loss(tiny_digits):
    model = digits_resnet(10, width=2)
    batch, params, stats = prepare(model, tiny_digits)
    method = (Constant(), Constant())
    network = make_network(model, stats, jax.random.key(0))
    loss, outputs = make_loss_fn(network, method, batch)(params)
    assert float(loss) == pytest.approx(float(outputs.metrics["loss"]) + 1.0)


def test_dropout_is_the_same_in_every_evaluation(tiny_digits):
    model = Dropping()
    batch, params, stats = prepare(model, tiny_digits)
    loss_fn, other = (
        make_loss_fn(make_network(model, stats, jax.random.key(seed)), (), batch) for seed in (1, 2)
    )
    assert float(loss_fn(params)[0]) == float(loss_fn(params)[0]) != float(other(params)[0])


@pytest.mark.parametrize("size", [1, EVALUATION_BATCH_SIZE, EVALUATION_BATCH_SIZE + 3])
def test_evaluation_is_the_mean_over_a_split_of_any_size(digits, size):
    model = digits_resnet(10, width=2)
    _, params, stats = prepare(model, digits)
    split = Split(*(array[:size] for array in digits.train))
    found = ImageEvaluator(model, digits).evaluate(params, stats, split)
    images = normalise(split.images, digits.mean, digits.standard_deviation)
    logits = model.apply({"params": params, "batch_stats": stats}, images, train=False)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, split.labels)
    assert found.loss == pytest.approx(float(losses.mean()), rel=1e-5)
    assert found.accuracy == pytest.approx(float(np.mean(logits.argmax(-1) == split.labels)))
    best_five = np.argsort(logits, -1)[:, -5:]
    assert found.top5_accuracy == pytest.approx(np.mean(best_five == split.labels[:, None]) * 5)


def test_the_loss_that_is_analysed_is_that_of_the_evaluation(tiny_digits):
    model = Dropping()
    _, params, stats = prepare(model, tiny_digits)
    stats = jax.tree.map(lambda leaf: leaf + 0.5, stats)  # the batch's own would have no influence
    task = Classification(tiny_digits, model, 20, "crop-flip")
    examples = task.examples(30)
    assert len(examples.labels) == 30
    loss = jax.jit(task.evaluation_loss)(params, examples, stats)
    expected = ImageEvaluator(model, tiny_digits).evaluate(params, stats, examples).loss
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    marked = seht.exact_trace(task.evaluation_loss, curvature="gauss_newton")
    assert float(jax.jit(marked)(params, task.examples(2), stats)) > 0


def test_an_empty_split_has_no_mean(tiny_digits):
    model = digits_resnet(10, width=2)
    _, params, stats = prepare(model, tiny_digits)
    empty = Split(*(array[:0] for array in tiny_digits.train))
    assert np.isnan(ImageEvaluator(model, tiny_digits).evaluate(params, stats, empty)).all()


@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton"])
def test_trace_is_that_of_the_training_loss(tiny_digits, curvature):
    model = Shallow()
    batch, params, stats = prepare(model, tiny_digits)
    split = Split(*(array[:20] for array in tiny_digits.train))
    evaluator = ImageEvaluator(model, tiny_digits)
    key = jax.random.key(0)
    mean, standard_error = evaluator.trace(params, stats, split, key, 100, curvature)
    loss_fn = make_loss_fn(make_network(model, stats, jax.random.key(0)), (), batch)
    trace = seht.exact_trace(loss_fn, has_aux=True, curvature=curvature)
    exact = float(jax.jit(trace)(params))
    assert 0 < standard_error < 0.2 * abs(exact)
    assert abs(mean - exact) < 4 * standard_error
