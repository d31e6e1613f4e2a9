"""Whole runs on text: resumption, the learning rate, the best epoch."""

import dataclasses
import io
import json

import chex
import jax
import numpy as np
import pytest
from rich.console import Console

from experiments.config import LanguageModelConfig, OptimizerConfig, TextConfig, TrainConfig
from experiments.data.load import load_corpus
from experiments.errors import DivergedError, SettingError
from experiments.regularizers import Dropout, SehtD
from experiments.tasks.language import Evaluation, TextEvaluator
from experiments.training import loop
from experiments.training.checkpoint import Checkpoints
from experiments.training.logging import RunLog, read_log
from experiments.training.loop import build_experiment, train
from experiments.training.plateau import PlateauState

TIMES = {"seconds", "step_time", "tokens_per_second"}
# Three epochs of ten steps. So large a learning rate that the second epoch is worse than the first.
CONFIG = TrainConfig(
    data=TextConfig(length=5, train_tokens=10 * 51, evaluation_tokens=200),
    model=LanguageModelConfig(width=4, num_layers=1),
    optimizer=OptimizerConfig(
        learning_rate=40.0, schedule="plateau", momentum=0.0, weight_decay=0.0, clip_norm=0.25
    ),
    method=(Dropout(0.2), SehtD(lam=1e-4, p=0.5, num_branches=1)),
    epochs=3,
    batch_size=10,
    reported="best",
    trace_examples=0,
    log_every=3,
    checkpoint_every=4,
)


def log_of(config):
    rows = read_log(config.run_dir / "metrics.jsonl")
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def newest(config):
    experiment = build_experiment(config, load_corpus(config.data))
    state = experiment.init(0)
    with Checkpoints(config.run_dir / "checkpoints") as checkpoints:
        state, best = checkpoints.restore(state, experiment.no_best(state), warn=pytest.fail)
    return state._replace(key=jax.random.key_data(state.key)), best


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run in one piece: its configuration and result."""
    config = dataclasses.replace(CONFIG, run_dir=tmp_path_factory.mktemp("text") / "run")
    with jax.numpy_dtype_promotion("strict"):
        return config, train(config, Console(file=io.StringIO()))


def interrupted(config, step, console, monkeypatch):
    """Train, stopped once at a step."""
    write = RunLog.write

    def stopping(self, row_step, row):
        write(self, row_step, row)
        if row_step >= step:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "write", stopping)
        with pytest.raises(KeyboardInterrupt):
            train(config, console)
    return train(config, console)


@pytest.mark.parametrize(
    "step", [6, *(pytest.param(step, marks=pytest.mark.long) for step in (3, 10, 21, 24))]
)
def test_a_resumed_run_equals_an_uninterrupted_one(whole, tmp_path, console, monkeypatch, step):
    config = dataclasses.replace(CONFIG, run_dir=tmp_path / "run")
    assert_same_run(config, interrupted(config, step, console, monkeypatch), whole)


def test_a_run_that_was_stopped_before_its_result_has_its_best_epoch_from_the_checkpoint(
    whole, tmp_path, console, monkeypatch
):
    def stopping(directory, result):
        raise KeyboardInterrupt

    config = dataclasses.replace(CONFIG, run_dir=tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(loop, "write_result", stopping)
        with pytest.raises(KeyboardInterrupt):
            train(config, console)
    assert_same_run(config, train(config, console), whole)


def assert_same_run(config, found, whole):
    expected_config, expected = whole
    chex.assert_trees_all_equal(newest(config), newest(expected_config))
    assert log_of(config) == log_of(expected_config)
    volatile = {"training_seconds", "median_step_time"}
    assert {name: found[name] for name in found.keys() - volatile} == {
        name: expected[name] for name in expected.keys() - volatile
    }


def validation_losses(config):
    return [row["validation/loss"] for row in log_of(config) if "validation/loss" in row]


def test_the_learning_rate_has_been_divided_after_each_epoch_without_a_lower_loss(whole):
    config, _ = whole
    losses = validation_losses(config)
    not_lower = sum(loss >= min(losses[:i]) for i, loss in enumerate(losses) if i)
    assert not_lower  # the learning rate is so large that there is one
    state, _ = newest(config)
    scales = [
        float(part.scale)
        for part in jax.tree.leaves(state.opt_state, is_leaf=lambda x: isinstance(x, PlateauState))
        if isinstance(part, PlateauState)
    ]
    assert scales == [0.25**not_lower]


def test_the_result_is_that_of_the_epoch_with_the_lowest_validation_loss(tmp_path, console):
    config = dataclasses.replace(CONFIG, epochs=2, run_dir=tmp_path / "run")
    result = train(config, console)
    losses = validation_losses(config)
    assert losses[0] < losses[1]  # else the last would do as well
    assert result["best_epoch"] == 1
    assert result["validation_loss"] == losses[0]
    _, best = newest(config)
    experiment = build_experiment(config, load_corpus(config.data))
    test = experiment.evaluator.evaluate(best.params, None, experiment.dataset.test)
    assert result["test_loss"] == test.loss
    assert result["test_perplexity"] == pytest.approx(np.exp(test.loss))


def test_without_a_finite_validation_loss_there_is_no_result(tmp_path, console, monkeypatch):
    def evaluate(self, params, network_state, split):
        return Evaluation(float("nan"), float("nan"))

    monkeypatch.setattr(TextEvaluator, "evaluate", evaluate)
    config = dataclasses.replace(CONFIG, epochs=1, run_dir=tmp_path / "run")
    with pytest.raises(DivergedError, match=r"No epoch ended with a finite .* Newest checkpoint"):
        train(config, console)
    assert not (tmp_path / "run" / "result.json").exists()


def test_log_and_result_speak_of_tokens(whole):
    config, result = whole
    row = read_log(config.run_dir / "metrics.jsonl")[0]
    assert row["tokens_per_second"] * row["step_time"] == pytest.approx(50)
    assert (result["train_tokens"], result["test_tokens"]) == (510, 200)
    assert json.loads((config.run_dir / "result.json").read_text()) == result


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reported": "best"}, "--reported best needs validation data"),
        ({"optimizer": CONFIG.optimizer, "reported": "last"}, "--schedule plateau needs"),
    ],
)
def test_without_validation_data_there_is_no_best_epoch(tiny_digits, changes, message):
    no_images = type(tiny_digits.validation)(*(array[:0] for array in tiny_digits.validation))
    config = dataclasses.replace(TrainConfig(batch_size=20), **changes)
    with pytest.raises(SettingError, match=message):
        build_experiment(config, tiny_digits._replace(validation=no_images))
