"""The command `python -m experiments data prepare`."""

import dataclasses
from pathlib import Path

import tyro
from rich.console import Console

from experiments.data.cifar import CifarName
from experiments.data.prepare import prepare_cifar


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
    """Which data set to prepare, and where."""

    dataset: tyro.conf.Positional[CifarName]
    """Which data set."""
    data_dir: Path | None = None
    """TFDS's data directory, where it goes; by default TFDS's own, ~/tensorflow_datasets."""
    archive: Path | None = None
    """The official archive (cifar-10-binary.tar.gz, cifar-100-binary.tar.gz), where it was fetched
    by other means; by default it is downloaded to the data directory's downloads."""


def run_prepare(config: PrepareConfig, console: Console) -> Path:
    """Prepare a data set; after an interruption the same command goes on.

    Args:
        config: Which, and where.
        console: Where progress is shown.

    Returns:
        The directory of the data set.

    Raises:
        ExperimentError: If it can not be prepared.
    """
    return prepare_cifar(config.dataset, config.data_dir, config.archive, console)
