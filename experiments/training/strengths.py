"""Strengths as arguments of a program, so that one compilation serves for all of them."""

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import TypeAlias, TypeVar

import jax.numpy as jnp
from jaxtyping import Array

from experiments.config import OptimizerConfig
from experiments.regularizers import (
    NSO,
    SAM,
    ConfidencePenalty,
    Cutout,
    LabelSmoothing,
    Mixup,
    Regularizer,
    SehtD,
    SehtH,
)

Strengths: TypeAlias = Mapping[tuple[int, str], Array]
"""Numbers by the place of the method, or `OPTIMIZER`, and the name of the field."""

OPTIMIZER = -1

# Fields of methods and optimizer, none of which decides about the operations of the program.
_DTYPES = {
    (ConfidencePenalty, "weight"): jnp.float32,
    (Cutout, "size"): jnp.int32,
    (LabelSmoothing, "weight"): jnp.float32,
    (Mixup, "alpha"): jnp.float32,
    (NSO, "sigma"): jnp.float32,
    (OptimizerConfig, "learning_rate"): jnp.float32,
    (OptimizerConfig, "weight_decay"): jnp.float32,
    (SAM, "rho"): jnp.float32,
    (SehtD, "lam"): jnp.float32,
    (SehtH, "lam"): jnp.float32,
}

_Settings = TypeVar("_Settings")


def strengths_of(
    optimizer: OptimizerConfig, method: Sequence[Regularizer]
) -> dict[tuple[int, str], Array]:
    """Collect the strengths that a program can take as arguments.

    Args:
        optimizer: Settings of the optimizer, those that the methods change included.
        method: The regularizers.

    Returns:
        The numbers, in float32 or int32.
    """
    strengths = {}
    for place, settings in ((OPTIMIZER, optimizer), *enumerate(method)):
        for field in dataclasses.fields(settings):
            value = getattr(settings, field.name)
            dtype = _DTYPES.get((type(settings), field.name))
            # With 0, mixup is no program with a number in it: it does not draw one.
            if dtype is not None and not (isinstance(settings, Mixup) and value == 0):
                strengths[place, field.name] = jnp.asarray(value, dtype)
    return strengths


def with_strengths(
    optimizer: OptimizerConfig, method: Sequence[Regularizer], strengths: Strengths
) -> tuple[OptimizerConfig, list[Regularizer]]:
    """Put traced numbers in the place of the concrete ones.

    Args:
        optimizer: Settings of the optimizer, those that the methods change included.
        method: The regularizers.
        strengths: The numbers.

    Returns:
        Optimizer and method with these numbers.
    """
    changed = [_set(part, strengths, place) for place, part in enumerate(method)]
    return _set(optimizer, strengths, OPTIMIZER), changed


def _set(settings: _Settings, strengths: Strengths, place: int) -> _Settings:
    changed = copy.copy(settings)
    for (where, name), value in strengths.items():
        if where == place:
            # Past the checks of concrete values.
            object.__setattr__(changed, name, value)
    return changed
