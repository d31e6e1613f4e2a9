"""What came of a run: a result, or the message with which it diverged. Both are kept."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from rich.console import Console

from experiments.config import TrainConfig
from experiments.environment import describe_environment
from experiments.errors import DivergedError
from experiments.file_lock import file_lock
from experiments.training.run_directory import read_result, write_json

RunFunction: TypeAlias = Callable[[TrainConfig, Console], dict[str, Any]]
"""Carries out a run, or goes on with it, in its run directory, as `train` does."""

_DIVERGED, _ENVIRONMENT = "diverged.json", "environment.json"


class Outcome(NamedTuple):
    """What came of a run; one of the two is there.

    Attributes:
        result: The result at the last epoch.
        divergence: How it diverged.
    """

    result: dict[str, Any] | None
    divergence: str | None


def carry_out(config: TrainConfig, run: RunFunction, console: Console) -> Outcome:
    """Carry out a run, unless that was done before.

    Another process that is at the same run is waited for: one that was suspended for so long that
    its run was given away may come back.

    Args:
        config: The configuration.
        run: Carries out the run.
        console: Where progress is shown.

    Returns:
        What came of it.
    """
    directory = config.resolved_run_dir
    with file_lock(directory.parent / f"{directory.name}.lock"):
        outcome = read_outcome(directory)
        if outcome is not None:
            return outcome
        try:
            outcome = _judge(run(config, console))
        except DivergedError as error:
            outcome = Outcome(None, str(error))
            write_json(directory / _DIVERGED, {"message": str(error)})
        write_json(directory / _ENVIRONMENT, describe_environment())
        return outcome


def read_outcome(directory: Path) -> Outcome | None:
    """Read what came of a run.

    Args:
        directory: The run directory.

    Returns:
        What came of it, or `None` if it is not at its end.
    """
    diverged = _read(directory / _DIVERGED)
    if diverged is not None:
        return Outcome(None, diverged["message"])
    result = read_result(directory)
    return None if result is None else _judge(result)


def read_environment(directory: Path) -> dict[str, Any] | None:
    """Read where a run was brought to its end.

    Args:
        directory: The run directory.

    Returns:
        What `describe_environment` said there, or `None` if the run is not at its end.
    """
    return _read(directory / _ENVIRONMENT)


def _judge(result: Mapping[str, Any]) -> Outcome:
    """Look for a network that the last step destroyed, which no training loss has shown."""
    wrong = {
        name: value
        for name, value in result.items()
        if name.endswith("_loss") and not math.isfinite(value)
    }
    if wrong:
        values = ", ".join(f"{name} = {value}" for name, value in wrong.items())
        return Outcome(None, f"The network after the last step is not finite ({values}).")
    return Outcome(dict(result), None)


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
