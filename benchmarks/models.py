"""The networks that are measured: a loss, params and a batch for each name.

Their weights are random and their data noise, which does not change what a step costs.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import seht_jax as seht
from experiments.models.mlp import MLP
from experiments.models.resnet import ResNet
from experiments.models.rnn_lm import LanguageModel
from experiments.models.transformer import Transformer
from experiments.models.wide_resnet import wide_resnet
from seht_jax.probes import LayerFunction

Size: TypeAlias = Mapping[str, int]

NUM_CLASSES = 10

SIZES: Mapping[str, Size] = {
    "resnet18": {
        "num_stages": 4,
        "blocks_per_stage": 2,
        "width": 64,
        "image_size": 32,
        "batch_size": 32,
    },
    "wrn-16-4": {"depth": 16, "widen_factor": 4, "image_size": 32, "batch_size": 32},
    "lstm": {
        "num_layers": 2,
        "hidden_size": 512,
        "vocabulary_size": 10_000,
        "length": 35,
        "batch_size": 20,
    },
    "transformer": {
        "num_blocks": 4,
        "num_heads": 4,
        "model_size": 256,
        "vocabulary_size": 10_000,
        "length": 128,
        "batch_size": 8,
    },
    "mlp": {"input_size": 784, "hidden_size": 1024, "batch_size": 128},
}

# The same kinds of network, small enough to compile and run in seconds.
QUICK_SIZES: Mapping[str, Size] = {
    "resnet18": {
        "num_stages": 1,
        "blocks_per_stage": 1,
        "width": 4,
        "image_size": 8,
        "batch_size": 4,
    },
    "wrn-16-4": {"depth": 10, "widen_factor": 1, "image_size": 8, "batch_size": 4},
    "lstm": {
        "num_layers": 1,
        "hidden_size": 8,
        "vocabulary_size": 20,
        "length": 5,
        "batch_size": 2,
    },
    "transformer": {
        "num_blocks": 1,
        "num_heads": 2,
        "model_size": 8,
        "vocabulary_size": 20,
        "length": 8,
        "batch_size": 2,
    },
    "mlp": {"input_size": 16, "hidden_size": 16, "batch_size": 4},
}


@dataclasses.dataclass(frozen=True)
class BenchmarkModel:
    """A network with a loss and a batch.

    Attributes:
        name: A key of `SIZES`.
        size: The numbers that it was built from.
        loss_fn: ``loss_fn(params, *batch)`` returns the loss and an aux: BatchNorm's new
            statistics, or `None` for a network without BatchNorm.
        params: The params.
        batch: The inputs and the labels.
        layers: What a layer is; the same as in the PyTorch form.
    """

    name: str
    size: Size
    loss_fn: Callable[..., tuple[jax.Array, Any]]
    params: Any
    batch: tuple[jax.Array, ...]
    layers: LayerFunction = seht.module_layer

    @property
    def num_params(self) -> int:
        """The number of parameters."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.params))


def build_benchmark_model(name: str, size: Size) -> BenchmarkModel:
    """Build a network of a kind and a size.

    Args:
        name: A key of `SIZES`.
        size: Numbers as in `SIZES`.

    Returns:
        The network with its loss and a batch.

    Raises:
        ValueError: If the name is not known.
    """
    if name not in _BUILDERS:
        raise ValueError(f"model must be one of {', '.join(SIZES)}, not {name!r}")
    return _BUILDERS[name](name, size)


def _image_classifier(name: str, size: Size, network: nn.Module) -> BenchmarkModel:
    """Build a classifier of 3-channel images with BatchNorm in training mode."""
    side, batch_size = size["image_size"], size["batch_size"]
    images = jax.random.normal(jax.random.key(1), (batch_size, side, side, 3))
    labels = jax.random.randint(jax.random.key(2), (batch_size,), 0, NUM_CLASSES)
    variables = _init(network, images)

    def loss_fn(params: Any, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, Any]:
        logits, updated = network.apply(
            {"params": params, "batch_stats": variables["batch_stats"]},
            images,
            train=True,
            mutable=["batch_stats"],
        )
        return _cross_entropy(logits, labels), updated["batch_stats"]

    return BenchmarkModel(name, size, loss_fn, variables["params"], (images, labels))


def _resnet(name: str, size: Size) -> BenchmarkModel:
    stage_sizes = (size["blocks_per_stage"],) * size["num_stages"]
    return _image_classifier(name, size, ResNet(stage_sizes, NUM_CLASSES, size["width"]))


def _wide_resnet(name: str, size: Size) -> BenchmarkModel:
    network = wide_resnet(size["depth"], size["widen_factor"], NUM_CLASSES)
    return _image_classifier(name, size, network)


def _tokens(size: Size) -> tuple[jax.Array, jax.Array]:
    shape = (size["batch_size"], size["length"] + 1)
    tokens = jax.random.randint(jax.random.key(1), shape, 0, size["vocabulary_size"])
    return tokens[:, :-1], tokens[:, 1:]


def _recurrent(name: str, size: Size) -> BenchmarkModel:
    network = LanguageModel(
        vocabulary_size=size["vocabulary_size"],
        embedding_size=size["hidden_size"],
        hidden_size=size["hidden_size"],
        num_layers=size["num_layers"],
    )
    model = _without_state(name, size, network, _tokens(size), logits_of=lambda outputs: outputs[0])
    # A cell is one layer, not eight dense ones.
    return dataclasses.replace(model, layers=lambda path: path[0])


def _transformer(name: str, size: Size) -> BenchmarkModel:
    network = Transformer(
        vocabulary_size=size["vocabulary_size"],
        max_length=size["length"],
        num_blocks=size["num_blocks"],
        num_heads=size["num_heads"],
        model_size=size["model_size"],
    )
    return _without_state(name, size, network, _tokens(size))


def _mlp(name: str, size: Size) -> BenchmarkModel:
    network = MLP((size["hidden_size"],) * 2, NUM_CLASSES)
    inputs = jax.random.normal(jax.random.key(1), (size["batch_size"], size["input_size"]))
    labels = jax.random.randint(jax.random.key(2), (size["batch_size"],), 0, NUM_CLASSES)
    return _without_state(name, size, network, (inputs, labels))


def _without_state(
    name: str,
    size: Size,
    network: nn.Module,
    batch: tuple[jax.Array, jax.Array],
    logits_of: Callable[[Any], jax.Array] = lambda outputs: outputs,
) -> BenchmarkModel:
    def loss_fn(params: Any, inputs: jax.Array, labels: jax.Array) -> tuple[jax.Array, None]:
        logits = logits_of(network.apply({"params": params}, inputs, train=True))
        return _cross_entropy(logits, labels), None

    return BenchmarkModel(name, size, loss_fn, _init(network, batch[0])["params"], batch)


def _init(network: nn.Module, inputs: jax.Array) -> Any:
    return jax.jit(lambda key: network.init(key, inputs, train=False))(jax.random.key(0))


def _cross_entropy(logits: Any, labels: jax.Array) -> jax.Array:
    # The mark, without which there is no Gauss-Newton form, is not in the compiled program.
    logits = seht.outputs(logits)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


_BUILDERS: Mapping[str, Callable[[str, Size], BenchmarkModel]] = {
    "resnet18": _resnet,
    "wrn-16-4": _wide_resnet,
    "lstm": _recurrent,
    "transformer": _transformer,
    "mlp": _mlp,
}
