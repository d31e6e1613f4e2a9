"""From a configuration and its data to the task."""

from collections.abc import Sequence

from experiments.config import (
    DataConfig,
    LanguageModelConfig,
    ModelConfig,
    TextConfig,
    TrainConfig,
)
from experiments.data.corpus import Corpus
from experiments.data.dataset import Dataset
from experiments.models.build import build_language_model, build_model
from experiments.regularizers import Regularizer
from experiments.tasks.base import Task
from experiments.tasks.classification import Classification
from experiments.tasks.language import LanguageModelling, check_methods


def build_task(
    config: TrainConfig, data: Dataset | Corpus, method: Sequence[Regularizer] = ()
) -> Task:
    """Build the task of a configuration.

    Args:
        config: The configuration.
        data: Its data.
        method: The regularizers, each of which may change the network.

    Returns:
        The task.

    Raises:
        SettingError: If a method makes no sense for the data, or wants something that the network
            does not have.
        TypeError: If the data are not of the configuration's kind.
    """
    match config.data, config.model, data:
        case TextConfig() as text, LanguageModelConfig() as network, Corpus():
            check_methods(method)
            model = build_language_model(network, len(data.vocabulary), text.length, method)
            return LanguageModelling(data, model, config.batch_size, text.length)
        case DataConfig() as images, ModelConfig() as network, Dataset():
            model = build_model(network, data.num_classes, method)
            return Classification(data, model, config.batch_size, images.augmentation)
        case _:
            raise TypeError(f"data must be those of {config.data}, not a {type(data).__name__}")
