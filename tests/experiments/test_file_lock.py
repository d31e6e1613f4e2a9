"""Locks between processes of one machine."""

import os

import pytest

from experiments.file_lock import file_lock, owner_lock


def test_a_file_of_that_name_keeps_what_is_in_it(tmp_path):
    path = tmp_path / "thesis.lock"
    path.write_text("years of work")
    with file_lock(path):
        pass
    assert path.read_text() == "years of work"


def test_the_file_is_made_with_its_directory(tmp_path):
    path = tmp_path / "new" / "sweep.lock"
    with file_lock(path):
        assert path.exists()


def test_who_has_a_lock_is_told_to_who_wants_it(tmp_path):
    path = tmp_path / "run.lock"
    path.write_text("process 1 on another.host, long ago")
    with owner_lock(path):
        with pytest.raises(BlockingIOError, match=f"^process {os.getpid()} on "), owner_lock(path):
            pass
        path.write_bytes(b"\x1b[31m\xff")
        with pytest.raises(BlockingIOError, match=r"^another process$"), owner_lock(path):
            pass
    with owner_lock(path):
        pass
