"""Databases for the queue: SQLite's files, and a PostgreSQL server where one is installed."""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import psycopg
import pytest
import sweep_worker

INITDB_OPTIONS = ("--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync")
SERVER_OPTIONS = ("-F", "-c", "listen_addresses=")  # nothing is kept; a socket and no port


@pytest.fixture(params=["sqlite", "postgresql"])
def storage(request, tmp_path):
    """The URL of an empty database."""
    if request.param == "sqlite":
        return sqlite(tmp_path)
    server = request.getfixturevalue("postgresql_server")
    name = f"test_{tmp_path.parent.name}_{tmp_path.name}".replace("-", "_").lower()
    with psycopg.connect(server.format("postgres"), autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    return server.format(name)


@pytest.fixture
def open_queue(tmp_path):
    """Open a queue in a file, once for each worker."""

    def opened(sweep=sweep_worker.SWEEP, num_seeds=sweep_worker.NUM_SEEDS):
        return sweep_worker.open_queue(sqlite(tmp_path), tmp_path, sweep, num_seeds)

    return opened


@pytest.fixture(scope="session")
def postgresql_server():
    """Start a server that is seen on this machine alone; the URL lacks the database's name."""
    programs = find_programs()
    if programs is None:
        pytest.skip("no PostgreSQL server is installed (Debian: apt-get install postgresql)")
    user = ordinary_user()
    with tempfile.TemporaryDirectory(prefix="postgresql-") as directory:
        if user is not None:
            os.chown(directory, pwd.getpwnam(user).pw_uid, -1)
        data = Path(directory) / "data"
        options = {"user": user, "cwd": directory, "stdout": subprocess.DEVNULL}
        subprocess.run(
            [programs / "initdb", "-D", data, "-U", "tester", *INITDB_OPTIONS],
            check=True,
            **options,
        )
        with (Path(directory) / "log").open("w+") as log:
            server = subprocess.Popen(
                [programs / "postgres", "-D", data, "-k", directory, *SERVER_OPTIONS],
                stderr=log,
                **options,
            )
            try:
                url = f"postgresql://tester@/{{}}?host={directory}"
                wait_for(server, url.format("postgres"), log)
                yield url
            finally:
                server.send_signal(signal.SIGQUIT)  # its immediate shutdown
                server.wait()


def sqlite(tmp_path):
    return f"sqlite:///{tmp_path / 'sweep.db'}"


def find_programs():
    """Find the directory of the server's programs, which Debian keeps out of the path."""
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).resolve().parent
    versions = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    return max((path.parent for path in versions), default=None)


def ordinary_user():
    """Choose who runs the server, which refuses to run as root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    return pytest.skip("PostgreSQL refuses to run as root, and there is no other user")


def wait_for(server, url, log):
    while server.poll() is None:
        try:
            psycopg.connect(url).close()
        except psycopg.OperationalError:
            time.sleep(0.1)
        else:
            return
    log.seek(0)
    pytest.fail(f"PostgreSQL ended: {log.read()}")
