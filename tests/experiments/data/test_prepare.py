"""Preparing CIFAR from small archives that a server on loopback has."""

import io
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import small_cifar
import tensorflow_datasets as tfds
from rich.console import Console

from experiments import __main__ as command_line
from experiments.config import DataConfig
from experiments.data import cifar_builder
from experiments.data.load import load_dataset
from experiments.data.prepare import prepare_cifar
from experiments.errors import ExperimentError


@pytest.fixture
def prepare(name, tmp_path, console):
    """Prepare the data set; the archive is downloaded where none is given."""
    return lambda archive=None: prepare_cifar(name, tmp_path, archive, console)


@pytest.fixture
def broken_encoder(monkeypatch):
    """The encoder of the images stops at the fifth, with the exception that is set here."""
    encode, images = cifar_builder._png, []

    def encode_some(image):
        images.append(image)
        if len(images) == 5:
            raise stop
        return encode(image)

    stop = KeyboardInterrupt()
    monkeypatch.setattr(cifar_builder, "_png", encode_some)


def files(directory):
    """Everything in a directory but locks: path and content."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and path.suffix != ".lock"
    }


def pairs(images, labels):
    return {
        (np.asarray(image).tobytes(), int(label))
        for image, label in zip(images, labels, strict=True)
    }


def test_the_loader_reads_the_images_of_the_archive_bit_for_bit(name, served, prepare, tmp_path):
    prepare()
    config = DataConfig(dataset=name, data_dir=tmp_path, validation_size=10)
    dataset = load_dataset(config)
    assert dataset.num_classes == len(set(small_cifar.images_and_labels(name, "test")[1]))
    read = pairs(*dataset.train) | pairs(*dataset.validation)
    assert read == pairs(*small_cifar.images_and_labels(name, "train"))
    assert pairs(*dataset.test) == pairs(*small_cifar.images_and_labels(name, "test"))


def test_features_version_and_keys_are_those_of_tfds(name, served, prepare):
    directory = prepare()
    official = tfds.builder(name)
    prepared = tfds.builder_from_directory(directory)
    assert prepared.info.full_name == official.info.full_name
    assert prepared.info.features.keys() == official.info.features.keys()
    assert prepared.info.features["label"].names[:2] == ["name_0", "name_1"]
    ids = [example["id"].decode() for example in prepared.as_data_source("test")]
    number = len(small_cifar.images_and_labels(name, "test")[1])
    assert sorted(ids) == [f"test_{index:05d}" for index in range(number)]
    assert ids != sorted(ids)


@pytest.mark.parametrize("name", ["cifar100"], indirect=True, scope="session")
def test_the_coarse_labels_are_kept(served, prepare):
    source = tfds.builder_from_directory(prepare()).as_data_source("train")
    assert all(example["coarse_label"] == example["label"] // 5 for example in source)


def test_an_archive_fetched_elsewhere_needs_no_network(
    served, archive_bytes, prepare, tmp_path_factory, tmp_path
):
    archive = tmp_path_factory.mktemp("elsewhere") / "any name"
    archive.write_bytes(archive_bytes)
    prepare(archive)
    assert served.ranges == []
    assert archive.read_bytes() == archive_bytes
    assert list((tmp_path / "downloads").glob("*.gz")) == []


def test_an_archive_that_is_another_file_is_refused(served, prepare, tmp_path):
    other = tmp_path / "cifar-10-python.tar.gz"
    other.write_bytes(b"other")
    with pytest.raises(ExperimentError, match=r"cifar-10-python\.tar\.gz is not http"):
        prepare(other)
    assert set(files(tmp_path)) == {other.name}


def test_a_wrong_checksum_leaves_no_data(served, prepare, tmp_path):
    served.body = b"something else"
    with pytest.raises(ExperimentError, match="SHA-256"):
        prepare()
    assert files(tmp_path) == {}


def test_an_interrupted_download_goes_on(served, prepare):
    served.cut_after = 100_000
    with pytest.raises(ExperimentError, match="the same command goes on"):
        prepare()
    served.cut_after = None
    assert (prepare() / "dataset_info.json").exists()
    first, second = served.ranges
    assert first is None
    assert second is not None


def test_without_a_network_the_message_says_how_to_bring_the_archive(
    name, served, prepare, tmp_path
):
    served.status = 504
    with pytest.raises(ExperimentError) as caught:
        prepare()
    archive = small_cifar.ARCHIVES[name]
    command = f"python -m experiments data prepare {name} --data-dir {tmp_path} --archive {archive}"
    assert command in str(caught.value)
    assert served.url(archive) in str(caught.value)


def test_an_interruption_leaves_nothing_that_could_be_taken_for_data(
    name, served, broken_encoder, prepare, tmp_path
):
    with pytest.raises(KeyboardInterrupt):
        prepare()
    assert set(files(tmp_path)) == {f"downloads/{small_cifar.ARCHIVES[name]}"}
    assert (prepare() / "dataset_info.json").exists()
    assert len(served.ranges) == 1


def test_what_a_kill_left_is_cleared_away(name, served, prepare, tmp_path):
    left = tmp_path / "downloads" / f"{name}.incomplete" / name / "incomplete.X_3.0.2" / "half"
    left.parent.mkdir(parents=True)
    left.write_text("half an image")
    prepare()
    assert not any("incomplete" in path for path in files(tmp_path))


def test_what_is_there_is_not_touched(served, prepare, tmp_path, console):
    directory = prepare()
    before = files(tmp_path)
    served.body = b"something else"
    assert prepare() == directory
    assert files(tmp_path) == before
    assert "Already there" in console.file.getvalue()
    assert len(served.ranges) == 1


def test_two_at_once_prepare_it_once(name, served, tmp_path):
    consoles = [Console(file=io.StringIO(), width=200) for _ in range(2)]
    with ThreadPoolExecutor() as pool:
        first, second = pool.map(
            lambda console: prepare_cifar(name, tmp_path, None, console), consoles
        )
    assert first == second
    assert len(served.ranges) == 1
    assert sum("Already there" in console.file.getvalue() for console in consoles) == 1


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"dataset_info.json": "precious"},
        {"dataset_info.json": '{"name": "cifar10", "version": "3.0.2"}'},
    ],
)
def test_something_else_in_its_place_is_neither_used_nor_touched(
    name, served, prepare, tmp_path, content
):
    target = tmp_path / name / "3.0.2"
    target.mkdir(parents=True)
    for file, text in content.items():
        (target / file).write_text(text)
    before = files(tmp_path)
    with pytest.raises(ExperimentError, match="can not be read") as caught:
        prepare()
    assert str(target) in str(caught.value)
    assert f"data prepare {name} --data-dir DIR" in str(caught.value)
    assert files(tmp_path) == before


def test_data_in_a_format_that_cannot_be_read_are_said_to_be(served, prepare):
    info = prepare() / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(ExperimentError, match="stored as tfrecord"):
        prepare()


def test_a_directory_that_can_not_be_written_is_named(served, name, tmp_path, console):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ExperimentError, match="Pass --data-dir with a directory that can be"):
        prepare_cifar(name, tmp_path / "file", None, console)


@pytest.mark.parametrize(
    ("builder", "file_name"),
    [
        (cifar_builder.Cifar10, "cifar-10-binary.tar.gz"),
        (cifar_builder.Cifar100, "cifar-100-binary.tar.gz"),
    ],
)
def test_the_records_of_tfds_are_used(builder, file_name):
    archive = builder(data_dir="unused").archive
    assert archive.url == f"https://www.cs.toronto.edu/~kriz/{file_name}"
    # The sizes that the page of the data sets gives are 162 and 161 MB.
    assert round(archive.size / 2**20) in {161, 162}
    assert len(bytes.fromhex(archive.sha256)) == 32


def test_the_command_prepares_and_says_where(name, served, tmp_path, capsys):
    assert command_line.main(["data", "prepare", name, "--data-dir", str(tmp_path)]) == 0
    assert str(tmp_path / name / "3.0.2") in capsys.readouterr().out


def test_the_command_explains_a_wrong_archive_without_a_traceback(tmp_path, capsys):
    wrong = tmp_path / "wrong.gz"
    wrong.write_text("wrong")
    arguments = ["data", "prepare", "cifar10", "--data-dir", str(tmp_path / "data")]
    assert command_line.main([*arguments, "--archive", str(wrong)]) == 1
    assert "wrong.gz is not https://www.cs.toronto.edu" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["cifar10"], indirect=True, scope="session")
def test_preparing_and_reading_load_no_tensorflow(served, archive_bytes, tmp_path, checkout):
    record = cifar_builder.Cifar10.archive
    path = tmp_path / "archive"
    path.write_bytes(archive_bytes)
    program = (
        "import sys; from pathlib import Path; from rich.console import Console; "
        "from experiments.data.archive import Archive; "
        "from experiments.data.cifar import load_cifar; "
        "from experiments.data.cifar_builder import Cifar10; "
        "from experiments.data.prepare import prepare_cifar; "
        f"Cifar10.archive = {record!r}; data_dir = Path(sys.argv[1]); "
        "prepare_cifar('cifar10', data_dir, data_dir / 'archive', Console()); "
        "load_cifar('cifar10', data_dir, 10); assert 'tensorflow' not in sys.modules"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    subprocess.run(command, cwd=checkout, check=True, timeout=120)
