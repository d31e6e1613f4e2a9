"""The log of a run."""

import errno

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from experiments.training.logging import RunLog


def events_of(directory):
    """What TensorBoard reads of a run: a length, 8 bytes and a sum of it, an event, its sum."""
    (path,) = (directory / "tensorboard").iterdir()
    data = path.read_bytes()
    while data:
        length = int.from_bytes(data[:8], "little")
        yield Event.FromString(data[12 : 12 + length])
        data = data[12 + length + 4 :]


def test_the_event_file_has_the_rows_when_they_are_written(tmp_path):
    with RunLog(tmp_path, resumed_at=0) as log:
        log.write(3, {"loss": 0.5, "validation/loss": 0.25})
        version, row = events_of(tmp_path)
    assert version.file_version == "brain.Event:2"
    assert row.step == 3
    values = {value.tag: value.simple_value for value in row.summary.value}
    assert values == {"train/loss": 0.5, "validation/loss": 0.25}


def test_the_event_file_takes_back_what_is_later_than_the_checkpoint(tmp_path):
    with RunLog(tmp_path, resumed_at=4):
        _, restart = events_of(tmp_path)
    assert restart.session_log.status == SessionLog.START
    assert restart.step == 5


@pytest.mark.timeout(60)  # it must not wait for ever
@pytest.mark.parametrize(
    ("name", "value"), [("loss", 0.1234567890123456), ("x", 0)], ids=["log first", "events first"]
)
def test_a_log_that_can_not_be_written_is_an_error(tmp_path, small_files, name, value):
    def fill():
        with RunLog(tmp_path, resumed_at=0) as log, small_files(2000):
            for step in range(1, 1000):
                log.write(step, {name: value})

    with pytest.raises(OSError, match="File too large") as caught:
        fill()
    assert caught.value.errno == errno.EFBIG
