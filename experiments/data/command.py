"""The command `python -m experiments data prepare`."""

import dataclasses
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console

from experiments.data.cifar import CifarName
from experiments.data.prepare import prepare_cifar
from experiments.data.wikitext import prepare_wikitext2
from experiments.errors import SettingError


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
    """Which data set to prepare, and where."""

    dataset: tyro.conf.Positional[CifarName | Literal["wikitext2"]]
    """Which data set."""
    data_dir: Path | None = None
    """Where it goes: TFDS's data directory, by default TFDS's own, ~/tensorflow_datasets.
    WikiText-2 gets the directory wikitext-2 there."""
    archive: Path | None = None
    """The official archive (cifar-10-binary.tar.gz, cifar-100-binary.tar.gz), where it was fetched
    by other means; by default it is downloaded to the data directory's downloads. Not for
    wikitext2, which has three files."""


def run_prepare(config: PrepareConfig, console: Console) -> Path:
    """Prepare a data set; after an interruption the same command goes on.

    Args:
        config: Which, and where.
        console: Where progress is shown.

    Returns:
        The directory of the data set.

    Raises:
        ExperimentError: If it can not be prepared.
        SettingError: If wikitext2 is given an archive.
    """
    if config.dataset == "wikitext2":
        if config.archive is not None:
            raise SettingError(
                f"--archive must be left out for wikitext2, which is none, not {config.archive}: "
                "bring its three files to DATA_DIR/wikitext-2"
            )
        return prepare_wikitext2(config.data_dir, console)
    return prepare_cifar(config.dataset, config.data_dir, config.archive, console)
