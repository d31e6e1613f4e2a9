"""CIFAR-10 through TFDS, on a small data set that the test writes in TFDS's own format."""

import io
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from experiments.config import DataConfig
from experiments.data.cifar import load_cifar10
from experiments.data.load import load_dataset
from experiments.errors import MissingDataError

SIZES = {"train": 50, "test": 20}


def images_of(split):
    random = np.random.default_rng(len(split))
    return random.integers(0, 256, (SIZES[split], 32, 32, 3), dtype=np.uint8)


class Cifar10(tfds.core.GeneratorBasedBuilder):
    """Random images in the form of CIFAR-10, as encoded PNG, which needs no TensorFlow."""

    VERSION = tfds.core.Version("3.0.2")

    def _info(self):
        features = tfds.features.FeaturesDict(
            {
                "id": tfds.features.Text(),
                "image": tfds.features.Image(shape=(32, 32, 3)),
                "label": tfds.features.ClassLabel(num_classes=10),
            }
        )
        return self.dataset_info_from_configs(features=features)

    def _split_generators(self, dl_manager):
        del dl_manager  # there is nothing to download
        return {split: self._generate_examples(split) for split in SIZES}

    def _generate_examples(self, split):
        for index, image in enumerate(images_of(split)):
            encoded = io.BytesIO()
            Image.fromarray(image).save(encoded, format="PNG")
            yield index, {"id": str(index), "image": encoded.getvalue(), "label": index % 10}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tfds")
    Cifar10(data_dir=directory, file_format="array_record").download_and_prepare()
    return directory


@pytest.fixture(scope="module")
def dataset(data_dir):
    return load_cifar10(data_dir, validation_size=20)


def test_sizes(dataset):
    assert [len(split.labels) for split in dataset[:3]] == [30, 20, 20]
    assert dataset.num_classes == 10


def test_images_are_read_without_loss(dataset):
    written = {image.tobytes() for image in images_of("train")}
    read = {np.asarray(image).tobytes() for split in dataset[:2] for image in split.images}
    assert read == written


def test_images_keep_their_labels(dataset):
    labels = {image.tobytes(): index % 10 for index, image in enumerate(images_of("test"))}
    assert [labels[np.asarray(image).tobytes()] for image in dataset.test.images] == list(
        dataset.test.labels
    )


def test_validation_has_equal_shares_of_the_classes(dataset):
    assert np.array_equal(np.bincount(dataset.validation.labels), np.full(10, 2))


def test_the_newest_version_is_read(data_dir, tmp_path):
    shutil.copytree(data_dir / "cifar10", tmp_path / "cifar10")
    older = tmp_path / "cifar10" / "3.0.0"
    older.mkdir()
    (older / "dataset_info.json").write_text("{}")
    assert len(load_cifar10(tmp_path, 0).train.labels) == 50


@pytest.mark.parametrize(("name", "state"), [("", "has no such files"), ("no", "does not exist")])
def test_missing_data_say_where_was_looked_and_what_to_do(tmp_path, name, state):
    with pytest.raises(MissingDataError) as caught:
        load_cifar10(tmp_path / name, 10)
    message = str(caught.value)
    assert str(tmp_path / name / "cifar10") in message
    assert state in message
    assert "--data-dir" in message
    assert "download_and_prepare" in message


def test_another_file_format_is_refused_by_name(data_dir, tmp_path):
    shutil.copytree(data_dir / "cifar10", tmp_path / "cifar10")
    info = tmp_path / "cifar10" / "3.0.2" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(MissingDataError, match="stored as tfrecord; only array_record"):
        load_cifar10(tmp_path, 10)


def test_reading_loads_no_tensorflow(data_dir, checkout):
    program = (
        "import sys, pathlib; from experiments.data.cifar import load_cifar10; "
        "load_cifar10(pathlib.Path(sys.argv[1]), 10); assert 'tensorflow' not in sys.modules"
    )
    command = [sys.executable, "-c", program, str(data_dir)]
    subprocess.run(command, cwd=checkout, check=True, timeout=120)


@pytest.mark.data
def test_real_cifar10(checkout):
    data_dir = checkout.parent / "shared" / "data" / "tfds"
    if not data_dir.is_dir():
        pytest.skip("no CIFAR-10 beside the checkout")
    dataset = load_dataset(DataConfig(dataset="cifar10", data_dir=data_dir, validation_size=1000))
    assert np.array_equal(np.bincount(dataset.validation.labels), np.full(10, 100))
    # The mean pixel of the whole training set, in the literature: 0.4914, 0.4822, 0.4465.
    np.testing.assert_allclose(dataset.mean / 255, [0.4914, 0.4822, 0.4465], atol=0.01)
