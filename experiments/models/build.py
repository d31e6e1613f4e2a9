"""From the name of a network to the network."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn

from experiments.config import ModelConfig
from experiments.models.resnet import digits_resnet, resnet18
from experiments.models.wide_resnet import wide_resnet
from experiments.regularizers import Regularizer

NETWORKS = {"digits-resnet": digits_resnet, "resnet18": resnet18, "wide-resnet": wide_resnet}


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
    """
    arguments: dict[str, Any] = {"num_classes": num_classes}
    if config.network == "wide-resnet":
        arguments |= {"depth": config.depth, "widen_factor": config.width}
    else:
        arguments |= {"width": config.width}
    for part in method:
        arguments = part.model(**arguments)
    return NETWORKS[config.network](**arguments)
