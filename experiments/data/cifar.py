"""CIFAR-10 from the files of TensorFlow Datasets (TFDS), read without TensorFlow."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from experiments.data.dataset import Dataset, make_dataset, stratified_holdout
from experiments.errors import MissingDataError

DEFAULT_DATA_DIR = Path("~/tensorflow_datasets")
_SPLIT_SEED = 0

_HOW_TO_GET_IT = """\
Pass --data-dir with the directory that contains {name}/<version>/dataset_info.json.
To make one, on any machine with TensorFlow (reading it needs none):
    python -c "import tensorflow_datasets as tfds; \\
        tfds.builder('{name}', data_dir='DIR', file_format='array_record').download_and_prepare()"\
"""


def load_cifar10(data_dir: Path | None, validation_size: int) -> Dataset:
    """Load CIFAR-10 into memory.

    Args:
        data_dir: The directory that TFDS calls ``data_dir``; ``None`` is TFDS's own default.
        validation_size: Number of training images to hold out, with equal shares of the classes.

    Returns:
        The data set; images ``(32, 32, 3)`` with pixel values from 0 to 255.

    Raises:
        MissingDataError: If the data are not there or not in the array_record format.
    """
    return load_tfds_images("cifar10", data_dir, validation_size)


def load_tfds_images(name: str, data_dir: Path | None, validation_size: int) -> Dataset:
    """Load a TFDS data set of images with the features ``image`` and ``label``.

    Args:
        name: TFDS's name of the data set.
        data_dir: The directory that TFDS calls ``data_dir``; ``None`` is TFDS's own default.
        validation_size: Number of training images to hold out, with equal shares of the classes.

    Returns:
        The data set.

    Raises:
        MissingDataError: If the data are not there or not in the array_record format.
    """
    builder = tfds.builder_from_directory(_find_version(name, data_dir or DEFAULT_DATA_DIR))
    features: Any = builder.info.features
    images, labels = _read(builder, "train")
    train, validation = stratified_holdout(labels, validation_size, _SPLIT_SEED)
    return make_dataset(
        train=(images[train], labels[train]),
        validation=(images[validation], labels[validation]),
        test=_read(builder, "test"),
        num_classes=features["label"].num_classes,
    )


def _find_version(name: str, data_dir: Path) -> Path:
    """Find the directory of the newest prepared version.

    Raises:
        MissingDataError: If there is none.
    """
    data_dir = data_dir.expanduser()
    versions = [path.parent for path in data_dir.glob(f"{name}/*/dataset_info.json")]
    if not versions:
        state = "has no such files" if data_dir.is_dir() else "does not exist"
        raise MissingDataError(
            f"No {name} data: looked for {data_dir.absolute()}/{name}/<version>/dataset_info.json, "
            f"and {data_dir} {state}.\n" + _HOW_TO_GET_IT.format(name=name)
        )
    return max(versions, key=lambda path: tuple(int(part) for part in path.name.split(".")))


def _read(builder: tfds.core.DatasetBuilder, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Decode one split.

    Raises:
        MissingDataError: If the files are in a format that cannot be read without TensorFlow.
    """
    file_format = builder.info.file_format
    if file_format is not tfds.core.FileFormat.ARRAY_RECORD:
        raise MissingDataError(
            f"The {builder.name} data in {builder.data_dir} are stored as "
            f"{file_format and file_format.value}; only array_record can be read "
            "without TensorFlow.\n" + _HOW_TO_GET_IT.format(name=builder.name)
        )
    with _quiet_absl():
        features: Any = builder.info.features
        # TFDS's decorator hides the method's signature from type checkers.
        as_data_source: Any = builder.as_data_source
        source = as_data_source(split=split)
        labels = np.empty(len(source), np.int32)
        images = np.empty((len(source), *features["image"].shape), np.uint8)
        for index, example in enumerate(source):
            images[index] = example["image"]
            labels[index] = example["label"]
    return images, labels


@contextmanager
def _quiet_absl() -> Iterator[None]:
    # TFDS recommends OpenCV for decoding at every first read; Pillow does.
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
