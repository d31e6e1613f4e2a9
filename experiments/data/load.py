"""From the name of a data set to the data set."""

from experiments.config import DataConfig
from experiments.data.cifar import VALIDATION_SIZE, load_cifar
from experiments.data.dataset import Dataset
from experiments.data.digits import load_digits


def load_dataset(config: DataConfig) -> Dataset:
    """Load the data set of a configuration.

    Args:
        config: Which images, and where they are.

    Returns:
        The data set.

    Raises:
        MissingDataError: If the files are not there, can not be read, or are another data set.
    """
    if config.dataset == "digits":
        return load_digits()
    size = VALIDATION_SIZE if config.validation_size is None else config.validation_size
    return load_cifar(config.dataset, config.data_dir, size)
