"""The directory of one run: which configuration it belongs to, its starts, and its result."""

import contextlib
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from experiments.config import (
    TrainConfig,
    check_settings,
    complete_settings,
    deciding_settings,
    to_json,
)
from experiments.data.corpus import Corpus
from experiments.data.dataset import Dataset
from experiments.environment import describe_environment
from experiments.errors import ConfigMismatchError, DamagedFileError, RunningError, option
from experiments.file_lock import owner_lock
from experiments.json_file import Scalar, check_fields, check_kind, read_json
from experiments.safe_files import path_inside, replace_file, temporary_path

_CONFIG, _ENVIRONMENTS, _RESULT = "config.json", "environment.json", "result.json"
_LOCK = "run.lock"

CHECKSUM = "data.checksum"
"""The setting of a run that `to_json` does not write: the checksum of its data."""

# What a run is told apart by and no option sets.
_NO_OPTIONS = {"name": "the preset", CHECKSUM: "the checksum of the data"}

_RESULT_FIELDS = {
    "name": str,
    "method": list[str],
    "seed": int,
    "epochs": int,
    "steps": int,
    "training_seconds": float,
    "median_step_time": float,
}


def claim_run_directory(
    directory: Path, config: TrainConfig, dataset: Dataset | Corpus
) -> dict[str, Any]:
    """Make a run directory, or check that an existing one belongs to the same run.

    Its ``config.json`` stays as it was written when the run began.

    Args:
        directory: The run directory.
        config: The configuration of the run.
        dataset: The data, whose checksum is compared too.

    Returns:
        The settings by which the run is told apart, JSON values: what `to_json` makes of the
        configuration, and a checksum of the data.

    Raises:
        ConfigMismatchError: If the directory belongs to another configuration or to no run.
        DamagedFileError: If a file in it is no run's, or a link in it leads out of it.
    """
    settings = to_json(config) | {CHECKSUM: data_checksum(dataset)}
    path = directory / _CONFIG
    existing = read_settings(directory)
    if existing is not None:
        there, wanted = map(deciding_settings, (complete_settings(existing), settings))
        if there != wanted:
            raise ConfigMismatchError(
                f"{directory} holds a run with another configuration:\n"
                + _difference(there, wanted)
                + "\nPass another --run-dir, or the settings of the run that is there to go on "
                "with it."
            )
        _check_links(directory)
        return settings
    # A kill before the renaming in `write_json` leaves the temporary file, and nothing else.
    left_by_a_kill = temporary_path(path)
    if directory.exists() and any(entry != left_by_a_kill for entry in directory.iterdir()):
        raise ConfigMismatchError(
            f"{directory} is not empty and holds no {_CONFIG}, so it is no run directory. "
            "Pass another --run-dir."
        )
    directory.mkdir(parents=True, exist_ok=True)
    write_json(path, settings)
    return settings


def data_checksum(dataset: Dataset | Corpus) -> int:
    """Compute the checksum by which runs on different data are told apart.

    Args:
        dataset: The data.

    Returns:
        That of all arrays of all splits.
    """
    checksum = 0
    for split in (dataset.train, dataset.validation, dataset.test):
        for array in split:
            checksum = zlib.crc32(np.asarray(array).tobytes(), checksum)
    return checksum


@contextlib.contextmanager
def hold_run_directory(directory: Path) -> Iterator[None]:
    """Keep other processes out of a run directory.

    Two that write to one log and delete one another's half-written checkpoints would lose the run.
    The system lets go of it when this process dies.

    Args:
        directory: The run directory.

    Yields:
        Nothing.

    Raises:
        RunningError: If another process is at the run.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(owner_lock(directory / _LOCK))
        except BlockingIOError as error:
            raise RunningError(
                f"The run in {directory} is being carried out by {error}. Wait for it, or end it, "
                "and give the same command again to go on; or pass another --run-dir."
            ) from error
        yield


def read_settings(directory: Path) -> dict[str, Any] | None:
    """Read the settings of a run.

    Args:
        directory: The run directory.

    Returns:
        What `to_json` made of its configuration, and ``data.checksum``; `None` if it has not begun.

    Raises:
        DamagedFileError: If the file with the settings holds something else.
    """
    return read_json(
        directory / _CONFIG,
        check_settings,
        "Restore it, or pass another --run-dir: without it nobody knows what the run is.",
    )


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

    Raises:
        DamagedFileError: If the file holds something else.
    """
    fix = "Restore it, or move it away: only the record of machines and versions is lost with it."
    return read_json(directory / _ENVIRONMENTS, _check_starts, fix) or []


def read_result(directory: Path) -> dict[str, Any] | None:
    """Read the result of a finished run.

    Args:
        directory: The run directory.

    Returns:
        What `write_result` wrote, or `None` if the run is not finished.

    Raises:
        DamagedFileError: If the file holds something else.
    """
    return read_json(
        directory / _RESULT,
        _check_result,
        "Restore it, or move it away: the command that made the run measures again from the last "
        "checkpoint.",
    )


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
    replace_file(path, (json.dumps(value, indent=2) + "\n").encode())


def _check_links(directory: Path) -> None:
    """Check that what is written into a run directory, and deleted there, is in it.

    Raises:
        DamagedFileError: If a symbolic link leads out of it.
    """
    for place, directories, files in os.walk(directory):  # which follows no links
        for name in (*directories, *files):
            path = Path(place, name)
            if path.is_symlink():
                try:
                    path_inside(directory, str(path.relative_to(directory)))
                except ValueError as error:
                    raise DamagedFileError(f"{error}. Put there what it leads to.") from error


def _check_starts(value: Any) -> list[dict[str, Any]]:
    # Earlier versions wrote down the last one alone.
    starts = [value] if isinstance(value, dict) else value
    return check_kind(starts, list[dict[str, Scalar]], "the list of starts")


def _check_result(value: Any) -> dict[str, Any]:
    """Check what is read of every result.

    Raises:
        ValueError: If it is no result.
    """
    result = check_fields(value, _RESULT_FIELDS, "the result")
    for name, figure in result.items():
        if name not in _RESULT_FIELDS and not isinstance(figure, int | float):
            raise ValueError(f"{name!r} of the result is {figure!r}, and no number")
    return result


def _difference(existing: dict[str, Any], wanted: dict[str, Any]) -> str:
    nothing = "(not set)"
    lines = [
        f"  {_NO_OPTIONS.get(name) or option(name)}: there {existing.get(name, nothing)}, asked "
        f"for {wanted.get(name, nothing)}"
        for name in sorted(existing | wanted)
        if existing.get(name, nothing) != wanted.get(name, nothing)
    ]
    return "\n".join(lines)
