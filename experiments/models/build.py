"""From the name of a network to the network."""

import dataclasses
import inspect
from collections.abc import Collection, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from experiments.config import LanguageModelConfig, ModelConfig
from experiments.errors import SettingError
from experiments.models.convnet import ConvNet
from experiments.models.resnet import digits_resnet, resnet18
from experiments.models.rnn_lm import LanguageModel
from experiments.models.transformer import Transformer
from experiments.models.wide_resnet import wide_resnet
from experiments.regularizers import Regularizer

NETWORKS = {
    "digits-resnet": digits_resnet,
    "resnet18": resnet18,
    "wide-resnet": wide_resnet,
    "convnet": ConvNet,
}


def build_model(
    config: ModelConfig, num_classes: int, method: Sequence[Regularizer] = ()
) -> nn.Module:
    """Build the network of a configuration.

    Args:
        config: Which network.
        num_classes: Number of outputs.
        method: The regularizers, each of which may change the arguments of the constructor.

    Returns:
        The module.

    Raises:
        SettingError: If a method wants something that the network does not have.
    """
    arguments: dict[str, Any] = {
        "num_classes": num_classes,
        "dtype": jnp.dtype(config.dtype),
        "remat": config.remat,
    }
    if config.network == "wide-resnet":
        arguments |= {"depth": config.depth, "widen_factor": config.width}
    else:
        arguments |= {"width": config.width}
    network = NETWORKS[config.network]
    known = inspect.signature(network).parameters.keys()
    return network(**_with_methods(arguments, method, config.network, known))


def build_language_model(
    config: LanguageModelConfig,
    vocabulary_size: int,
    length: int,
    method: Sequence[Regularizer] = (),
) -> nn.Module:
    """Build the language model of a configuration.

    Args:
        config: Which network.
        vocabulary_size: Number of different tokens.
        length: Tokens of a step, the longest sequence that a transformer can be given.
        method: The regularizers, each of which may change the arguments of the constructor.

    Returns:
        The module.

    Raises:
        SettingError: If a method wants something that the network does not have.
    """
    network: type[nn.Module]
    arguments: dict[str, Any] = {
        "vocabulary_size": vocabulary_size,
        "dtype": jnp.dtype(config.dtype),
    }
    if config.network == "transformer":
        network = Transformer
        arguments |= {
            "max_length": length,
            "num_blocks": config.num_layers,
            "num_heads": config.heads,
            "model_size": config.width,
            "remat": config.remat,
        }
    else:
        network = LanguageModel
        arguments |= {
            "cell": config.network,
            "embedding_size": config.width,
            "hidden_size": config.width,
            "num_layers": config.num_layers,
            "tied_embeddings": config.tied_embeddings,
            "initialisation": config.recurrent_initialisation,
        }
    known = {field.name for field in dataclasses.fields(network)}
    return network(**_with_methods(arguments, method, config.network, known))


def _with_methods(
    arguments: dict[str, Any], method: Sequence[Regularizer], network: str, known: Collection[str]
) -> dict[str, Any]:
    """Let the methods change the arguments of a network's constructor.

    Raises:
        SettingError: If one wants something that the network does not have.
    """
    for part in method:
        arguments = part.model(**arguments)
        unknown = ", ".join(arguments.keys() - set(known))
        if unknown:
            raise SettingError(
                f"the method {part.name} can not be used with the network {network}, which has no "
                f"{unknown}"
            )
    return arguments
