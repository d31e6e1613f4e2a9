"""CIFAR-10 and -100 through TFDS, on small data sets that the test writes in TFDS's own format."""

import io
import json
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from experiments.config import DataConfig
from experiments.data.cifar import load_cifar
from experiments.data.load import load_dataset
from experiments.errors import MissingDataError, SettingError

CLASSES = {"cifar10": 10, "cifar100": 100}
SIZES = {"train": 200, "test": 100}


def images_of(split):
    random = np.random.default_rng(len(split))
    return random.integers(0, 256, (SIZES[split], 32, 32, 3), dtype=np.uint8)


class Cifar10(tfds.core.GeneratorBasedBuilder, skip_registration=True):
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
            example = {"id": str(index), "image": encoded.getvalue()}
            yield index, example | self.labels(index)

    def labels(self, index):
        return {"label": index % 10}


class Cifar100(Cifar10, skip_registration=True):
    """Likewise, with twenty coarse classes of five fine ones."""

    def _info(self):
        features = tfds.features.FeaturesDict(
            {
                "id": tfds.features.Text(),
                "image": tfds.features.Image(shape=(32, 32, 3)),
                "label": tfds.features.ClassLabel(num_classes=100),
                "coarse_label": tfds.features.ClassLabel(num_classes=20),
            }
        )
        return self.dataset_info_from_configs(features=features)

    def labels(self, index):
        return {"label": index % 100, "coarse_label": index % 100 // 5}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tfds")
    for builder in (Cifar10, Cifar100):
        builder(data_dir=directory, file_format="array_record").download_and_prepare()
    return directory


@pytest.fixture(scope="module")
def dataset(data_dir, name):
    return load_cifar(name, data_dir, validation_size=100)


@pytest.fixture
def copied(data_dir, name, tmp_path):
    """The directory of a copy that may be damaged."""
    shutil.copytree(data_dir / name, tmp_path / name)
    return tmp_path / name / "3.0.2"


def test_sizes(name, dataset):
    assert [len(split.labels) for split in dataset[:3]] == [100, 100, 100]
    assert dataset.num_classes == CLASSES[name]


def test_images_are_read_without_loss(dataset):
    written = {image.tobytes() for image in images_of("train")}
    read = {np.asarray(image).tobytes() for split in dataset[:2] for image in split.images}
    assert read == written


def test_images_keep_their_labels_the_fine_ones(name, dataset):
    labels = {
        image.tobytes(): index % CLASSES[name] for index, image in enumerate(images_of("test"))
    }
    assert [labels[np.asarray(image).tobytes()] for image in dataset.test.images] == list(
        dataset.test.labels
    )


def test_validation_has_equal_shares_of_the_classes(name, dataset):
    classes = CLASSES[name]
    shares = np.bincount(dataset.validation.labels, minlength=classes)
    assert np.array_equal(shares, np.full(classes, 100 // classes))


def test_some_images_must_be_left_to_train_on(name, data_dir):
    with pytest.raises(SettingError, match="--validation-size 200 leaves none of the 200 training"):
        load_cifar(name, data_dir, validation_size=200)


def test_the_first_images_are_taken(name, data_dir):
    part = load_cifar(name, data_dir, 0, train_images=50, test_images=20)
    whole = load_cifar(name, data_dir, 0)
    for found, all_of_it, size in ((part.train, whole.train, 50), (part.test, whole.test, 20)):
        assert len(found.labels) == size
        np.testing.assert_array_equal(found.images, all_of_it.images[:size])
        np.testing.assert_array_equal(found.labels, all_of_it.labels[:size])


def test_more_images_than_there_are_is_an_error(name, data_dir):
    with pytest.raises(SettingError, match=r"--train-images must be at most 200, .*, not 201"):
        load_cifar(name, data_dir, 0, train_images=201)
    with pytest.raises(SettingError, match=r"--test-images must be at most 100, .*, not 101"):
        load_cifar(name, data_dir, 0, test_images=101)


def test_the_newest_version_is_read(name, copied):
    older = copied.parent / "3.0.0"
    older.mkdir()
    (older / "dataset_info.json").write_text("{}")
    assert len(load_cifar(name, copied.parents[1], 0).train.labels) == 200


def test_what_an_interrupted_tfds_left_is_not_taken_for_a_version(name, copied):
    copied.rename(copied.with_name("incomplete.ABC123_3.0.2"))
    with pytest.raises(MissingDataError, match="has no such files"):
        load_cifar(name, copied.parents[1], 0)


@pytest.mark.parametrize(("where", "state"), [("", "has no such files"), ("no", "does not exist")])
def test_missing_data_say_where_was_looked_and_what_to_do(name, tmp_path, where, state):
    with pytest.raises(MissingDataError) as caught:
        load_cifar(name, tmp_path / where, 10)
    message = str(caught.value)
    assert str(tmp_path / where / name) in message
    assert state in message
    assert f"python -m experiments data prepare {name} --data-dir {tmp_path / where}" in message
    assert "--archive FILE" in message


def in_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def set_format(directory, name):
    in_json(directory / "dataset_info.json", lambda info: info.update(fileFormat="tfrecord"))


def set_shape(directory, name):
    def change(features):
        image = features["featuresDict"]["features"]["image"]["image"]
        image["shape"]["dimensions"] = ["28", "28", "3"]

    in_json(directory / "features.json", change)


def set_classes(directory, name):
    def change(features):
        features["featuresDict"]["features"]["label"]["classLabel"]["numClasses"] = "20"

    in_json(directory / "features.json", change)


def take_label(directory, name):
    def change(features):
        del features["featuresDict"]["features"]["label"]

    in_json(directory / "features.json", change)


def take_test_split(directory, name):
    in_json(directory / "dataset_info.json", lambda info: info["splits"].pop())


def take_file(directory, name):
    (directory / f"{name}-test.array_record-00000-of-00001").unlink()


def spoil_info(directory, name):
    (directory / "dataset_info.json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (set_format, "stored as tfrecord; only array_record"),
        (set_shape, r"the shape \(28, 28, 3\), not \(32, 32, 3\)"),
        (set_classes, "20 classes, not 10"),
        (take_label, "None classes, not 10"),
        (take_test_split, "there is no split '(test|train)'"),
        (take_file, "test.array_record-00000-of-00001 is missing"),
        (spoil_info, "can not be read"),
    ],
)
def test_data_that_are_not_what_they_should_be_are_refused(name, copied, damage, words):
    damage(copied, name)
    with pytest.raises(MissingDataError, match=words) as caught:
        load_cifar(name, copied.parents[1], 10)
    assert str(copied) in str(caught.value)
    assert f"python -m experiments data prepare {name} --data-dir DIR" in str(caught.value)


@pytest.mark.data
def test_real_cifar10(checkout):
    data_dir = checkout.parent / "shared" / "data" / "tfds"
    if not data_dir.is_dir():
        pytest.skip("no CIFAR-10 beside the checkout")
    dataset = load_dataset(DataConfig(dataset="cifar10", data_dir=data_dir, validation_size=1000))
    assert np.array_equal(np.bincount(dataset.validation.labels), np.full(10, 100))
    # The mean pixel of the whole training set, in the literature: 0.4914, 0.4822, 0.4465.
    np.testing.assert_allclose(dataset.mean / 255, [0.4914, 0.4822, 0.4465], atol=0.01)
