"""Runs that are told to end."""

import signal

import pytest
from commands import TRAIN, end, rows_of, start, step_of_the_end, terminate_in_training

from experiments.training.preemption import EXIT_STATUS, catch_termination


def test_a_signal_that_comes_too_late_has_its_effect_behind_the_block():
    received = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        with catch_termination() as ends_at:
            signal.raise_signal(signal.SIGTERM)
            assert ends_at(1)
            assert not received
        assert received == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.slow
def test_a_command_that_is_told_to_end_says_so_with_its_status(tmp_path, checkout):
    run_dir = tmp_path / "run"
    process = start(checkout, [*TRAIN, "--epochs", 10_000, "--run-dir", run_dir])
    terminate_in_training(process, run_dir)
    (output,) = end([process], EXIT_STATUS)
    assert step_of_the_end(output, run_dir) == rows_of(run_dir)[-1]["step"]
