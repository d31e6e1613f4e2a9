"""The directory of one run: which configuration it belongs to, its starts, and its result."""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from experiments.config import TrainConfig, complete_settings, to_json
from experiments.data.corpus import Corpus
from experiments.data.dataset import Dataset
from experiments.environment import describe_environment
from experiments.errors import ConfigMismatchError

_CONFIG, _ENVIRONMENTS, _RESULT = "config.json", "environment.json", "result.json"


def run_settings(config: TrainConfig, dataset: Dataset | Corpus) -> dict[str, Any]:
    """Write down what a run is told apart by.

    Args:
        config: The configuration of the run.
        dataset: The data.

    Returns:
        JSON values: what `to_json` makes of the configuration, and a checksum of the data.
    """
    return to_json(config) | {"data.checksum": _checksum(dataset)}


def claim_run_directory(directory: Path, config: TrainConfig, dataset: Dataset | Corpus) -> None:
    """Make a run directory, or check that an existing one belongs to the same run.

    Args:
        directory: The run directory.
        config: The configuration of the run.
        dataset: The data, whose checksum is compared too.

    Raises:
        ConfigMismatchError: If the directory belongs to another configuration or to no run.
    """
    settings = run_settings(config, dataset)
    path = directory / _CONFIG
    existing = read_settings(directory)
    if existing is not None:
        existing = complete_settings(existing)
        if existing != settings:
            raise ConfigMismatchError(
                f"{directory} holds a run with another configuration:\n"
                + _difference(existing, settings)
                + "\nPass another --run-dir, or the settings of the run that is there to go on "
                "with it."
            )
        return
    # A kill before the renaming in `write_json` leaves the temporary file, and nothing else.
    left_by_a_kill = _temporary(path)
    if directory.exists() and any(entry != left_by_a_kill for entry in directory.iterdir()):
        raise ConfigMismatchError(
            f"{directory} is not empty and holds no {_CONFIG}, so it is no run directory. "
            "Pass another --run-dir."
        )
    directory.mkdir(parents=True, exist_ok=True)
    write_json(path, settings)


def read_settings(directory: Path) -> dict[str, Any] | None:
    """Read the settings of a run.

    Args:
        directory: The run directory.

    Returns:
        What `to_json` made of its configuration, and ``data.checksum``; `None` if it has not begun.
    """
    path = directory / _CONFIG
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def record_start(directory: Path) -> None:
    """Write down where a run is begun or gone on with, after where that was done before.

    Args:
        directory: The run directory.
    """
    write_json(directory / _ENVIRONMENTS, [*read_starts(directory), describe_environment()])


def read_starts(directory: Path) -> list[dict[str, Any]]:
    """Read where a run was begun and gone on with.

    Args:
        directory: The run directory.

    Returns:
        What `describe_environment` said at each start; nothing, if the run has not begun.
    """
    path = directory / _ENVIRONMENTS
    starts = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    # Earlier versions wrote down the last one alone.
    return [starts] if isinstance(starts, dict) else starts


def read_result(directory: Path) -> dict[str, Any] | None:
    """Read the result of a finished run.

    Args:
        directory: The run directory.

    Returns:
        What `write_result` wrote, or `None` if the run is not finished.
    """
    path = directory / _RESULT
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def write_result(directory: Path, result: dict[str, Any]) -> None:
    """Write the result, which marks the run as finished.

    Args:
        directory: The run directory.
        result: JSON values by name.
    """
    write_json(directory / _RESULT, result)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file in one piece: a kill leaves the old file or the new one.

    Args:
        path: Where to.
        value: JSON values.
    """
    temporary = _temporary(path)
    temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)


def _temporary(path: Path) -> Path:
    return path.with_suffix(".tmp")


def _difference(existing: dict[str, Any], wanted: dict[str, Any]) -> str:
    nothing = "(not set)"
    lines = [
        f"  {name}: there {existing.get(name, nothing)}, asked for {wanted.get(name, nothing)}"
        for name in sorted(existing | wanted)
        if existing.get(name, nothing) != wanted.get(name, nothing)
    ]
    return "\n".join(lines)


def _checksum(dataset: Dataset | Corpus) -> int:
    checksum = 0
    for split in (dataset.train, dataset.validation, dataset.test):
        for array in split:
            checksum = zlib.crc32(np.asarray(array).tobytes(), checksum)
    return checksum
