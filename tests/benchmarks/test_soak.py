"""A training is watched until it is told to end; a stand-in takes its place."""

import io
import json
import sys

import pytest
from rich.console import Console

from benchmarks import soak
from benchmarks.soak import SoakConfig, SoakError, run_soak

# Compiles at its start and once more later on, and ends as told.
TRAINING = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit({status}))
print("Finished XLA compilation", flush=True)
begin = time.monotonic()
again = {again}
while time.monotonic() - begin < {seconds}:
    time.sleep(0.05)
    if again and time.monotonic() - begin > 2:
        print("Finished XLA compilation", flush=True)
        again = False
"""
CONFIG = SoakConfig(minutes=0.06, warm_up=0.02, every=0.2)


@pytest.fixture
def training(monkeypatch):
    """Let something else be watched than a training."""

    def training(status=143, seconds=60, again=False):
        script = TRAINING.format(status=status, seconds=seconds, again=again)
        monkeypatch.setattr(soak, "_command", lambda *_: [sys.executable, "-c", script])

    return training


@pytest.mark.parametrize(("again", "expected"), [(False, 0), (True, 1)])
def test_memory_and_compilations_after_the_warm_up_are_reported(training, again, expected):
    training(again=again)
    console = Console(file=io.StringIO(), width=200)
    path = run_soak(CONFIG, console)
    report = json.loads(path.read_text())
    assert report["compilations_after_warm_up"] == expected
    assert report["median_memory"] > 2**20
    assert report["largest_deviation"] < 0.2
    assert len(report["samples"]) > 5
    assert path.with_suffix(".png").exists()
    assert f"{expected} programs compiled" in console.file.getvalue()


@pytest.mark.parametrize(
    ("ends", "message"),
    [({"seconds": 0.5}, "ended after 0.0 minutes"), ({"status": 0}, "status 0 instead of 143")],
)
def test_a_training_that_does_not_end_as_told_is_an_error(training, ends, message):
    training(**ends)
    with pytest.raises(SoakError, match=message):
        run_soak(CONFIG, Console(file=io.StringIO()))


def test_what_is_watched_is_the_users_command(tmp_path):
    command = soak._command(CONFIG, tmp_path)
    assert command[1:5] == ["-m", "experiments", "train", "digits"]
    assert command[-2:] == ["--run-dir", str(tmp_path)]


@pytest.mark.parametrize(
    "times", [{"warm_up": 60.0}, {"warm_up": 0.0}, {"every": 0.0}, {"every": 3000.0}]
)
def test_times_are_checked(times):
    with pytest.raises(ValueError, match="must be above 0"):
        SoakConfig(**times)
