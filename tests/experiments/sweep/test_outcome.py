"""What came of a run is kept, and not run again."""

import math
import threading

import pytest
from known_sweep import FINISHED

from experiments.errors import DivergedError
from experiments.sweep.outcome import Outcome, carry_out, read_environment, read_outcome
from experiments.training.run_directory import write_json, write_result

RESULT = FINISHED | {"test_accuracy": 0.5, "train_loss": 0.25}


def finishing(config, console):
    config.run_dir.mkdir(exist_ok=True)
    write_result(config.run_dir, RESULT)
    return RESULT


def diverging(config, console):
    config.run_dir.mkdir()
    raise DivergedError("The run diverged at step 7.")


def never(config, console):
    pytest.fail("this run was done before")


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (finishing, Outcome(RESULT, None)),
        (diverging, Outcome(None, "The run diverged at step 7.")),
    ],
)
def test_the_end_of_a_run_is_kept_and_it_is_not_run_again(plain, console, run, expected):
    assert read_outcome(plain.run_dir) is None
    assert carry_out(plain, run, console) == expected
    assert carry_out(plain, never, console) == expected
    assert read_outcome(plain.run_dir) == expected


def test_what_differs_between_the_starts_of_a_run_is_read_in_turn(tmp_path):
    starts = [
        {"commit": None, "jax": "0.10.1", "cpu_count": 2},
        {"commit": "abc", "jax": "0.10.1", "cpu_count": 2},
        {"commit": "def-dirty", "jax": "0.10.1", "cpu_count": 2},
        {"commit": "abc", "jax": "0.10.1", "cpu_count": 2},
    ]
    write_json(tmp_path / "environment.json", starts)
    assert read_environment(tmp_path) is None  # it is not at its end
    write_result(tmp_path, RESULT)
    assert read_environment(tmp_path) == {
        "commit": "None and then abc and then def-dirty",
        "jax": "0.10.1",
        "cpu_count": 2,
    }


def test_the_environment_that_an_earlier_version_wrote_down_is_read(tmp_path):
    write_result(tmp_path, RESULT)
    assert read_environment(tmp_path) is None
    write_json(tmp_path / "environment.json", {"commit": "abc", "device": "cpu"})
    assert read_environment(tmp_path) == {"commit": "abc", "device": "cpu"}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_last_step_that_destroyed_the_network_is_a_divergence(plain, console, value):
    def run(config, console):
        config.run_dir.mkdir()
        write_result(config.run_dir, RESULT | {"test_loss": value})
        return RESULT | {"test_loss": value}

    outcome = carry_out(plain, run, console)
    assert outcome.result is None
    assert f"test_loss = {value}" in outcome.divergence
    assert read_outcome(plain.run_dir) == outcome


def test_a_run_that_another_process_is_at_is_waited_for(plain, console):
    begun, end = threading.Event(), threading.Event()
    outcomes = []

    def slow(config, console):
        begun.set()
        assert end.wait(60)
        return finishing(config, console)

    first = threading.Thread(target=lambda: outcomes.append(carry_out(plain, slow, console)))
    first.start()
    assert begun.wait(60)
    second = threading.Thread(target=lambda: outcomes.append(carry_out(plain, never, console)))
    second.start()
    end.set()
    first.join()
    second.join()
    assert outcomes == [Outcome(RESULT, None)] * 2


def test_an_error_is_no_outcome(plain, console):
    def broken(config, console):
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space left"):
        carry_out(plain, broken, console)
    assert read_outcome(plain.run_dir) is None
