"""Multilayer perceptrons.

Weights and biases start from PyTorch's default for ``Linear``, uniform on +-1/sqrt(fan_in), as in
`resnet.py`.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax

from experiments.models.resnet import torch_default_bias_init, torch_default_kernel_init


class MLP(nn.Module):
    """Dense layers with ReLU between them.

    Attributes:
        hidden_sizes: Width of each hidden layer.
        num_classes: Number of outputs.
    """

    hidden_sizes: Sequence[int]
    num_classes: int

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool) -> jax.Array:
        """Compute the logits.

        Args:
            inputs: An array ``(batch, ...)``; all but the first axis are taken as features.
            train: Has no effect: nothing here differs between training and evaluation.

        Returns:
            Logits ``(batch, num_classes)``.
        """
        del train
        hidden = inputs.reshape(len(inputs), -1)
        for i, size in enumerate(self.hidden_sizes):
            hidden = nn.relu(_dense(size, hidden, f"dense{i + 1}"))
        return _dense(self.num_classes, hidden, "head")


def _dense(size: int, inputs: jax.Array, name: str) -> jax.Array:
    layer = nn.Dense(
        size,
        kernel_init=torch_default_kernel_init(),
        bias_init=torch_default_bias_init(inputs.shape[-1]),
        name=name,
    )
    return layer(inputs)
