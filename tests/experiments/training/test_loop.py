"""Whole runs: log, resumption, divergence."""

import dataclasses
import io
import json

import chex
import jax
import numpy as np
import pytest
from rich.console import Console

from experiments import environment
from experiments.config import OptimizerConfig
from experiments.errors import ConfigMismatchError, DivergedError, SettingError
from experiments.regularizers import Cutout, GaussNewton, SehtD, SehtH
from experiments.training.checkpoint import Checkpoints
from experiments.training.logging import RunLog, read_log
from experiments.training.loop import _check_finite, build_experiment, train
from experiments.training.run_directory import read_starts

TIMES = {"seconds", "step_time", "images_per_second"}


def last_state(config, dataset):
    state = build_experiment(config, dataset).init(0)
    with Checkpoints(config.run_dir / "checkpoints") as checkpoints:
        assert checkpoints.latest_step == 20
        state = checkpoints.restore(state)
    return state._replace(key=jax.random.key_data(state.key))


def log_of(config):
    rows = read_log(config.run_dir / "metrics.jsonl")
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def interrupt_at(monkeypatch, step):
    """Let Ctrl-C be pressed when the log reaches a step."""
    write = RunLog.write

    def interrupted(self, row_step, row):
        write(self, row_step, row)
        if row_step >= step:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunLog, "write", interrupted)


@pytest.fixture(scope="module")
def whole(tiny_settings, tmp_path_factory):
    """A penalised run in one piece: its configuration and result."""
    config = dataclasses.replace(
        tiny_settings,
        trace_examples=0,
        run_dir=tmp_path_factory.mktemp("whole") / "run",
        method=(SehtD(lam=1e-4, p=0.5, num_branches=1),),
    )
    return config, train(config, Console(file=io.StringIO()))


@pytest.mark.parametrize("step", [3, 9, 10])
def test_a_resumed_run_equals_an_uninterrupted_one(
    whole, tmp_path, digits, console, monkeypatch, step
):
    whole_config, expected = whole
    config = dataclasses.replace(whole_config, run_dir=tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(environment, "git_commit", lambda: "another commit")
        interrupt_at(patch, step)
        with pytest.raises(KeyboardInterrupt):
            train(config, console)
    found = train(config, console)
    chex.assert_trees_all_equal(last_state(config, digits), last_state(whole_config, digits))
    assert log_of(config) == log_of(whole_config)
    volatile = {"training_seconds", "median_step_time"}
    assert {name: found[name] for name in found.keys() - volatile} == {
        name: expected[name] for name in expected.keys() - volatile
    }
    starts = read_starts(config.run_dir)
    assert [start["commit"] for start in starts] == ["another commit", environment.git_commit()]
    if step > 4:  # the first checkpoint
        assert "Going on from step" in console.file.getvalue()


def test_a_finished_run_keeps_its_newest_checkpoint_alone(whole):
    config, _ = whole
    directory = config.run_dir / "checkpoints"
    assert [path.name for path in directory.iterdir() if path.name.isdigit()] == ["20"]


def test_a_finished_run_is_not_trained_again(plain, console, monkeypatch):
    first = train(plain, console)
    starts = read_starts(plain.run_dir)
    assert [start["device"] for start in starts] == ["cpu"]
    monkeypatch.setattr("experiments.training.loop.build_experiment", None)
    assert train(plain, console) == first
    assert read_starts(plain.run_dir) == starts
    assert "This run is finished" in console.file.getvalue()


def test_log_and_result(plain, console):
    result = train(plain, console)
    rows = read_log(plain.run_dir / "metrics.jsonl")
    assert [row["step"] for row in rows] == [3, 4, 6, 8, 9, 10, 12, 15, 16, 18, 20]
    assert {"loss", "objective", "accuracy", "gradient_norm", "epoch", *TIMES} <= rows[0].keys()
    assert [row["step"] for row in rows if "validation/loss" in row] == [10, 20]
    assert list((plain.run_dir / "tensorboard").iterdir())
    assert json.loads((plain.run_dir / "result.json").read_text()) == result
    assert result["validation_loss"] == rows[-1]["validation/loss"]
    assert {"train_loss", "test_loss", "test_accuracy", "trace", "gauss_newton_trace"} <= (
        result.keys()
    )


def test_another_configuration_is_refused_and_nothing_is_overwritten(plain, console):
    train(plain, console)
    before = {path: path.read_bytes() for path in plain.run_dir.glob("*.json*")}
    changed = dataclasses.replace(
        plain, seed=7, optimizer=OptimizerConfig(learning_rate=0.5), method=(SehtH(),)
    )
    with pytest.raises(ConfigMismatchError) as caught:
        train(changed, console)
    message = str(caught.value)
    assert "seed: there 0, asked for 7" in message
    assert "optimizer.learning_rate: there 0.05, asked for 0.5" in message
    assert "method: there ['plain'], asked for ['seht-h:" in message
    assert "epochs" not in message
    assert "--run-dir" in message
    assert before == {path: path.read_bytes() for path in plain.run_dir.glob("*.json*")}


def test_settings_that_do_not_fit_the_data_leave_no_directory(plain, console):
    config = dataclasses.replace(plain, method=(Cutout(size=9),))
    with pytest.raises(SettingError, match="size 9 is larger than the images, 8x8"):
        train(config, console)
    assert not plain.run_dir.exists()


def test_a_directory_of_something_else_is_refused(plain, console):
    plain.run_dir.mkdir()
    (plain.run_dir / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigMismatchError, match="not empty and holds no"):
        train(plain, console)


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_a_run_that_diverges_stops_and_says_where(plain, console):
    wild = OptimizerConfig(learning_rate=1e30, clip_norm=0.0)
    config = dataclasses.replace(plain, optimizer=wild, checkpoint_every=1)
    with pytest.raises(DivergedError) as caught:
        train(config, console)
    message = str(caught.value)
    assert "diverged at step 2 (" in message
    assert "the steps up to 1 were finite" in message
    assert "finite. Try a smaller learning_rate or a clip_norm above 0. Newest" in message
    assert "Newest checkpoint: step 1." in message
    assert not (config.run_dir / "result.json").exists()


@pytest.mark.parametrize(
    ("method", "clip_norm", "remedies"),
    [
        ((), 1.0, "a smaller learning_rate or a smaller clip_norm"),
        (
            (SehtD(),),
            1.0,
            "a smaller learning_rate or a smaller lam or more warmup_steps or a smaller clip_norm",
        ),
        (
            (GaussNewton(), Cutout()),
            0.0,
            "a smaller learning_rate or a smaller strength or a clip_norm above 0",
        ),
    ],
)
def test_what_is_advised_against_divergence_applies_to_the_run(plain, method, clip_norm, remedies):
    config = dataclasses.replace(
        plain, method=method, optimizer=OptimizerConfig(clip_norm=clip_norm)
    )
    with pytest.raises(DivergedError) as caught:
        _check_finite([{"loss": np.array(np.nan)}], first_step=3, config=config)
    assert str(caught.value).endswith(f"the steps up to 2 were finite. Try {remedies}.")


def test_a_log_that_a_kill_cut_short_is_read_up_to_there(tmp_path):
    path = tmp_path / "metrics.jsonl"
    row = {"step": 1, "epoch": 0.1, "loss": 2.0, "seconds": 0.1, "step_time": 0.1}
    path.write_text(json.dumps(row) + '\n{"step": 2, "lo')
    assert read_log(path) == [row]
