"""A lock that all workers on one database share, and that is freed when a process dies."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy
from sqlalchemy.engine import URL

from experiments.file_lock import file_lock


@contextlib.contextmanager
def database_lock(url: URL, name: str) -> Iterator[None]:
    """Hold a lock that all workers on one database share, after waiting for whoever has it.

    Args:
        url: ``sqlite:///FILE``, whose lock is a file beside it, or ``postgresql://...``, where it
            is an advisory lock of the server's.
        name: What is locked.

    Yields:
        Nothing.
    """
    if url.get_backend_name() == "sqlite":
        with file_lock(Path(f"{url.database}.lock")):
            yield
        return
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
    with engine.begin() as connection:
        # It ends with the transaction, and so with the connection.
        connection.execute(
            sqlalchemy.text("SELECT pg_advisory_xact_lock(hashtext(:name))"), {"name": name}
        )
        yield
