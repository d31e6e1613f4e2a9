"""Files whose place, or whose content, comes from a file: they stay where they belong."""

import os
from pathlib import Path, PurePosixPath

from experiments.errors import ExperimentError


def path_inside(directory: Path, name: str) -> Path:
    """Join a name that was read somewhere to a directory, which it must not leave.

    Args:
        directory: The directory.
        name: A relative path, with slashes.

    Returns:
        The path, which need not exist.

    Raises:
        ValueError: If the name is absolute or has a part ``..``, or if a symbolic link leads out of
            the directory.
    """
    parts = PurePosixPath(name)
    if not name or "\0" in name or parts.is_absolute() or ".." in parts.parts:
        raise ValueError(f"the path {name!r} leads out of its directory")
    path = directory / parts
    # Not by `Path.resolve`, which has an error of its own for links that lead to one another.
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(directory)):
        raise ValueError(
            f"a symbolic link in {path} leads out of {directory}; what belongs to the directory "
            "must be in it (the directory itself may be a link)"
        )
    return path


def output_inside(directory: Path, name: str, what: str) -> Path:
    """Choose a subdirectory for output, which may not be a link to somewhere else.

    Args:
        directory: The directory.
        name: The subdirectory's name.
        what: What goes there, for the message.

    Returns:
        The path, which need not exist.

    Raises:
        ExperimentError: If a symbolic link leads out of the directory.
    """
    try:
        return path_inside(directory, name)
    except ValueError as error:
        raise ExperimentError(f"The {what} can not be written: {error}") from error


def replace_file(path: Path, content: bytes) -> None:
    """Write a file in one piece: a kill leaves the old file or the new one.

    A link in the file's place is replaced, and not followed.

    Args:
        path: Where to; beside it the name with the suffix ``.tmp`` is used meanwhile.
        content: The bytes.
    """
    temporary = temporary_path(path)
    temporary.unlink(missing_ok=True)  # left by a kill; or a link, which must not be followed
    with temporary.open("xb") as file:
        file.write(content)
    temporary.replace(path)


def temporary_path(path: Path) -> Path:
    """Name the file that `replace_file` writes first.

    Args:
        path: The file.

    Returns:
        The path.
    """
    return path.with_suffix(".tmp")
