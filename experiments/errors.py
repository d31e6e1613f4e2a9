"""Errors that a person can act on; the command line prints them without a traceback."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class ExperimentError(Exception):
    """Base of all errors that say what the user can do about them."""


class UsageError(ExperimentError):
    """A command line can not be understood."""


class MissingDataError(ExperimentError):
    """A data set is not where it was looked for."""


class DamagedFileError(ExperimentError):
    """A file of a run, a sweep or a study is not what the project has written."""


class SettingError(ExperimentError):
    """A setting is out of its range, or does not fit the others or the data.

    No `ValueError`: the parser of the command line takes those for its own, and prints what it was
    building instead of the option.
    """


class ConfigMismatchError(ExperimentError):
    """A run directory belongs to another configuration."""


class RunningError(ExperimentError):
    """Another process is at the run."""


class DamagedCheckpointError(ExperimentError):
    """No checkpoint of a run is what was written."""


class StorageError(ExperimentError):
    """The database of a sweep's queue can not be used, perhaps for a moment alone."""


class DivergedError(ExperimentError):
    """A loss or gradient became infinite or not a number.

    Attributes:
        state: The state of the run before the step at which it did, if there is one to look at.
    """

    def __init__(self, message: str, state: Any = None) -> None:
        """Take a message and a state.

        Args:
            message: What happened, and what the user can do.
            state: The state.
        """
        super().__init__(message)
        self.state = state


def option(setting: str) -> str:
    """Write the name of a setting as it is typed, for a message.

    Args:
        setting: Name of a field of a configuration, ``train_images`` or ``data.train_images``.

    Returns:
        The option of the command line, ``--train-images``.
    """
    return "--" + setting.rpartition(".")[2].replace("_", "-")


@contextlib.contextmanager
def explain_os_errors(what: str, directory: Path, option: str, room: str) -> Iterator[None]:
    """Say of an error of the file system what it was for, and what to do.

    Args:
        what: What is done meanwhile, ``prepare cifar10`` for one.
        directory: Where that writes to.
        option: The command line's option that chooses the directory.
        room: What there must be room for.

    Yields:
        Nothing.

    Raises:
        ExperimentError: In place of an `OSError`.
    """
    try:
        yield
    except OSError as error:
        raise ExperimentError(
            f"Could not {what} in {directory}: {error}\nPass {option} with a directory that can be "
            f"written and has room for {room}."
        ) from error
