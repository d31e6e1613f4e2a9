"""Data sets whose files were damaged: small ones, in the form of TFDS and of WikiText-2."""

import hashlib
import json

import numpy as np
import pytest
import small_cifar
from mutation import check_cases, contents, many, mutated_bytes, mutated_json, refusal

from experiments.data import prepare, wikitext
from experiments.data.archive import Archive
from experiments.data.cifar import load_cifar
from experiments.data.cifar_builder import Cifar10
from experiments.data.wikitext import TextFile, load_wikitext2
from experiments.errors import ExperimentError, MissingDataError

TEXT = " = Title = \n\n a b <unk> c , the é end . \n b c \n" * 4
NAMES = {"train": "train.txt", "validation": "valid.txt", "test": "test.txt"}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """CIFAR-10 with a few images, as `data prepare` writes it."""
    directory = tmp_path_factory.mktemp("tfds")
    archive = small_cifar.archive("cifar10")
    path = directory / "cifar-10-binary.tar.gz"
    path.write_bytes(archive)
    record = Archive(
        "https://example.com/x.tar.gz", len(archive), hashlib.sha256(archive).hexdigest()
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Cifar10, "archive", record)
        prepare.prepare_cifar("cifar10", directory, path, prepare.Console(quiet=True))
    return directory


def damage(random, path, original):
    if path.suffix == ".json" and random.random() < 0.7:
        path.write_bytes(mutated_json(random, json.loads(original)))
    else:
        path.write_bytes(mutated_bytes(random, original))


@many(short=40, long=800)
@pytest.mark.filterwarnings("ignore")  # of TFDS and Pillow, about what they find
def test_a_damaged_data_set_is_named_and_left_as_it_is(data_dir, record_property, num_cases):
    (info,) = data_dir.glob("cifar10/*/dataset_info.json")
    directory = info.parent
    originals = {path: path.read_bytes() for path in directory.iterdir()}
    whole = load_cifar("cifar10", data_dir, 0)

    def load(random):
        path = random.choice(sorted(originals))
        damage(random, path, originals[path])
        before = contents(directory)
        try:
            error = refusal(MissingDataError, lambda: load_cifar("cifar10", data_dir, 0))
            if error is None:
                found = load_cifar("cifar10", data_dir, 0)
                assert found.train.images.shape[1:] == whole.train.images.shape[1:]
                assert np.all(np.asarray(found.train.labels) < 10)
            else:
                assert str(directory) in str(error)
                assert "python -m experiments data prepare cifar10" in str(error)
            assert contents(directory) == before
        finally:
            path.write_bytes(originals[path])
        return error is not None

    check_cases("files of CIFAR-10", num_cases, record_property, load)


@many(short=200, long=1500)
def test_a_damaged_text_is_named_and_left_as_it_is(
    tmp_path, monkeypatch, record_property, num_cases
):
    words = [word for line in TEXT.splitlines() for word in [*line.split(), "<eos>"]]
    files = {
        split: TextFile(Archive(f"https://example.com/{name}", 1, "0"), len(words))
        for split, name in NAMES.items()
    }
    monkeypatch.setattr(wikitext, "FILES", files)
    monkeypatch.setattr(wikitext, "VOCABULARY_SIZE", len(set(words)))
    for name in NAMES.values():
        (tmp_path / name).write_text(TEXT)

    def load(random):
        path = tmp_path / random.choice(sorted(NAMES.values()))
        path.write_bytes(mutated_bytes(random, TEXT.encode()))
        before = contents(tmp_path)
        tokens = random.choice([None, 10])
        error = refusal(ExperimentError, lambda: load_wikitext2(tmp_path, tokens, tokens))
        assert error is None or str(tmp_path) in str(error)
        assert contents(tmp_path) == before
        path.write_text(TEXT)
        return error is not None

    check_cases("texts of WikiText-2", num_cases, record_property, load)


@pytest.mark.parametrize("content", [b"", b"\0" * 1000, b"\xff\xfea", b"a" * 10])
def test_an_empty_text_and_one_that_is_none_are_refused(tmp_path, content):
    for name in NAMES.values():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(MissingDataError, match=r"train\.txt .*Move it away, and fetch it again"):
        load_wikitext2(tmp_path, None, None)


def in_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def empty(info):
    info["splits"][0]["shardLengths"] = ["0"]


def enormous(info):
    info["splits"][0]["shardLengths"] = ["1000000000000"]


def elsewhere(info):
    info["splits"][0]["filepathTemplate"] = "../../{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (empty, "are not whole: the split '(train|test)' has 0 examples"),
        (enormous, "has 1000000000000 examples"),
        (elsewhere, "name a file outside of their directory|is missing"),
    ],
)
def test_a_split_that_can_not_be_is_refused(data_dir, tmp_path, change, words):
    (info,) = data_dir.glob("cifar10/*/dataset_info.json")
    copied = tmp_path / "cifar10" / info.parent.name
    copied.mkdir(parents=True)
    for path in info.parent.iterdir():
        (copied / path.name).write_bytes(path.read_bytes())
    in_json(copied / "dataset_info.json", change)
    with pytest.raises(MissingDataError, match=words):
        load_cifar("cifar10", tmp_path, 0)
