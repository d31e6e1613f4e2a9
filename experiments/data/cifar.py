"""CIFAR-10 and CIFAR-100 from the files of TensorFlow Datasets (TFDS), read without TensorFlow."""

import logging
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import numpy as np
import tensorflow_datasets as tfds

from experiments.data.dataset import Dataset, make_dataset, stratified_holdout
from experiments.errors import MissingDataError, SettingError
from experiments.json_file import check_fields, parse_json

CifarName: TypeAlias = Literal["cifar10", "cifar100"]

DEFAULT_DATA_DIR = Path("~/tensorflow_datasets")
IMAGE_SHAPE = (32, 32, 3)
VALIDATION_SIZE = 1000  # where the configuration says nothing
NUM_CLASSES = {"cifar10": 10, "cifar100": 100}
_SPLIT_SEED = 0
_FEATURES = "tensorflow_datasets.core.features."
# The classes of which TFDS makes the features, and the field with what is told of each.
_FIELD_OF_CLASS = {
    f"{_FEATURES}text_feature.Text": "text",
    f"{_FEATURES}image_feature.Image": "image",
    f"{_FEATURES}class_label_feature.ClassLabel": "classLabel",
}
_FEATURES_DICT = f"{_FEATURES}features_dict.FeaturesDict"
_MOST_EXAMPLES = 1_000_000  # an array of so many is made before the first is read

_HOW_TO_GET_IT = """\
Pass --data-dir with the directory that contains {name}/<version>/dataset_info.json.
To make one, with a network, or from an archive that was fetched elsewhere (--archive FILE):
    python -m experiments data prepare {name} --data-dir {data_dir}"""


def load_cifar(
    name: CifarName,
    data_dir: Path | None,
    validation_size: int,
    train_images: int | None = None,
    test_images: int | None = None,
) -> Dataset:
    """Load CIFAR-10 or CIFAR-100, with its fine labels, into memory.

    Args:
        name: Which of them, as TFDS names it.
        data_dir: The directory that TFDS calls ``data_dir``; ``None`` is TFDS's own default.
        validation_size: Number of training images to hold out, with equal shares of the classes.
        train_images: Number of training images to take, the first ones, those held out included;
            ``None`` is all.
        test_images: Number of test images to take, likewise.

    Returns:
        The data set; images ``(32, 32, 3)`` with pixel values from 0 to 255.

    Raises:
        MissingDataError: If the data are not there, not whole, not in the array_record format, or
            another data set.
        SettingError: If nothing is left to train on, or more images are wanted than there are.
    """
    directory = _find_version(name, data_dir or DEFAULT_DATA_DIR)
    builder = open_prepared(name, directory)
    images, labels = _read(builder, name, directory, "train", train_images)
    if validation_size >= len(labels):
        raise SettingError(
            f"--validation-size {validation_size} leaves none of the {len(labels)} training images "
            f"of {name}; take a smaller one"
        )
    train, validation = stratified_holdout(labels, validation_size, _SPLIT_SEED)
    return make_dataset(
        train=(images[train], labels[train]),
        validation=(images[validation], labels[validation]),
        test=_read(builder, name, directory, "test", test_images),
        num_classes=NUM_CLASSES[name],
    )


def open_prepared(name: CifarName, directory: Path) -> tfds.core.DatasetBuilder:
    """Open a prepared data set, and check that it is what its name says.

    Args:
        name: Which data set it should be.
        directory: ``DATA_DIR/NAME/VERSION``.

    Returns:
        TFDS's builder, for reading.

    Raises:
        MissingDataError: If the directory holds no data set, one that is not whole or not in the
            array_record format, or another one.
    """
    try:
        _check_features(directory / "features.json")
        builder = tfds.builder_from_directory(directory)
        fault = _find_fault(builder, name, directory)
    except Exception as error:  # TFDS says nothing of what it raises at a damaged file
        fault = f"can not be read, {type(error).__name__}: {error}"
        raise MissingDataError(_unusable(name, directory, fault)) from error
    if fault:
        raise MissingDataError(_unusable(name, directory, fault))
    return builder


def _check_features(path: Path) -> None:
    """Check that a ``features.json`` has nothing in it but features of the classes used here.

    TFDS imports whatever module such a file names, and so runs it.

    Raises:
        ValueError: If it has.
    """
    whole = parse_json(path.read_bytes())
    _check_feature(whole, {_FEATURES_DICT: "featuresDict"}, path.name)
    content = check_fields(whole["featuresDict"], {"features": dict}, path.name)
    for name, feature in content["features"].items():
        _check_feature(feature, _FIELD_OF_CLASS, f"the feature {name!r} in {path.name}")


def _check_feature(feature: Any, field_of_class: Mapping[str, str], what: str) -> None:
    """Check the class of a feature, and that it has no other content.

    Raises:
        ValueError: If it is another class or has another content.
    """
    name = check_fields(feature, {"pythonClassName": str}, what)["pythonClassName"]
    if name not in field_of_class:
        raise ValueError(f"{what} is a {name}, and none of {', '.join(field_of_class)}")
    others = feature.keys() - {"pythonClassName", field_of_class[name]}
    if others:
        raise ValueError(f"{what} has the unknown field {min(others)!r}")
    check_fields(feature, {field_of_class[name]: dict}, what)


def _find_fault(builder: tfds.core.DatasetBuilder, name: CifarName, directory: Path) -> str | None:
    """Find out why data are not what their name says; the answer goes on after "the data"."""
    info = builder.info
    if info.file_format is not tfds.core.FileFormat.ARRAY_RECORD:
        return (
            f"are stored as {info.file_format and info.file_format.value}; only array_record can "
            "be read without TensorFlow"
        )
    features = dict(cast("Any", info.features).items())
    shape = getattr(features.get("image"), "shape", None)
    if shape != IMAGE_SHAPE:
        return f"are another data set: the images have the shape {shape}, not {IMAGE_SHAPE}"
    classes = getattr(features.get("label"), "num_classes", None)
    if classes != NUM_CLASSES[name]:
        return f"are another data set: they have {classes} classes, not {NUM_CLASSES[name]}"
    return _find_fault_of_splits(info.splits, directory)


def _find_fault_of_splits(splits: Any, directory: Path) -> str | None:
    """Find out what is wrong with the splits, likewise."""
    for split in ("train", "test"):
        if split not in splits:
            return f"are not whole: there is no split {split!r}"
        for path in splits[split].filepaths:
            if Path(path).parent != directory:  # its name is made from the data's own files
                return f"name a file outside of their directory: {path}"
            if not path.exists():
                return f"are not whole: {path.name} is missing"
        size = splits[split].num_examples
        if not 0 < size <= _MOST_EXAMPLES:
            return f"are not whole: the split {split!r} has {size} examples"
    return None


def _unusable(name: str, directory: Path, fault: str) -> str:
    return (
        f"The {name} data in {directory} {fault}.\nMove them away, or take another directory and "
        f"pass it to both commands, DIR here:\n"
        f"    python -m experiments data prepare {name} --data-dir DIR"
    )


def _find_version(name: str, data_dir: Path) -> Path:
    """Find the directory of the newest prepared version.

    Raises:
        MissingDataError: If there is none.
    """
    data_dir = data_dir.expanduser()
    found = [path.parent for path in data_dir.glob(f"{name}/*/dataset_info.json")]
    # A TFDS that was killed leaves directories with other names.
    versions = [path for path in found if tfds.core.Version.is_valid(path.name)]
    if not versions:
        state = "has no such files" if data_dir.is_dir() else "does not exist"
        raise MissingDataError(
            f"No {name} data: looked for {data_dir.absolute()}/{name}/<version>/dataset_info.json, "
            f"and {data_dir} {state}.\n"
            + _HOW_TO_GET_IT.format(name=name, data_dir=shlex.quote(str(data_dir)))
        )
    return max(versions, key=lambda path: tfds.core.Version(path.name))


def _read(
    builder: tfds.core.DatasetBuilder,
    name: CifarName,
    directory: Path,
    split: str,
    num_images: int | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Decode the first images of one split, or all.

    Raises:
        MissingDataError: If it can not be decoded, or is not what it should be.
        SettingError: If it has fewer images.
    """
    size = builder.info.splits[split].num_examples
    if num_images is not None and num_images > size:
        raise SettingError(
            f"--{split}-images must be at most {size:,}, the {split} images of the {name} data in "
            f"{directory}, not {num_images:,}"
        )
    try:
        with _quiet_absl():
            images, labels = _decode(builder, split, size if num_images is None else num_images)
    except Exception as error:  # array_record, protobuf, TFDS and Pillow each have their own
        fault = f"can not be read, in the split {split!r}, {type(error).__name__}: {error}"
        raise MissingDataError(_unusable(name, directory, fault)) from error
    if not np.all((labels >= 0) & (labels < NUM_CLASSES[name])):
        fault = f"have labels from {labels.min()} to {labels.max()} in the split {split!r}"
        raise MissingDataError(_unusable(name, directory, fault))
    return images, labels


def _decode(
    builder: tfds.core.DatasetBuilder, split: str, num_images: int
) -> tuple[np.ndarray, np.ndarray]:
    """Decode the first images of one split.

    Raises:
        ValueError: If an image has another shape or type.
    """
    # TFDS's decorator hides the method's signature from type checkers.
    as_data_source: Any = builder.as_data_source
    source = as_data_source(split=split)
    labels = np.empty(num_images, np.int32)
    images = np.empty((num_images, *IMAGE_SHAPE), np.uint8)
    for index in range(num_images):
        example = source[index]
        image = example["image"]
        if image.shape != IMAGE_SHAPE or image.dtype != np.uint8:
            raise ValueError(f"image {index} has the shape {image.shape} of {image.dtype}")
        images[index] = image
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
