"""Fetching an archive: whole and with the right checksum, or not at all."""

import hashlib
import io
import socket
from pathlib import Path

import pytest
from rich.console import Console

from experiments.data.archive import Archive, check_archive, fetch_archive
from experiments.errors import ExperimentError

BODY = bytes(range(256)) * 1000
PART = 100_000


@pytest.fixture
def archive(server):
    server.body = BODY
    return Archive(server.url("images.tar.gz"), len(BODY), hashlib.sha256(BODY).hexdigest())


@pytest.fixture
def part(tmp_path):
    return tmp_path / "images.tar.gz.part"


@pytest.fixture
def fetch(archive, tmp_path, console):
    return lambda: fetch_archive(archive, tmp_path, console)


def names(directory):
    return [path.name for path in directory.iterdir()]


def test_the_whole_file_is_saved(fetch, tmp_path):
    path = fetch()
    assert path.read_bytes() == BODY
    assert names(tmp_path) == ["images.tar.gz"]


def test_progress_and_time_left_are_shown(archive, tmp_path):
    shown = io.StringIO()
    fetch_archive(archive, tmp_path, Console(file=shown, width=120))
    assert "images.tar.gz" in shown.getvalue()
    assert "256.0/256.0 kB" in shown.getvalue()
    assert "left" in shown.getvalue()


def test_what_is_there_is_not_downloaded_again(fetch, server):
    fetch()
    fetch()
    assert len(server.ranges) == 1


def test_a_broken_connection_keeps_what_came(fetch, server, part, tmp_path):
    server.cut_after = PART
    with pytest.raises(ExperimentError, match=r"0\.1 of 0\.3 MB are here; the same command goes"):
        fetch()
    kept = part.read_bytes()
    assert kept
    assert BODY.startswith(kept)
    assert names(tmp_path) == [part.name]
    server.cut_after = None
    assert fetch().read_bytes() == BODY
    assert server.ranges == [None, f"bytes={len(kept)}-"]


def test_the_next_call_asks_only_for_the_rest(fetch, server, part):
    part.write_bytes(BODY[:PART])
    assert fetch().read_bytes() == BODY
    assert server.ranges == [f"bytes={PART}-"]


def test_a_server_that_knows_no_ranges_is_asked_once_and_sends_everything(fetch, server, part):
    server.knows_ranges = False
    part.write_bytes(BODY[:PART])
    assert fetch().read_bytes() == BODY
    assert server.ranges == [f"bytes={PART}-"]


def test_a_kill_between_download_and_check_costs_no_second_download(fetch, server, part):
    part.write_bytes(BODY)
    assert fetch().read_bytes() == BODY
    assert server.ranges == []


def test_a_part_that_is_too_long_is_replaced(fetch, server, part):
    part.write_bytes(BODY + b"more")
    assert fetch().read_bytes() == BODY
    assert server.ranges == [None]


@pytest.mark.parametrize("sent", [b"<html>Please log in</html>", BODY[:-1] + b"x", BODY + b"x"])
def test_a_wrong_checksum_is_refused_and_nothing_kept(fetch, server, tmp_path, sent):
    server.body = sent
    with pytest.raises(ExperimentError, match=hashlib.sha256(sent).hexdigest()) as caught:
        fetch()
    assert hashlib.sha256(BODY).hexdigest() in str(caught.value)
    assert names(tmp_path) == []


def test_after_a_wrong_part_the_next_call_starts_afresh(fetch, part):
    part.write_bytes(b"x" * PART)
    with pytest.raises(ExperimentError, match="deleted"):
        fetch()
    assert fetch().read_bytes() == BODY


def test_a_part_longer_than_the_file_on_the_server_is_not_kept(fetch, server, part):
    part.write_bytes(BODY[:PART])
    server.body = BODY[:10]
    with pytest.raises(ExperimentError, match="416"):
        fetch()
    server.body = BODY
    assert fetch().read_bytes() == BODY


def test_a_refusal_is_no_file(fetch, server, tmp_path):
    server.status = 503
    with pytest.raises(ExperimentError, match="503"):
        fetch()
    assert names(tmp_path) == []


def test_a_refusal_leaves_the_part_alone(fetch, server, part):
    part.write_bytes(BODY[:PART])
    server.status = 503
    with pytest.raises(ExperimentError, match="503"):
        fetch()
    assert part.read_bytes() == BODY[:PART]


def test_a_server_that_is_not_there_is_named(tmp_path, console, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # taken, but nobody listens
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/images.tar.gz"
        with pytest.raises(ExperimentError, match="refused") as caught:
            fetch_archive(Archive(url, 1, ""), tmp_path, console)
    assert url in str(caught.value)


def test_a_file_that_is_not_ours_is_kept(archive, fetch, tmp_path):
    (tmp_path / archive.file_name).write_text("precious")
    with pytest.raises(ExperimentError, match="Move it away") as caught:
        fetch()
    assert f"{archive.file_name} is not {archive.url}" in str(caught.value)
    assert (tmp_path / archive.file_name).read_text() == "precious"


def test_a_missing_file_is_named(archive):
    with pytest.raises(ExperimentError, match=r"There is no file nowhere\.gz"):
        check_archive(archive, Path("nowhere.gz"))
