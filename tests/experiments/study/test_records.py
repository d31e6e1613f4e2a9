"""The records of the runs."""

import pytest
from study_worker import PROTOCOL, SETTING, record_of

from experiments.errors import DamagedFileError
from experiments.study.records import append_record, read_records
from experiments.study.stages import plan_stage

FIRST, SECOND, *_ = map(record_of, plan_stage(PROTOCOL, SETTING, "plain", {}).runs)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "results" / "runs.jsonl"


def test_records_are_read_back_in_their_order(path):
    assert read_records(path) == {}
    assert append_record(path, SECOND)
    assert append_record(path, FIRST)
    assert list(read_records(path).items()) == [(SECOND.run, SECOND), (FIRST.run, FIRST)]


def test_a_run_has_one_record(path):
    append_record(path, FIRST)
    assert not append_record(path, FIRST._replace(date="later"))
    assert read_records(path) == {FIRST.run: FIRST}


def test_half_a_line_is_overwritten(path):
    append_record(path, FIRST)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:50])
    assert read_records(path) == {FIRST.run: FIRST}
    append_record(path, SECOND)
    assert list(read_records(path).values()) == [FIRST, SECOND]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2"),
        ("{}", "the record has no 'run'"),
        ('"text"', "the record"),
    ],
)
def test_a_damaged_line_is_named(path, line, message):
    append_record(path, FIRST)
    with path.open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(DamagedFileError, match=message):
        read_records(path)


def test_two_records_of_a_run_are_named(path):
    append_record(path, FIRST)
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(DamagedFileError, match="has an earlier record"):
        read_records(path)


def test_what_is_no_number_is_kept(path):
    record = FIRST._replace(figures=FIRST.figures | {"train_loss": float("inf")})
    append_record(path, record)
    assert read_records(path) == {FIRST.run: record}
