"""From the name of a data set to the data set."""

import functools
from collections.abc import Callable
from typing import TypeAlias

from experiments.config import DataConfig, TextConfig
from experiments.data.cifar import VALIDATION_SIZE, load_cifar
from experiments.data.corpus import Corpus
from experiments.data.dataset import Dataset
from experiments.data.digits import load_digits
from experiments.data.label_noise import with_label_noise
from experiments.data.pydoc import load_pydoc_corpus
from experiments.data.wikitext import load_wikitext2

LoadFunction: TypeAlias = Callable[[DataConfig | TextConfig], Dataset | Corpus]


def load_data(config: DataConfig | TextConfig) -> Dataset | Corpus:
    """Load the images, or the text, of a configuration.

    Args:
        config: Which, and where they are.

    Returns:
        The data.

    Raises:
        MissingDataError: If the files are not there, can not be read, or are another data set.
        SettingError: If there are fewer than are asked for.
    """
    return load_corpus(config) if isinstance(config, TextConfig) else load_dataset(config)


@functools.lru_cache(maxsize=1)
def load_data_once(config: DataConfig | TextConfig) -> Dataset | Corpus:
    """Load data, unless this process has loaded the same last: for many runs one after another.

    Files that have changed meanwhile are not noticed.

    Args:
        config: Which, and where they are.

    Returns:
        The data.

    Raises:
        MissingDataError: If the files are not there, can not be read, or are another data set.
        SettingError: If there are fewer than are asked for.
    """
    return load_data(config)


def load_dataset(config: DataConfig) -> Dataset:
    """Load the data set of a configuration.

    Args:
        config: Which images, and where they are.

    Returns:
        The data set.

    Raises:
        MissingDataError: If the files are not there, can not be read, or are another data set.
        SettingError: If there are fewer images than are asked for.
    """
    if config.dataset == "digits":
        data = load_digits()
    else:
        size = VALIDATION_SIZE if config.validation_size is None else config.validation_size
        data = load_cifar(
            config.dataset, config.data_dir, size, config.train_images, config.test_images
        )
    return with_label_noise(data, config.label_noise) if config.label_noise else data


def load_corpus(config: TextConfig) -> Corpus:
    """Load the text of a configuration.

    Args:
        config: Which text, how much of it, and where it is.

    Returns:
        The text.

    Raises:
        MissingDataError: If the files are not there, or are another text.
        SettingError: If the text is shorter than what is asked for.
    """
    if config.dataset == "pydoc":
        return load_pydoc_corpus(config.train_tokens, config.evaluation_tokens)
    return load_wikitext2(config.data_dir, config.train_tokens, config.evaluation_tokens)
