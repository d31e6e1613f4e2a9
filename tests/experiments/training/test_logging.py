"""The log of a run."""

import errno
import io
import itertools
from types import SimpleNamespace

import pytest
from rich.console import Console
from tensorboardX.proto.event_pb2 import Event, SessionLog

from experiments.training import logging
from experiments.training.logging import RunLog, add_run, make_progress, show

ROW = {"loss": 2.53281, "trace_estimate": 1.61e4, "step_time": 0.5, "images_per_second": 2078.1}


def shown(console, description="training", steps=(5, 11250)):
    """What a console shows of a run of 11250 steps."""
    with console, make_progress(console) as progress:
        task = add_run(progress, description, 11250)
        for step in steps:
            show(progress, task, step, ROW)
    return console.file.getvalue()


@pytest.mark.parametrize("description", ["training", "Gauss-Newton, seed 12"])
@pytest.mark.parametrize("width", [80, 120])
def test_the_bar_fits_into_its_line(width, description):
    console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    *_, line, _ = shown(console, description).splitlines()
    line = line.removeprefix("\x1b[2K")  # which clears it
    assert len(line) <= width
    assert "…" not in line
    assert f"{description} ━" in line
    assert "11250/11250 loss 2.5328 trace 1.61e+04 " in line
    assert "0:00:00 left" in line or "00:00 left" in line
    assert ("500.0 ms/step 2078 images/s" in line) == (width == 120)


def test_a_file_gets_a_line_now_and_then_and_one_at_the_end(monkeypatch):
    console = Console(file=io.StringIO(), width=40)
    clock = itertools.count(step=4)  # 4 seconds from one step to the next
    monkeypatch.setattr(logging, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    assert shown(console, steps=(100, 200, 300, 400, 11250)).splitlines() == [
        "training: step 300 of 11250, loss 2.5328, about 1:31:15 left",
        "training: step 11250 of 11250, loss 2.5328, about 0:00:00 left",
    ]


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
