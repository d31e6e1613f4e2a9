"""A lock between processes of one machine, which the system frees when a process dies."""

import contextlib
import fcntl
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path

_OWNER = re.compile(r"process \d+ on [\w.-]+")


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


@contextlib.contextmanager
def owner_lock(path: Path) -> Iterator[None]:
    """Hold a lock on a file, in which stands who has it, unless somebody has it already.

    Args:
        path: The file, which is made if it does not exist. What is in it is lost.

    Yields:
        Nothing.

    Raises:
        BlockingIOError: If another process has it; its only argument says which.
    """
    with path.open("a+", encoding="utf-8", errors="replace") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            owner = _OWNER.match(file.read(200))
            raise BlockingIOError(owner[0] if owner else "another process") from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        yield
