"""Four small networks, each with data to learn from and to be validated on."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import flax.linen as nn
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

import seht_jax as seht
from experiments.data.augment import normalise
from experiments.data.digits import load_digits
from experiments.data.pydoc import load_pydoc
from experiments.models.mlp import MLP
from experiments.models.resnet import digits_resnet
from experiments.models.rnn_lm import LanguageModel
from experiments.models.transformer import Transformer

Batch: TypeAlias = tuple[Array, Array]

# So little text that a network learns it by heart, which is what regularization is against.
TRAIN_CHARACTERS, VALIDATION_CHARACTERS = 16_384, 8_192
LENGTH = 32


class Task(NamedTuple):
    """A network and its data.

    Attributes:
        init: From a key to params and BatchNorm's running statistics.
        loss: ``loss(params, batch_stats, batch, train)`` returns the mean cross-entropy and the new
            statistics; the outputs are marked.
        train: Inputs and labels to train on.
        validation: Inputs and labels to validate on.
        batch_size: Examples of a step.
        optimizer: From a learning rate (or schedule) to the optimizer that one would use.
        learning_rate: A good learning rate for it.
    """

    init: Callable[[PRNGKeyArray], tuple[PyTree, PyTree]]
    loss: Callable[..., tuple[Float[Array, ""], PyTree]]
    train: Batch
    validation: Batch
    batch_size: int
    optimizer: Callable[[Any], optax.GradientTransformation]
    learning_rate: float


def build_task(name: str, width: int) -> Task:
    """Build a task.

    Args:
        name: A key of `TASKS`.
        width: The width of its network.

    Returns:
        The task.
    """
    return TASKS[name](width)


def _image_task(network: nn.Module, learning_rate: float) -> Task:
    dataset = load_digits()

    def prepare(split: Any) -> Batch:
        images = normalise(split.images, dataset.mean, dataset.standard_deviation)
        return images, split.labels

    return _task(
        network,
        prepare(dataset.train),
        prepare(dataset.validation),
        batch_size=64,
        optimizer=_momentum,
        learning_rate=learning_rate,
    )


def _text_task(make_network: Callable[[int], nn.Module], learning_rate: float) -> Task:
    text = load_pydoc(TRAIN_CHARACTERS, VALIDATION_CHARACTERS)

    def windows(tokens: Any) -> Batch:
        count = (len(tokens) - 1) // LENGTH
        inputs, labels = tokens[: count * LENGTH], tokens[1 : count * LENGTH + 1]
        return jnp.asarray(inputs.reshape(count, LENGTH)), jnp.asarray(
            labels.reshape(count, LENGTH)
        )

    return _task(
        make_network(len(text.vocabulary)),
        windows(text.train),
        windows(text.validation),
        batch_size=16,
        optimizer=_adam,
        learning_rate=learning_rate,
    )


def _task(network: nn.Module, train: Batch, validation: Batch, **settings: Any) -> Task:
    def init(key: PRNGKeyArray) -> tuple[PyTree, PyTree]:
        variables = network.init(key, train[0][:2], train=False)
        return variables["params"], variables.get("batch_stats", {})

    def loss(
        params: PyTree, batch_stats: PyTree, batch: Batch, *, train: bool
    ) -> tuple[Float[Array, ""], PyTree]:
        inputs, labels = batch
        outputs: Any = network.apply(
            {"params": params, "batch_stats": batch_stats},
            inputs,
            train=train,
            mutable=["batch_stats"] if train else False,
        )
        outputs, updated = outputs if train else (outputs, {})
        logits = seht.outputs(outputs[0] if isinstance(outputs, tuple) else outputs)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jnp.mean(losses), updated.get("batch_stats", batch_stats)

    return Task(init, loss, train, validation, **settings)


def _momentum(learning_rate: Any) -> optax.GradientTransformation:
    return optax.sgd(learning_rate, momentum=0.9)


def _adam(learning_rate: Any) -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(learning_rate))


def _lstm(width: int, vocabulary_size: int) -> nn.Module:
    return LanguageModel(vocabulary_size, embedding_size=width, hidden_size=width, num_layers=1)


def _transformer(width: int, vocabulary_size: int) -> nn.Module:
    return Transformer(
        vocabulary_size, max_length=LENGTH, num_blocks=2, num_heads=4, model_size=width
    )


TASKS: dict[str, Callable[[int], Task]] = {
    "resnet": lambda width: _image_task(digits_resnet(num_classes=10, width=width), 0.05),
    "mlp": lambda width: _image_task(MLP((width, width), 10), 0.05),
    "lstm": lambda width: _text_task(functools.partial(_lstm, width), 1e-2),
    "transformer": lambda width: _text_task(functools.partial(_transformer, width), 3e-3),
}
WIDTHS: dict[str, tuple[int, int]] = {
    "resnet": (4, 8),
    "mlp": (32, 128),
    "lstm": (32, 64),
    "transformer": (32, 64),
}
