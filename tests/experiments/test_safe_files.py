"""Files stay where they belong."""

import pytest

from experiments.safe_files import path_inside, replace_file


@pytest.mark.parametrize("name", ["a", "a/b", "a.b/c d", "./a", "a..b"])
def test_a_name_inside_is_joined(tmp_path, name):
    assert path_inside(tmp_path, name) == tmp_path / name


@pytest.mark.parametrize("name", ["", "..", "a/..", "../a", "a/../../b", "/a", "//a", "a\0b"])
def test_a_name_that_may_lead_out_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="leads out of its directory"):
        path_inside(tmp_path, name)


def test_a_link_may_lead_to_another_place_inside_alone(tmp_path):
    directory = tmp_path / "directory"
    (directory / "a").mkdir(parents=True)
    (directory / "in").symlink_to("a")
    (directory / "out").symlink_to(tmp_path)
    assert path_inside(directory, "in/b") == directory / "in" / "b"
    with pytest.raises(ValueError, match=r"a symbolic link in .* leads out of"):
        path_inside(directory, "out/b")


def test_links_that_lead_to_one_another_lead_nowhere(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert path_inside(tmp_path, "a") == tmp_path / "a"


def test_a_file_is_replaced_and_what_a_kill_left_too(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    (tmp_path / "a.tmp").write_text("left by a kill")
    replace_file(path, b"new")
    assert [(each.name, each.read_bytes()) for each in tmp_path.iterdir()] == [("a.json", b"new")]
