"""Data sets whose files were damaged: small ones, in the form of TFDS and of WikiText-2."""

import hashlib
import json
import shutil
import sys

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


@pytest.fixture
def copied(data_dir, tmp_path):
    """A copy of the data set, to be damaged: its directory."""
    (info,) = data_dir.glob("cifar10/*/dataset_info.json")
    directory = tmp_path / "cifar10" / info.parent.name
    shutil.copytree(info.parent, directory)
    return directory


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (empty, "are not whole: the split '(train|test)' has 0 examples"),
        (enormous, "has 1000000000000 examples"),
        (elsewhere, "name a file outside of their directory|is missing"),
    ],
)
def test_a_split_that_can_not_be_is_refused(copied, tmp_path, change, words):
    in_json(copied / "dataset_info.json", change)
    with pytest.raises(MissingDataError, match=words):
        load_cifar("cifar10", tmp_path, 0)


@pytest.mark.filterwarnings("ignore")  # of Pillow and NumPy, about what they make of it
@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_images_of_another_dtype_are_refused(copied, tmp_path, dtype):
    def change(features):
        features["featuresDict"]["features"]["image"]["image"]["dtype"] = dtype

    in_json(copied / "features.json", change)
    with pytest.raises(MissingDataError, match=dtype):
        load_cifar("cifar10", tmp_path, 0)


PAYLOAD = "payload_of_a_data_set"


def of_another_class(features):
    features["featuresDict"]["features"]["id"]["pythonClassName"] = f"{PAYLOAD}.Feature"


def all_of_another_class(features):
    features["pythonClassName"] = f"{PAYLOAD}.Feature"


def by_the_field_s_other_name(features):
    feature = features["featuresDict"]["features"]["id"]
    del feature["pythonClassName"]
    feature["python_class_name"] = f"{PAYLOAD}.Feature"


def in_the_earlier_form(features):
    features.clear()
    features |= {"type": f"{PAYLOAD}.Feature", "content": {}}


def in_json_within_the_json(features):
    del features["featuresDict"]
    inner = {"id": {"type": f"{PAYLOAD}.Feature", "content": {}}}
    features["jsonFeature"] = {"json": json.dumps(inner)}


@pytest.mark.parametrize(
    "change",
    [
        of_another_class,
        all_of_another_class,
        by_the_field_s_other_name,
        in_the_earlier_form,
        in_json_within_the_json,
    ],
)
def test_a_data_set_does_not_choose_what_is_imported(copied, tmp_path, monkeypatch, change):
    (tmp_path / f"{PAYLOAD}.py").write_text("print('the payload runs')")
    monkeypatch.syspath_prepend(tmp_path)
    in_json(copied / "features.json", change)
    with pytest.raises(MissingDataError, match=r"can not be read, .*features\.json"):
        load_cifar("cifar10", tmp_path, 0)
    assert PAYLOAD not in sys.modules
