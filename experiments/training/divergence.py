"""What the metrics of a few steps say about where a run went wrong."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from experiments.config import TrainConfig

SKIPPED_IN_A_ROW = 20
"""So many steps without a finite one between them are no accident, and end a run that skips."""

# What the methods call the strength of a penalty.
_STRENGTHS = ("lam", "gamma", "strength", "initial_penalty", "relative")


class BadStep(NamedTuple):
    """A step that went wrong.

    Attributes:
        step: Its number, from 1.
        values: The metrics that are no finite number.
    """

    step: int
    values: dict[str, float]

    def __str__(self) -> str:
        """Name the step and its values."""
        values = ", ".join(f"{name} = {value}" for name, value in self.values.items())
        return f"step {self.step} ({values})"


def find_bad_steps(rows: Sequence[Mapping[str, Any]], first_step: int) -> list[BadStep]:
    """Look for steps with a metric that is no finite number.

    Args:
        rows: The metrics of consecutive steps.
        first_step: The number of the first.

    Returns:
        The steps that went wrong.
    """
    found = []
    for step, row in enumerate(rows, start=first_step):
        values = {name: float(value) for name, value in row.items() if not math.isfinite(value)}
        if values:
            found.append(BadStep(step, values))
    return found


def describe_divergence(bad: BadStep, config: TrainConfig) -> str:
    """Say where a run went wrong, and what may keep it from that.

    Args:
        bad: The first step that did.
        config: The configuration of the run.

    Returns:
        A few sentences.
    """
    return (
        f"The run diverged at {bad}; the steps up to {bad.step - 1} were finite. {remedies(config)}"
    )


def remedies(config: TrainConfig) -> str:
    """Name the settings of a run that may keep it from diverging, and which way to turn them.

    Args:
        config: The configuration of the run.

    Returns:
        A sentence.
    """
    names = {field.name for part in config.method for field in dataclasses.fields(part)}
    settings = [
        "a smaller --learning-rate",
        *(f"a smaller {name}" for name in _STRENGTHS if name in names),
        *(["more warmup_steps"] if "warmup_steps" in names else []),
        # 0 is no bound.
        "a smaller --clip-norm" if config.optimizer.clip_norm else "a --clip-norm above 0",
    ]
    return f"Try {' or '.join(settings)}."
