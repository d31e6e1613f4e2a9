"""Locks between processes of one machine."""

from experiments.file_lock import file_lock


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
