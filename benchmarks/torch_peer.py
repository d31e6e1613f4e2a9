"""The same steps in PyTorch, as its users write them: `create_graph=True` and a second gradient.

The networks are those of `experiments/models`, with the same layers: modules.

PyTorch's threads wait actively for one another: time it on a machine that does nothing else.
"""

# PyTorch is in the extra `bench` alone, and type checking goes without it.
# pyright: reportMissingImports=false

import bisect
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.measure import NotAvailableError, Program, Stratum
from benchmarks.models import NUM_CLASSES, Size

Batch: TypeAlias = tuple[Tensor, Tensor]
Layers: TypeAlias = Sequence[Sequence[Tensor]]

GROUPS = 6  # of layers one after the other, of which one has the first drawn layer
KEYS_OF_GROUP = 4
_MAX_SEEDS = 1_000_000


def prepare(name: str, size: Size, p: float | None, num_probes: int, lam: float) -> Program:
    """Prepare a step.

    Args:
        name: The name of the network.
        size: Its size.
        p: `None` for SEHT-H, a number for SEHT-D.
        num_probes: The number of probes; 0 for the plain step.
        lam: The strength.

    Returns:
        The step; its keys are seeds.

    Raises:
        NotAvailableError: If the network is not written in PyTorch here.
    """
    if name not in _BUILDERS:
        raise NotAvailableError("no PyTorch form")
    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    network, batch = _BUILDERS[name](size)
    network.train()
    params = list(network.parameters())
    if p is None:

        def run(seed: int) -> None:
            torch.manual_seed(seed)
            loss = _loss(network, batch)
            _penalised_gradients(loss, params, params, 0.5, num_probes, lam)

        return Program(run, strata=(Stratum(1.0, (0,)),))

    layers = layers_of(network)

    def run_sparse(seed: int) -> None:
        drawn = draw_layers(seed, len(layers), p)
        probed = [
            param for layer, chosen in zip(layers, drawn, strict=True) if chosen for param in layer
        ]
        loss = _loss(network, batch)
        _penalised_gradients(loss, params, probed, p, num_probes, lam)

    return Program(run_sparse, strata(len(layers), p))


def layers_of(network: nn.Module) -> Layers:
    """List the layers of a network: the modules that have parameters of their own.

    Args:
        network: The network.

    Returns:
        The parameters of each.
    """
    return [own for module in network.modules() if (own := list(module.parameters(recurse=False)))]


def draw_layers(seed: int, num_layers: int, p: float) -> list[bool]:
    """Draw each layer with probability `p`.

    Args:
        seed: What the generator is seeded with.
        num_layers: The number of layers.
        p: The probability.

    Returns:
        Which layers were drawn.
    """
    torch.manual_seed(seed)
    return (torch.rand(num_layers) < p).tolist()


def strata(num_layers: int, p: float) -> tuple[Stratum, ...]:
    """Divide the draws by the first drawn layer, before which there is nothing to differentiate.

    Args:
        num_layers: The number of layers.
        p: The probability of a layer.

    Returns:
        The stratum in which nothing is drawn, and one for each group of layers.

    Raises:
        RuntimeError: If a draw is so improbable that no seed was found.
    """
    num_groups = min(GROUPS, num_layers)
    starts = [group * num_layers // num_groups for group in range(num_groups + 1)]
    seeds: list[list[int]] = [[] for _ in range(num_groups + 1)]
    for seed in range(_MAX_SEEDS):
        drawn = draw_layers(seed, num_layers, p)
        group = bisect.bisect_right(starts, drawn.index(True)) if any(drawn) else 0
        if len(seeds[group]) < KEYS_OF_GROUP:
            seeds[group].append(seed)
        if all(len(found) == KEYS_OF_GROUP for found in seeds):
            break
    if not all(seeds):
        raise RuntimeError(f"{_MAX_SEEDS} seeds draw alike with p = {p} and {num_layers} layers")
    reached = [(1 - p) ** start for start in starts]
    probabilities = [reached[-1], *(a - b for a, b in itertools.pairwise(reached))]
    return tuple(map(Stratum, probabilities, map(tuple, seeds)))


def _penalised_gradients(
    loss: Tensor,
    params: Sequence[Tensor],
    probed: Sequence[Tensor],
    p_entries: float,
    num_probes: int,
    lam: float,
) -> tuple[Tensor, ...]:
    """Return the gradients of the loss plus lambda times the mean quadratic form on some params."""
    if num_probes == 0 or not probed:
        return torch.autograd.grad(loss, params)
    gradients = torch.autograd.grad(loss, probed, create_graph=True)
    forms = []
    for _ in range(num_probes):
        probe = [_signs(param, p_entries) for param in probed]
        along = _inner(gradients, probe)
        products = torch.autograd.grad(along, probed, create_graph=True)
        forms.append(_inner(products, probe))
    return torch.autograd.grad(loss + lam * torch.stack(forms).mean(), params)


def _signs(param: Tensor, p: float) -> Tensor:
    uniform = torch.rand_like(param)
    return (uniform < p).to(param.dtype) - (uniform > 1 - p).to(param.dtype)


def _inner(xs: Sequence[Tensor], ys: Sequence[Tensor]) -> Tensor:
    return torch.stack([(x * y).sum() for x, y in zip(xs, ys, strict=True)]).sum()


def _loss(network: nn.Module, batch: Batch) -> Tensor:
    inputs, labels = batch
    logits = network(inputs)
    return functional.cross_entropy(logits.flatten(0, -2), labels.flatten())


# ------------------------------------------------------------------------------------ the networks


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, activated after the sum."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(in_channels, channels, 3, stride)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = _conv(channels, channels, 3)
        self.norm2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != channels:
            conv = _conv(in_channels, channels, 1, stride)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(channels))

    def forward(self, inputs: Tensor) -> Tensor:
        """Apply the block."""
        hidden = functional.relu(self.norm1(self.conv1(inputs)))
        return functional.relu(self.norm2(self.conv2(hidden)) + self.shortcut(inputs))


class PreActivationBlock(nn.Module):
    """Two 3x3 convolutions, each after a normalisation and an activation, and a shortcut."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = _conv(in_channels, channels, 3, stride)
        self.norm2 = nn.BatchNorm2d(channels)
        self.conv2 = _conv(channels, channels, 3)
        self.shortcut = None
        if in_channels != channels:
            self.shortcut = _conv(in_channels, channels, 1, stride)

    def forward(self, inputs: Tensor) -> Tensor:
        """Apply the block."""
        activated = functional.relu(self.norm1(inputs))
        hidden = self.conv2(functional.relu(self.norm2(self.conv1(activated))))
        return hidden + (inputs if self.shortcut is None else self.shortcut(activated))


class ImageClassifier(nn.Module):
    """Convolutions, global average pooling and one linear layer."""

    def __init__(self, features: nn.Module, num_features: int) -> None:
        super().__init__()
        self.features = features
        self.head = nn.Linear(num_features, NUM_CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits."""
        return self.head(self.features(images).mean((2, 3)))


def resnet(stage_sizes: Sequence[int], width: int, in_channels: int = 3) -> ImageClassifier:
    """Build the residual network of `experiments/models/resnet.py`.

    Args:
        stage_sizes: Blocks per stage.
        width: Channels of the stem.
        in_channels: Channels of the images.

    Returns:
        The network, which takes images ``(batch, channels, height, width)``.
    """
    layers: list[nn.Module] = [_conv(in_channels, width, 3), nn.BatchNorm2d(width), nn.ReLU()]
    channels = width
    for stage, num_blocks in enumerate(stage_sizes):
        for block in range(num_blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            layers.append(BasicBlock(channels, width * 2**stage, stride))
            channels = width * 2**stage
    return ImageClassifier(nn.Sequential(*layers), channels)


class LanguageModel(nn.Module):
    """An embedding, LSTM layers and a linear layer."""

    def __init__(self, vocabulary_size: int, hidden_size: int, num_layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, hidden_size)
        self.layers = nn.ModuleList(
            nn.LSTM(hidden_size, hidden_size, batch_first=True) for _ in range(num_layers)
        )
        self.head = nn.Linear(hidden_size, vocabulary_size)

    def forward(self, tokens: Tensor) -> Tensor:
        """Compute the logits."""
        hidden = self.embedding(tokens)
        for layer in self.layers:
            hidden, _ = layer(hidden)
        return self.head(hidden)


class DecoderBlock(nn.Module):
    """Causal self-attention and an MLP, each on a normalised copy of the residual stream."""

    def __init__(self, size: int, num_heads: int, length: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1 = nn.LayerNorm(size)
        self.query_key_value = nn.Linear(size, 3 * size)
        self.output = nn.Linear(size, size)
        self.norm2 = nn.LayerNorm(size)
        self.mlp = nn.Sequential(
            nn.Linear(size, 4 * size), nn.GELU(approximate="tanh"), nn.Linear(4 * size, size)
        )
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        self.register_buffer("future", future, persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Apply the block."""
        hidden = inputs + self.output(self._attend(self.norm1(inputs)))
        return hidden + self.mlp(self.norm2(hidden))

    def _attend(self, inputs: Tensor) -> Tensor:
        # Written out: PyTorch's fused attention has no second derivative.
        batch, length, size = inputs.shape
        projected = self.query_key_value(inputs).view(batch, length, 3, self.num_heads, -1)
        query, key, value = projected.unbind(2)
        scores = torch.einsum("bqhd,bkhd->bhqk", query, key) * (size // self.num_heads) ** -0.5
        weights = scores.masked_fill(self.future, float("-inf")).softmax(-1)
        return torch.einsum("bhqk,bkhd->bqhd", weights, value).reshape(inputs.shape)


class Transformer(nn.Module):
    """A pre-norm decoder-only transformer."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        width, length = size["model_size"], size["length"]
        self.embedding = nn.Embedding(size["vocabulary_size"], width)
        self.positions = nn.Embedding(length, width)
        self.blocks = nn.Sequential(
            *(DecoderBlock(width, size["num_heads"], length) for _ in range(size["num_blocks"]))
        )
        self.head_norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, size["vocabulary_size"], bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Compute the logits."""
        hidden = self.embedding(tokens) + self.positions.weight[: tokens.shape[1]]
        return self.head(self.head_norm(self.blocks(hidden)))


def _conv(in_channels: int, channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    padding = kernel // 2
    return nn.Conv2d(in_channels, channels, kernel, stride, padding=padding, bias=False)


def _resnet(size: Size) -> tuple[nn.Module, Batch]:
    stage_sizes = (size["blocks_per_stage"],) * size["num_stages"]
    return resnet(stage_sizes, size["width"]), _images(size)


def _wide_resnet(size: Size) -> tuple[nn.Module, Batch]:
    layers: list[nn.Module] = [_conv(3, 16, 3)]
    channels = 16
    for group, width in enumerate((16, 32, 64)):
        for block in range((size["depth"] - 4) // 6):
            stride = 2 if group > 0 and block == 0 else 1
            layers.append(PreActivationBlock(channels, width * size["widen_factor"], stride))
            channels = width * size["widen_factor"]
    layers += [nn.BatchNorm2d(channels), nn.ReLU()]
    return ImageClassifier(nn.Sequential(*layers), channels), _images(size)


def _recurrent(size: Size) -> tuple[nn.Module, Batch]:
    network = LanguageModel(size["vocabulary_size"], size["hidden_size"], size["num_layers"])
    return network, _tokens(size)


def _transformer(size: Size) -> tuple[nn.Module, Batch]:
    return Transformer(size), _tokens(size)


def _mlp(size: Size) -> tuple[nn.Module, Batch]:
    hidden = size["hidden_size"]
    network = nn.Sequential(
        nn.Linear(size["input_size"], hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, NUM_CLASSES),
    )
    inputs = torch.randn(size["batch_size"], size["input_size"])
    return network, (inputs, torch.randint(NUM_CLASSES, (size["batch_size"],)))


def _images(size: Size) -> Batch:
    images = torch.randn(size["batch_size"], 3, size["image_size"], size["image_size"])
    return images, torch.randint(NUM_CLASSES, (size["batch_size"],))


def _tokens(size: Size) -> Batch:
    shape = (size["batch_size"], size["length"] + 1)
    tokens = torch.randint(size["vocabulary_size"], shape)
    return tokens[:, :-1], tokens[:, 1:]


_BUILDERS: Mapping[str, Callable[[Size], tuple[nn.Module, Batch]]] = {
    "resnet18": _resnet,
    "wrn-16-4": _wide_resnet,
    "lstm": _recurrent,
    "transformer": _transformer,
    "mlp": _mlp,
}
