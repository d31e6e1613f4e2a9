"""WikiText-2 from its files, and a small text in its place."""

import hashlib

import numpy as np
import pytest

from experiments import __main__ as command_line
from experiments.config import TextConfig
from experiments.data import wikitext
from experiments.data.archive import Archive, is_archive
from experiments.data.load import load_corpus
from experiments.data.wikitext import TextFile, load_wikitext2, prepare_wikitext2
from experiments.errors import ExperimentError, MissingDataError, SettingError

TEXT = " a b\n\n b <unk> \n"
WORDS = ["a", "b", "<eos>", "<eos>", "b", "<unk>", "<eos>"]
NAMES = ["train.txt", "valid.txt", "test.txt"]


@pytest.fixture(autouse=True)
def small(server, monkeypatch):
    """Let all three files be a small one, which a server on loopback has."""
    body = TEXT.encode()
    server.body = body
    checksum = hashlib.sha256(body).hexdigest()
    files = {
        split: TextFile(Archive(server.url(name), len(body), checksum), len(WORDS))
        for split, name in zip(wikitext.FILES, NAMES, strict=True)
    }
    monkeypatch.setattr(wikitext, "FILES", files)
    monkeypatch.setattr(wikitext, "VOCABULARY_SIZE", 4)


@pytest.fixture
def files(tmp_path):
    for name in NAMES:
        (tmp_path / name).write_text(TEXT)
    return tmp_path


def test_every_line_ends_in_a_token_and_blank_lines_are_lines(files):
    corpus = load_wikitext2(files, None, None)
    assert corpus.vocabulary == ("a", "b", "<eos>", "<unk>")
    for split in (corpus.train, corpus.validation, corpus.test):
        assert [corpus.vocabulary[token] for token in np.asarray(split.tokens)] == WORDS


def test_the_files_may_be_in_a_directory_of_their_own(files, tmp_path):
    directory = tmp_path / "data" / "wikitext-2"
    directory.mkdir(parents=True)
    for name in NAMES:
        (files / name).rename(directory / name)
    config = TextConfig("wikitext2", data_dir=tmp_path / "data", train_tokens=2)
    assert load_corpus(config).vocabulary == ("a", "b", "<unk>")


@pytest.mark.parametrize("name", NAMES)
def test_a_file_with_another_number_of_tokens_is_named(files, name):
    (files / name).write_text(TEXT + "more")
    with pytest.raises(MissingDataError, match=f"{name} has 9 tokens, .* not 7: it is cut short"):
        load_wikitext2(files, None, None)


def test_a_file_that_is_missing_is_named(files):
    (files / "valid.txt").unlink()
    with pytest.raises(MissingDataError, match=r"is not whole, without valid\.txt(.|\n)*fetches"):
        load_wikitext2(files, None, None)


def test_whole_files_are_found_beside_a_directory_that_is_not_whole(files):
    (files / "wikitext-2").mkdir()
    (files / "wikitext-2" / "train.txt").write_text(TEXT)
    assert len(load_wikitext2(files, None, None).vocabulary) == 4


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_is_no_text_is_named(files, name):
    (files / name).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(MissingDataError, match=f"{name} can not be read as text: .*Move it away"):
        load_wikitext2(files, None, None)


@pytest.mark.parametrize("train_tokens", [None, 2])
@pytest.mark.parametrize("name", NAMES)
def test_a_file_with_other_words_is_named(files, name, train_tokens):
    (files / name).write_text(TEXT.replace("a", "c", 1))
    with pytest.raises(MissingDataError, match=f"have 5 .*, not 4. By its checksum, {name} is not"):
        load_wikitext2(files, train_tokens, None)


def test_more_tokens_than_there_are_is_an_error(files):
    with pytest.raises(SettingError, match="--train-tokens must be at most 7"):
        load_wikitext2(files, 8, None)


def test_without_the_files_it_is_said_how_to_get_them(tmp_path, capsys):
    arguments = ["train", "pydoc", "--dataset", "wikitext2", "--data-dir", str(tmp_path)]
    assert command_line.main(arguments) == 1
    error = capsys.readouterr().err
    assert "has no such files" in error
    assert f"data prepare wikitext2 --data-dir {tmp_path}" in error
    assert all(f"/{name}" in error for name in NAMES)


def test_the_files_are_fetched_once_and_verified(tmp_path, server, console):
    directory = prepare_wikitext2(tmp_path, console)
    assert directory == tmp_path / "wikitext-2"
    assert sorted(path.name for path in directory.iterdir()) == sorted(NAMES)
    prepare_wikitext2(tmp_path, console)
    assert len(server.ranges) == 3
    assert len(load_wikitext2(tmp_path, None, None).vocabulary) == 4


def test_what_is_sent_in_their_place_is_refused(tmp_path, server, console):
    server.body = b"Please log in."
    with pytest.raises(ExperimentError, match=r"is not what it should be(.|\n)*Without a network"):
        prepare_wikitext2(tmp_path, console)


def test_an_archive_is_refused(tmp_path, capsys):
    arguments = ["data", "prepare", "wikitext2", "--archive", str(tmp_path / "wikitext.zip")]
    assert command_line.main(arguments) == 1
    assert "--archive must be left out for wikitext2" in capsys.readouterr().err


@pytest.mark.data
def test_the_real_text_has_the_tokens_and_words_that_are_known(checkout, monkeypatch):
    data_dir = checkout.parent / "shared" / "data"
    if not (data_dir / "wikitext-2").is_dir():
        pytest.skip(f"there is no {data_dir / 'wikitext-2'}")
    monkeypatch.undo()
    for file in wikitext.FILES.values():
        path = data_dir / "wikitext-2" / file.archive.file_name
        assert is_archive(file.archive, path)
        assert path.stat().st_size == file.archive.size
    corpus = load_wikitext2(data_dir, None, None)
    sizes = [len(split.tokens) for split in (corpus.train, corpus.validation, corpus.test)]
    assert sizes == [2_088_628, 217_646, 245_569]
    assert len(corpus.vocabulary) == 33_278
    first = [corpus.vocabulary[token] for token in np.asarray(corpus.train.tokens[:7])]
    assert first == ["<eos>", "=", "Valkyria", "Chronicles", "III", "=", "<eos>"]
