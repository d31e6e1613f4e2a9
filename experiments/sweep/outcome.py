"""What came of a run: a result, or the message with which it diverged. Both are kept."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from rich.console import Console

from experiments.config import TrainConfig
from experiments.errors import DivergedError
from experiments.file_lock import file_lock
from experiments.json_file import check_fields, read_json
from experiments.training.run_directory import read_result, read_starts, write_json

RunFunction: TypeAlias = Callable[[TrainConfig, Console], dict[str, Any]]
"""Carries out a run, or goes on with it, in its run directory, as `train` does."""

_DIVERGED = "diverged.json"


class Outcome(NamedTuple):
    """What came of a run; one of the two is there.

    Attributes:
        result: The result at the last epoch.
        divergence: How it diverged.
    """

    result: dict[str, Any] | None
    divergence: str | None


CarryOut: TypeAlias = Callable[[TrainConfig, RunFunction, Console], Outcome]
"""Carries out a run by a `RunFunction`, unless that was done before, as `carry_out` does."""


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
        return outcome


def read_outcome(directory: Path) -> Outcome | None:
    """Read what came of a run.

    Args:
        directory: The run directory.

    Returns:
        What came of it, or `None` if it is not at its end.

    Raises:
        DamagedFileError: If a file that says it holds something else.
    """
    diverged = read_json(
        directory / _DIVERGED,
        lambda value: check_fields(value, {"message": str}, "the divergence"),
        "Restore it, or move it away: the sweep's command tries the run again.",
    )
    if diverged is not None:
        return Outcome(None, diverged["message"])
    result = read_result(directory)
    return None if result is None else _judge(result)


def read_environment(directory: Path) -> dict[str, Any] | None:
    """Read where a run was made.

    Args:
        directory: The run directory.

    Returns:
        What `describe_environment` said, or `None` if the run is not at its end. What was not the
        same at all of its starts is text, with ``and then`` between the values.
    """
    starts = read_starts(directory)
    if not starts or read_outcome(directory) is None:
        return None
    names = dict.fromkeys(name for start in starts for name in start)
    return {name: _in_turn([start.get(name) for start in starts]) for name in names}


def _in_turn(values: Sequence[Any]) -> Any:
    different = list(dict.fromkeys(values))
    return different[0] if len(different) == 1 else " and then ".join(map(str, different))


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
