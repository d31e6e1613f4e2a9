"""A lock between processes of one machine, which the system frees when a process dies."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold a lock on a file, after waiting for whoever has it.

    Args:
        path: The file, which is made if it does not exist, and stays with what is in it.

    Yields:
        Nothing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not "w": it would empty a file of the user's that happens to have this name.
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
