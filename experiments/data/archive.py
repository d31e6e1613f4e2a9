"""Fetching an archive whose checksum is known, so that nothing but the whole of it is used."""

import dataclasses
import hashlib
from http import HTTPStatus
from pathlib import Path

import requests
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from experiments.errors import ExperimentError

CONNECT_SECONDS = 10
READ_SECONDS = 60
_CHUNK = 1 << 16


@dataclasses.dataclass(frozen=True)
class Archive:
    """A file on a server.

    Attributes:
        url: Where it is.
        size: Its bytes.
        sha256: Its checksum, in hexadecimal digits.
    """

    url: str
    size: int
    sha256: str

    @property
    def file_name(self) -> str:
        """The last part of the address."""
        return self.url.rsplit("/", 1)[-1]


def fetch_archive(archive: Archive, directory: Path, console: Console) -> Path:
    """Download an archive, unless it is there already.

    What is downloaded has the suffix ``.part`` until it is whole and its checksum right; after an
    interruption the next call goes on with it, where the server allows that.

    Args:
        archive: Which archive.
        directory: Where it goes.
        console: Where progress is shown.

    Returns:
        The path of the whole file.

    Raises:
        ExperimentError: If the download fails, or the checksum is wrong.
    """
    path = directory / archive.file_name
    if path.exists():
        try:
            check_archive(archive, path)
        except ExperimentError as error:
            raise ExperimentError(
                f"{error}\nMove it away, and the same command downloads it again."
            ) from error
        return path
    part = path.with_name(f"{path.name}.part")
    _download(archive, part, console)
    try:
        check_archive(archive, part)
    except ExperimentError as error:
        part.unlink()
        raise ExperimentError(
            f"What {archive.url} sent was deleted, because it is not what it should be. Try "
            f"again, or find out what is between here and there (a proxy, a login page).\n{error}"
        ) from error
    part.rename(path)
    return path


def check_archive(archive: Archive, path: Path) -> None:
    """Compare a file's size and checksum with those on record.

    Args:
        archive: What the file should be.
        path: The file.

    Raises:
        ExperimentError: If there is no such file, or it is another.
    """
    if not path.is_file():
        raise ExperimentError(f"There is no file {path}; it should be {archive.url}")
    if not is_archive(archive, path):
        raise ExperimentError(
            f"{path} is not {archive.url}, or was damaged on the way:\n"
            f"    it has {path.stat().st_size:,} bytes, SHA-256 {_sha256(path)}\n"
            f"    wanted {archive.size:,} bytes, SHA-256 {archive.sha256}"
        )


def is_archive(archive: Archive, path: Path) -> bool:
    """Tell whether a file is what it should be, by its checksum.

    Args:
        archive: What the file should be.
        path: The file.

    Returns:
        Whether it is.
    """
    return _sha256(path) == archive.sha256


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(archive: Archive, part: Path, console: Console) -> None:
    """Append what is missing to ``part``.

    Raises:
        ExperimentError: If the server can not be reached, refuses, or breaks off.
    """
    done = _size(part)
    if done == archive.size:  # killed before it was renamed
        return
    # A part that is too long is none; the server is asked for the whole.
    done = done if done < archive.size else 0
    # Compressed for the way, the bytes would not be those of the file.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={done}-"} if done else {})
    try:
        with requests.get(
            archive.url, headers=headers, stream=True, timeout=(CONNECT_SECONDS, READ_SECONDS)
        ) as response:
            if response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                part.unlink()  # the server's file is shorter, so this is a part of another one
            response.raise_for_status()
            _save(response, part, done, archive, console)
    except requests.RequestException as error:
        raise ExperimentError(
            f"The download of {archive.url} failed: {error}\n"
            f"{_size(part) / 1e6:.1f} of {archive.size / 1e6:.1f} MB are here; the same command "
            "goes on from there."
        ) from error


def _save(
    response: requests.Response, part: Path, done: int, archive: Archive, console: Console
) -> None:
    """Write the body of a response to the end of ``part``, or over it if it is the whole file."""
    resumed = response.status_code == HTTPStatus.PARTIAL_CONTENT
    with (
        part.open("ab" if resumed else "wb") as file,
        Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            console=console,
        ) as progress,
    ):
        task = progress.add_task(
            archive.file_name, total=archive.size, completed=done if resumed else 0
        )
        for chunk in response.iter_content(_CHUNK):
            file.write(chunk)
            progress.advance(task, len(chunk))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
