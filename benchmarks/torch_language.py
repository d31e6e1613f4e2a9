"""The recurrent language model in PyTorch, with the same weights as ours.

PyTorch's layers have two vectors of biases where Flax's have one. Where their sum is all that
counts, one of them is *redundant*: it is kept at zero here, in the weights and in the gradients.
Trained like the other, it would double the steps of the sum.
"""

# PyTorch is in the extra `bench` alone, and type checking goes without it.
# pyright: reportMissingImports=false

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from experiments.models.rnn_lm import UNIFORM_BOUND, LanguageModel

States: TypeAlias = Any  # of one layer: (h, c) of an LSTM, h of a GRU

# Flax's gates in the order of PyTorch's rows.
GATES = {"lstm": "ifgo", "gru": "rzn"}
# Of PyTorch's `bias_ih`, or `bias_hh`: the gates whose bias is redundant there.
_REDUNDANT = {"lstm": ("bias_ih", "ifgo"), "gru": ("bias_hh", "rz")}


class TorchLanguageModel(nn.Module):
    """An embedding, recurrent layers with dropout around each, and a linear layer."""

    def __init__(self, model: LanguageModel, dropout_rate: float) -> None:
        super().__init__()
        layer = {"lstm": nn.LSTM, "gru": nn.GRU}[model.cell]
        self.cell = model.cell
        self.embedding = nn.Embedding(model.vocabulary_size, model.embedding_size)
        sizes = [model.embedding_size] + [model.hidden_size] * model.num_layers
        self.layers = nn.ModuleList(
            layer(size, model.hidden_size, batch_first=True) for size in sizes[:-1]
        )
        self.head = nn.Linear(model.hidden_size, model.vocabulary_size)
        self.dropout = nn.Dropout(dropout_rate)

    def forward(
        self, tokens: Tensor, states: Sequence[States] | None = None
    ) -> tuple[Tensor, list[States]]:
        """Compute the logits and the last states, which are cut from the gradient."""
        hidden = self.embedding(tokens)
        last_states = []
        for i, layer in enumerate(self.layers):
            hidden, state = layer(self.dropout(hidden), None if states is None else states[i])
            last_states.append(_detached(state))
        return self.head(self.dropout(hidden)), last_states


def seed_everything(seed: int, num_threads: int) -> None:
    """Seed PyTorch, and say how many threads it may have.

    Args:
        seed: The seed.
        num_threads: The number of threads.
    """
    torch.manual_seed(seed)
    torch.set_num_threads(num_threads)


def as_tokens(array: Any) -> Tensor:
    """Bring tokens into PyTorch's form.

    Args:
        array: Integers.

    Returns:
        The same as a tensor.
    """
    return torch.tensor(np.array(array), dtype=torch.long)


def draw_uniformly(network: TorchLanguageModel) -> None:
    """Draw all weights from [-0.1, 0.1]; redundant ones are zero.

    Args:
        network: The network.
    """
    with torch.no_grad():
        for param in network.parameters():
            param.uniform_(-UNIFORM_BOUND, UNIFORM_BOUND)
        for redundant in redundant_entries(network, dict(network.named_parameters())):
            redundant.zero_()


def redundant_entries(
    network: TorchLanguageModel, values: Mapping[str, Tensor]
) -> Iterator[Tensor]:
    """List the redundant parts of weights, or of gradients.

    Args:
        network: The network.
        values: By the names of its parameters.

    Yields:
        Views of them.
    """
    vector, gates = _REDUNDANT[network.cell]
    for name, value in values.items():
        if vector in name:
            size = len(value) // len(GATES[network.cell])
            for gate in gates:
                start = GATES[network.cell].index(gate) * size
                yield value[start : start + size]


def to_torch(network: TorchLanguageModel, params: Mapping[str, Any]) -> dict[str, Tensor]:
    """Bring our weights, or gradients, into PyTorch's form.

    Args:
        network: The network.
        params: Params of `LanguageModel`, untied.

    Returns:
        Values by the names of the network's parameters, zeros where they are redundant.
    """
    values = {
        "embedding.weight": _tensor(params["embedding"]["embedding"]),
        "head.weight": _tensor(params["head"]["kernel"]).T,
        "head.bias": _tensor(params["head"]["bias"]),
    }
    for i, _ in enumerate(network.layers):
        layer = params[f"{network.cell}{i + 1}"]
        for part, prefix in (("ih", "i"), ("hh", "h")):
            gates = [layer[f"{prefix}{gate}"] for gate in GATES[network.cell]]
            kernels = [_tensor(gate["kernel"]).T for gate in gates]
            biases = [
                _tensor(gate["bias"]) if "bias" in gate else torch.zeros(len(kernel))
                for gate, kernel in zip(gates, kernels, strict=True)
            ]
            values[f"layers.{i}.weight_{part}_l0"] = torch.cat(kernels)
            values[f"layers.{i}.bias_{part}_l0"] = torch.cat(biases)
    return values


def train_step(
    network: TorchLanguageModel,
    inputs: Tensor,
    labels: Tensor,
    states: Sequence[States] | None,
    *,
    learning_rate: float,
    clip_norm: float,
) -> list[States]:
    """Take a step of gradient descent, clipped by the global norm.

    Args:
        network: The network.
        inputs: Tokens ``(batch, time)``.
        labels: The next tokens.
        states: The states that the layers start in; zeros if `None`.
        learning_rate: The learning rate.
        clip_norm: The bound on the norm.

    Returns:
        The last states.
    """
    network.train()
    network.zero_grad()
    logits, last_states = network(inputs, states)
    mean_loss(logits, labels).backward()
    gradients = {
        name: param.grad for name, param in network.named_parameters() if param.grad is not None
    }
    for redundant in redundant_entries(network, gradients):
        redundant.zero_()
    nn.utils.clip_grad_norm_(network.parameters(), clip_norm)
    torch.optim.SGD(network.parameters(), learning_rate).step()
    return last_states


def evaluate(network: TorchLanguageModel, tokens: Tensor, length: int) -> float:
    """Compute the mean cross-entropy of a text.

    Args:
        network: The network.
        tokens: The text in strands ``(strands, time)``.
        length: Tokens that are read at once.

    Returns:
        The mean over all tokens that have one before them.
    """
    network.eval()
    states, total = None, 0.0
    num_labels = tokens.shape[1] - 1
    with torch.no_grad():
        for start in range(0, num_labels, length):
            end = min(start + length, num_labels)
            logits, states = network(tokens[:, start:end], states)
            loss = mean_loss(logits, tokens[:, start + 1 : end + 1])
            total += float(loss) * (end - start)
    return total / num_labels


def mean_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute the mean cross-entropy.

    Args:
        logits: Logits ``(batch, time, classes)``.
        labels: Next tokens ``(batch, time)``.

    Returns:
        The mean.
    """
    return functional.cross_entropy(logits.flatten(0, -2), labels.flatten())


def _tensor(array: Any) -> Tensor:
    return torch.tensor(np.asarray(array))


def _detached(state: States) -> States:
    return tuple(part.detach() for part in state) if isinstance(state, tuple) else state.detach()
