"""JSON files, read with care."""

import json
import math
import os

import pytest

from experiments.errors import DamagedFileError
from experiments.json_file import LARGEST_NUMBER, check_fields, check_kind, parse_json, read_json

FIX = "Do this."


def is_a_list(value):
    return check_kind(value, list[int], "the list")


def test_a_file_is_read_and_checked(tmp_path):
    path = tmp_path / "a.json"
    assert read_json(path, is_a_list, FIX) is None
    path.write_text("[1, 2]")
    assert read_json(path, is_a_list, FIX) == [1, 2]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "Expecting value"),
        (b"[1", "Expecting ',' delimiter"),
        (b"[\xff]", "codec can't decode"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[" + b"9" * 6000 + b"]", "is too large"),
        (b"[9223372036854775808]", "is too large"),
        (b'["\\ud800"]', r"the character '\\ud800'"),
        (b'["\\u001b[31m"]', r"the character '\\x1b'"),
        (b'{"\\u009b": 1}', r"the character '\\x9b'"),
        (b"{}", "the list: dict is not a list"),
        (b'[1, "2"]', "the list: item 1 of list is not an instance of int"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_name(tmp_path, content, words):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(DamagedFileError, match=rf"a\.json is damaged, .*{words}(.|\n)* Do this\."):
        read_json(path, is_a_list, FIX)
    assert path.read_bytes() == content


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.json")
    with pytest.raises(DamagedFileError, match=r"a\.json is in the way, and no file\. Do this\."):
        read_json(tmp_path / "a.json", is_a_list, FIX)


def test_numbers_that_are_not_finite_are_read_and_very_large_ones_as_such():
    values = parse_json(b"[NaN, -Infinity, 1e999, -1e101, 1e100, -9223372036854775808]")
    assert math.isnan(values[0])
    assert values[1:] == [-math.inf, math.inf, -math.inf, LARGEST_NUMBER, -(2**63)]


def test_what_python_writes_is_read():
    value = {"a": [None, True, -1, 0.1, "ä\n\t😀"], "b": {}}
    assert parse_json(json.dumps(value).encode()) == value


def test_a_field_that_is_missing_or_of_another_type_is_named():
    fields = {"step": int, "loss": float}
    row = {"step": 1, "loss": 2, "more": "x"}
    assert check_fields(row, fields, "the line") is row
    with pytest.raises(ValueError, match="the line has no 'loss'"):
        check_fields({"step": 1}, fields, "the line")
    with pytest.raises(ValueError, match="'step' of the line: float is not an instance of int"):
        check_fields({"step": 1.0, "loss": 2.0}, fields, "the line")
    with pytest.raises(ValueError, match="the line: list is not a dict"):
        check_fields([], fields, "the line")
