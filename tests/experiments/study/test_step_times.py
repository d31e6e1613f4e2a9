"""Times of steps, of two that are trained in turn."""

import dataclasses

import pytest
from study_worker import BASE

from experiments.regularizers import SAM
from experiments.study import step_times
from experiments.study.step_times import compare_step_times
from experiments.training.loop import Experiment

PLAIN = dataclasses.replace(BASE, epochs=2, batch_size=250, log_every=2)  # four steps an epoch
WITH_SAM = dataclasses.replace(PLAIN, method=(SAM(),))


def test_both_are_trained_in_turn_and_their_times_compared_by_epoch(monkeypatch, console):
    seen = []
    times = Experiment.times

    def slow_and_slower(self, seconds, num_steps):
        """As if a step took 2 s, and 4 in the second epoch, and the other 1.5 times as long."""
        seen.append((bool(self.method), num_steps))
        load = 2.0 if len(seen) <= 4 else 4.0
        return times(self, num_steps * load * (1.5 if self.method else 1.0), num_steps)

    monkeypatch.setattr(Experiment, "times", slow_and_slower)
    figures = compare_step_times(WITH_SAM, PLAIN, console)
    assert seen == [(False, 2), (True, 2)] * 4
    assert figures == {
        "plain_step_time": 3.0,
        "step_time": 4.5,
        "step_time_ratio": 1.5,
        "step_time_ratio_least": 1.5,
        "step_time_ratio_most": 1.5,
    }
    assert "epoch 2 of 2: 4000.0 ms, 6000.0 ms per step, 1.50 times" in console.file.getvalue()


def test_not_more_epochs_are_trained_than_tell_the_time(monkeypatch, console):
    monkeypatch.setattr(step_times, "_EPOCHS", 1)
    figures = compare_step_times(WITH_SAM, PLAIN, console)
    assert "epoch 1 of 1" in console.file.getvalue()
    assert figures["step_time_ratio"] == pytest.approx(
        figures["step_time"] / figures["plain_step_time"]
    )
