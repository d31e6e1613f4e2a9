"""Preparing CIFAR in TFDS's format: fetched, verified, and put into place when it is whole."""

import shlex
import shutil
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from experiments.data.archive import check_archive, fetch_archive
from experiments.data.cifar import DEFAULT_DATA_DIR, CifarName, open_prepared
from experiments.data.cifar_builder import Cifar10, Cifar100
from experiments.errors import ExperimentError, explain_os_errors
from experiments.file_lock import file_lock

_BUILDERS = {"cifar10": Cifar10, "cifar100": Cifar100}


def prepare_cifar(
    name: CifarName, data_dir: Path | None, archive: Path | None, console: Console
) -> Path:
    """Write CIFAR-10 or CIFAR-100 in TFDS's array_record format, without TensorFlow.

    What is there already is never touched. An interrupted call leaves nothing that could be taken
    for the data set; the next one goes on with the download and starts the rest afresh.

    Args:
        name: Which data set.
        data_dir: The directory that TFDS calls ``data_dir``; ``None`` is TFDS's own default.
        archive: The archive, where it was fetched by other means; ``None`` downloads it.
        console: Where progress is shown.

    Returns:
        The directory of the data set, ``DATA_DIR/NAME/VERSION``.

    Raises:
        MissingDataError: If something else is in the data set's place.
        ExperimentError: If the archive can not be had or is not the right one, or the directory
            can not be written.
    """
    data_dir = (data_dir or DEFAULT_DATA_DIR).expanduser().absolute()
    downloads = data_dir / "downloads"
    staging = downloads / f"{name}.incomplete"
    builder = _BUILDERS[name](data_dir=staging, file_format="array_record")
    target = data_dir / name / str(builder.version)
    with explain_os_errors(f"prepare {name}", data_dir, "--data-dir", "1 GB"):
        if not target.exists():
            with file_lock(downloads / f"{name}.lock"):
                if not target.exists():  # nobody else has prepared it meanwhile
                    path = _archive_path(builder, downloads, archive, console)
                    _write(builder, path, staging, target, console)
                    console.print(f"{_describe(name, target)}.", highlight=False, soft_wrap=True)
                    return target
    console.print(
        f"Already there: {_describe(name, target)}. Nothing was changed; --data-dir prepares it "
        "in another place.",
        highlight=False,
        soft_wrap=True,
    )
    return target


def _archive_path(builder: Cifar10, downloads: Path, given: Path | None, console: Console) -> Path:
    """Verify the archive that is given, or download it.

    Raises:
        ExperimentError: If it can not be had or is not the right one.
    """
    if given is not None:
        check_archive(builder.archive, given.expanduser())
        return given.expanduser()
    try:
        return fetch_archive(builder.archive, downloads, console)
    except ExperimentError as error:
        raise ExperimentError(
            f"{error}\nWithout a network: fetch that file on another machine, bring it here, and "
            f"pass it:\n    python -m experiments data prepare {builder.name} --data-dir "
            f"{shlex.quote(str(downloads.parent))} --archive {builder.archive.file_name}"
        ) from error


def _write(builder: Cifar10, archive: Path, staging: Path, target: Path, console: Console) -> None:
    """Write the data set in a directory of its own, and move it into place."""
    if staging.exists():
        shutil.rmtree(staging)  # left by a kill
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("left"),
        console=console,
    )
    tfds.disable_progress_bar()  # TFDS's own does not know how much is left
    try:
        with progress:
            written = builder.write(archive, progress)
        target.parent.mkdir(exist_ok=True)
        written.rename(target)
    finally:
        tfds.enable_progress_bar()
        shutil.rmtree(staging, ignore_errors=True)


def _describe(name: CifarName, directory: Path) -> str:
    """Say what is in a prepared directory.

    Raises:
        MissingDataError: If it is not what this command writes.
    """
    splits: Any = open_prepared(name, directory).info.splits
    train, test = (splits[split].num_examples for split in ("train", "test"))
    return f"{name}, {train:,} training and {test:,} test images, in {directory}"
