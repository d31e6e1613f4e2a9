"""Which weights of a residual network remain, when channels are pruned or get an implant.

A channel that is pruned is gone: its weights, the scale and bias of its normalisation, and the
weights by which later convolutions read it, unless the shortcut brings them something all the same.
These are zero, and stay zero (`keep_zeros.py`), so that the network computes what one would that
has no such channels. What the head reads of them is left as it is: it is multiplied by 0.
"""

import bisect
import enum
import math
import re
from collections.abc import Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, PyTree

from experiments.errors import SettingError
from experiments.pruning.sensitivity import Kernels, Scores, convolutions, module_name


class Fate(enum.IntEnum):
    """What becomes of a channel."""

    PRUNED = 0
    IMPLANTED = 1
    KEPT = 2


Fates: TypeAlias = dict[str, Int[np.ndarray, " channels"]]
"""The `Fate` of each channel, by the name of the convolution."""

Masks: TypeAlias = dict[str, Bool[np.ndarray, "height width inputs channels"]]
"""Which weights of each kernel remain, by the name of the convolution."""

_STEM = "stem_conv"


def choose_fates(scores: Scores, kernels: Kernels, keep: float, implant: float) -> Fates:
    """Choose the channels that are pruned, and those that get an implant.

    Of the channels of the whole network in the order of their scores, as many of the first ones are
    not kept whole as it takes for at most ``keep`` of all weights of convolutions to remain; and of
    these channels the share ``implant`` with the highest scores gets an implant. So do the authors
    of Hessian-aware pruning (see `sensitivity.py`), whose share is of channels, not of weights, and
    who keep the first channel of a convolution that would lose all; here each convolution keeps the
    one with its highest score.

    Args:
        scores: The scores, those of the channels to keep are high.
        kernels: The kernels.
        keep: Share of the weights that may remain, in (0, 1].
        implant: Share of the channels not kept whole, in [0, 1].

    Returns:
        The fates.

    Raises:
        SettingError: If there is no way to remain below that.
    """
    names = list(kernels)
    channels = [(name, i) for name in names for i in range(len(scores[name]))]
    last = {(name, int(np.argmax(scores[name]))) for name in names}
    order = sorted(set(channels) - last, key=lambda each: (scores[each[0]][each[1]], *each))

    def fates_of(number: int) -> Fates:
        fates = {name: np.full(len(scores[name]), Fate.KEPT, int) for name in names}
        num_pruned = number - int(implant * number)
        for i, (name, channel) in enumerate(order[:number]):
            fates[name][channel] = Fate.PRUNED if i < num_pruned else Fate.IMPLANTED
        return fates

    budget = keep * sum(kernel.size for kernel in kernels.values())

    def fits(number: int) -> bool:
        return num_weights(weight_masks(fates_of(number), kernels)) <= budget

    # With more channels, none fares better, so that the number of weights never rises.
    number = bisect.bisect_left(range(len(order) + 1), x=True, key=fits)
    if number > len(order):
        smallest = num_weights(weight_masks(fates_of(len(order)), kernels))
        least = math.ceil(1e4 * smallest * keep / budget) / 1e4
        raise SettingError(
            f"--keep must be at least {least:g} with --implant {implant:g}, not "
            f"{keep:g}: each convolution keeps a channel"
        )
    return fates_of(number)


def weight_masks(fates: Fates, kernels: Kernels) -> Masks:
    """Tell which weights of the convolutions remain.

    All those of a channel that is kept, and the centre tap of one with an implant, which is then a
    1x1 convolution; in both, of the inputs that are still there.

    Args:
        fates: The fates.
        kernels: The kernels of an `experiments.models.resnet.ResNet`.

    Returns:
        The masks.
    """
    inputs = _remaining_inputs(fates)
    masks = {}
    for name, kernel in kernels.items():
        height, width, num_inputs, _ = kernel.shape
        taps = np.zeros((height, width, 1, 1), bool)
        taps[height // 2, width // 2] = True
        fate = fates[name]
        masks[name] = (fate == Fate.KEPT) | (taps & (fate == Fate.IMPLANTED))
        remaining = inputs.get(name, np.ones(num_inputs, bool))
        masks[name] = masks[name] & remaining[:, None]
    return masks


def num_weights(masks: Masks) -> int:
    """Count the weights that remain.

    Args:
        masks: The masks.

    Returns:
        Their number.
    """
    return sum(int(np.count_nonzero(mask)) for mask in masks.values())


def prune(params: PyTree, fates: Fates) -> PyTree:
    """Set to zero what does not remain.

    An implant begins as the centre tap that the trained kernel has: of all 1x1 convolutions the one
    that is nearest to the kernel. The authors' code (see `sensitivity.py`) lets it begin at 0; the
    batch normalisation behind it then divides by the root of its epsilon, and the first gradients
    are hundreds of times too large.

    Args:
        params: Parameters of an `experiments.models.resnet.ResNet`.
        fates: The fates.

    Returns:
        The parameters of the pruned network, of the same shapes.
    """
    masks = weight_masks(fates, convolutions(params))
    normalisations = {_normalisation(name): fate for name, fate in fates.items()}

    def prune_leaf(path: tuple[Any, ...], leaf: Array) -> Array:
        module = module_name(path)
        if module in masks:
            remains = masks[module]
        elif module in normalisations:
            remains = normalisations[module] > Fate.PRUNED
        else:
            return leaf
        return jnp.where(remains, leaf, jnp.zeros_like(leaf))

    return jax.tree.map_with_path(prune_leaf, params)


def _remaining_inputs(fates: Mapping[str, np.ndarray]) -> dict[str, Bool[np.ndarray, " inputs"]]:
    """Follow the channels through the network: which ones a convolution still reads."""
    remains = {name: fate > Fate.PRUNED for name, fate in fates.items()}
    stream = remains[_STEM]
    inputs = {}
    for block in sorted({name.split("/")[0] for name in fates} - {_STEM}, key=_numbers):
        inputs[f"{block}/conv1"] = stream
        inputs[f"{block}/conv2"] = remains[f"{block}/conv1"]
        shortcut = f"{block}/shortcut_conv"
        if shortcut in fates:
            inputs[shortcut] = stream
            stream = remains[shortcut]
        stream = stream | remains[f"{block}/conv2"]
    return inputs


def _normalisation(convolution: str) -> str:
    """Name the normalisation behind a convolution."""
    return convolution.replace("conv", "norm")


def _numbers(block: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", block)]
