"""Whole runs: log, resumption, divergence."""

import dataclasses
import io
import json
import os
import signal
from typing import ClassVar

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.array import ArrayImpl
from rich.console import Console

from experiments import environment
from experiments.config import OptimizerConfig
from experiments.errors import ConfigMismatchError, DivergedError, RunningError, SettingError
from experiments.regularizers import SAM, Cutout, GaussNewton, Regularizer, SehtD, SehtH
from experiments.training.checkpoint import Checkpoints
from experiments.training.logging import RunLog, read_log
from experiments.training.loop import RESTORES, Experiment, build_experiment, train
from experiments.training.preemption import Terminated
from experiments.training.run_directory import (
    claim_run_directory,
    hold_run_directory,
    read_starts,
)

RESTORED_SEED = 0
TIMES = {"seconds", "step_time", "images_per_second"}


def last_state(config, dataset):
    state = build_experiment(config, dataset).init(0)
    with Checkpoints(config.run_dir / "checkpoints") as checkpoints:
        assert checkpoints.latest_step == 10 * config.epochs
        state, _ = checkpoints.restore(state, warn=pytest.fail)
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
def whole(request, tiny_settings, tmp_path_factory):
    """A run in one piece: its configuration and result. Tests may name its method."""
    config = dataclasses.replace(
        tiny_settings,
        run_dir=tmp_path_factory.mktemp("whole") / "run",
        method=getattr(request, "param", tiny_settings.method),
    )
    return config, train(config, Console(file=io.StringIO()))


@pytest.mark.parametrize("step", [3, 10])
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


@pytest.mark.long
@pytest.mark.parametrize("whole", [(SehtD(lam=1e-4, p=0.5, num_branches=1),)], indirect=True)
def test_a_penalised_run_is_resumed(whole, tmp_path, digits, console, monkeypatch):
    test_a_resumed_run_equals_an_uninterrupted_one(
        whole, tmp_path, digits, console, monkeypatch, step=9
    )


def test_a_run_may_be_resumed_with_other_intervals(whole, tmp_path, digits, console, monkeypatch):
    whole_config, expected = whole
    config = dataclasses.replace(whole_config, run_dir=tmp_path / "run")
    with monkeypatch.context() as patch:
        interrupt_at(patch, 9)
        with pytest.raises(KeyboardInterrupt):
            train(config, console)
    began_with = (config.run_dir / "config.json").read_bytes()
    changed = dataclasses.replace(
        config, log_every=7, checkpoint_every=5, keep_checkpoints=3, keep_checkpoints_every=6
    )
    found = train(changed, console)
    assert "Going on from step 8" in console.file.getvalue()
    chex.assert_trees_all_equal(last_state(config, digits), last_state(whole_config, digits))
    assert [row["step"] for row in log_of(config)] == [3, 4, 6, 8, 10, 14, 15, 20]
    assert found["validation_loss"] == expected["validation_loss"]
    assert found["test_loss"] == expected["test_loss"]
    assert (config.run_dir / "config.json").read_bytes() == began_with
    assert train(config, console) == found  # finished, whichever they are


def test_it_is_said_what_is_waited_for_where_there_is_no_terminal(plain, console):
    train(dataclasses.replace(plain, epochs=1), console)
    first, second, *_ = console.file.getvalue().splitlines()
    assert first == f"Training plain in {plain.run_dir}."
    assert second == "Compiling the training step, which may take minutes."


def test_a_network_is_evaluated_at_some_epochs_and_the_last(plain, console):
    config = dataclasses.replace(plain, epochs=5, log_every=100, evaluate_every=2)
    result = train(config, console)
    rows = log_of(config)
    evaluated = [row["epoch"] for row in rows if "validation/loss" in row]
    assert evaluated == [2, 4, 5]
    assert rows[-1]["validation/loss"] == pytest.approx(result["validation_loss"], rel=1e-6)


@pytest.mark.parametrize(
    ("model", "method"),
    [
        ({}, ()),
        pytest.param(
            {"dtype": "bfloat16", "remat": True},
            (GaussNewton(one_in=2),),
            marks=[pytest.mark.long, pytest.mark.timeout(600)],
        ),
    ],
)
def test_a_run_is_resumed_between_two_batches_whose_gradients_are_averaged(
    plain, tmp_path, digits, console, monkeypatch, model, method
):
    config = dataclasses.replace(
        plain,
        model=dataclasses.replace(plain.model, **model),
        optimizer=OptimizerConfig(accumulate=2),
        method=method,
        epochs=1,
        checkpoint_every=3,
    )
    interrupted = dataclasses.replace(config, run_dir=tmp_path / "interrupted")
    with jax.numpy_dtype_promotion("standard"):  # Flax mixes both dtypes
        train(config, console)
        with monkeypatch.context() as patch:
            interrupt_at(patch, 6)
            with pytest.raises(KeyboardInterrupt):
                train(interrupted, console)
        train(interrupted, console)
        assert "Going on from step 3" in console.file.getvalue()
        found, expected = last_state(interrupted, digits), last_state(config, digits)
    chex.assert_trees_all_equal(found, expected)
    assert log_of(interrupted) == log_of(config)
    assert {leaf.dtype for leaf in jax.tree.leaves(found.params)} == {jnp.dtype("float32")}
    if method:
        assert all(row["trace_estimate"] > 0 for row in log_of(config))


@pytest.mark.long
def test_adahessian_trains_and_a_run_with_it_is_resumed(
    plain, tmp_path, digits, console, monkeypatch
):
    optimizer = OptimizerConfig(algorithm="adahessian", learning_rate=0.15)
    config = dataclasses.replace(plain, optimizer=optimizer)
    interrupted = dataclasses.replace(config, run_dir=tmp_path / "interrupted")
    train(config, console)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 9)
        with pytest.raises(KeyboardInterrupt):
            train(interrupted, console)
    train(interrupted, console)
    assert "Going on from step 8" in console.file.getvalue()
    chex.assert_trees_all_equal(last_state(interrupted, digits), last_state(config, digits))
    losses = [row["loss"] for row in log_of(config) if "loss" in row]
    assert losses[-1] < 0.95 * losses[0]


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


def test_a_run_that_is_told_to_end_while_it_measures_says_what_is_kept(plain, console, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(
            "experiments.training.loop.summarise", lambda *_: signal.raise_signal(signal.SIGTERM)
        )
        with pytest.raises(Terminated, match="while the result was measured; all steps are saved"):
            train(plain, console)
    assert "test_loss" in train(plain, console)
    assert "Going on from step 20 in" in console.file.getvalue()


def test_log_and_result(plain, console):
    plain = dataclasses.replace(plain, trace_examples=20, trace_probes=2)
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
    assert "--seed: there 0, asked for 7" in message
    assert "--learning-rate: there 0.05, asked for 0.5" in message
    assert "--method: there ['plain'], asked for ['seht-h:" in message
    assert "epochs" not in message
    assert "--run-dir" in message
    assert before == {path: path.read_bytes() for path in plain.run_dir.glob("*.json*")}


@pytest.mark.parametrize(
    ("method", "accumulate", "message"),
    [
        ((Cutout(size=9),), 1, "size 9 is larger than the images, 8x8"),
        ((), 21, "--accumulate must be at most the 20 steps of the run, .* not 21"),
        ((SAM(),), 2, "sam can not be used with --accumulate 2"),
    ],
)
def test_settings_that_do_not_fit_leave_no_directory(plain, console, method, accumulate, message):
    optimizer = OptimizerConfig(accumulate=accumulate)
    config = dataclasses.replace(plain, method=method, optimizer=optimizer)
    with pytest.raises(SettingError, match=message):
        train(config, console)
    assert not plain.run_dir.exists()


def test_a_run_that_another_process_is_at_is_left_to_it(plain, digits, console):
    claim_run_directory(plain.run_dir, plain, digits)
    half_written = plain.run_dir / "checkpoints" / "4.orbax-checkpoint-tmp"
    half_written.mkdir(parents=True)
    with hold_run_directory(plain.run_dir):
        before = sorted(plain.run_dir.rglob("*"))
        with pytest.raises(RunningError, match=f"carried out by process {os.getpid()} on "):
            train(plain, console)
        assert sorted(plain.run_dir.rglob("*")) == before


def test_a_directory_of_something_else_is_refused(plain, console):
    plain.run_dir.mkdir()
    (plain.run_dir / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigMismatchError, match="not empty and holds no"):
        train(plain, console)


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_a_run_that_diverges_stops_and_says_where(plain, console):
    wild = OptimizerConfig(learning_rate=1e15, clip_norm=0.0)
    config = dataclasses.replace(plain, optimizer=wild, checkpoint_every=1)
    with pytest.raises(DivergedError) as caught:
        train(config, console)
    message = str(caught.value)
    assert "diverged at step 2 (" in message
    assert "the steps up to 1 were finite" in message
    assert "finite. Try a smaller --learning-rate or a --clip-norm above 0. Newest" in message
    assert "Newest checkpoint: step 1." in message
    assert message.endswith(f"The state before it went wrong is in {config.run_dir / 'diverged'}.")
    assert not (config.run_dir / "result.json").exists()


@dataclasses.dataclass(frozen=True)
class Poison(Regularizer):
    """Makes something of some steps no number; of the run's first random numbers alone, or always.

    Attributes:
        steps: Numbers of the steps, from 1.
        threshold: Whether a step is poisoned depends on its key: 1 is always.
        what: The objective, and nothing else; so the gradient, or a method's estimate.
    """

    name: ClassVar[str] = "poison"

    steps: tuple[int, ...] = ()
    threshold: float = 1.0
    what: str = "objective"

    def objective(self, loss_fn, inputs):
        number = inputs.step + jnp.ones((), jnp.int32)
        hit = jnp.any(number == jnp.asarray(self.steps, jnp.int32))
        hit &= jax.random.uniform(inputs.key) < self.threshold
        poison = jnp.where(hit, jnp.nan, 0.0).astype(jnp.float32)

        def poisoned(params):
            loss, outputs = loss_fn(params)
            if self.what == "gradient_norm":
                # The square root of 0 is a number, and its derivative is none.
                zero_if_hit = 1 - hit.astype(jnp.float32)
                loss += jnp.sqrt(zero_if_hit + 0.0 * params["head"]["bias"][0]) - zero_if_hit
            elif self.what == "trace_estimate":
                outputs = outputs.with_metrics(trace_estimate=poison)
            else:
                loss += poison
            return loss, outputs

        return poisoned


def run_until_the_end(config, dataset):
    experiment = build_experiment(config, dataset)
    states = [experiment.init(0)]
    rows = []
    for state, row in experiment.run(states[0]):
        states.append(state)
        rows.append(row)
    return states, rows


@pytest.fixture
def every_step(plain):
    """A run that comes up for air at every step."""
    return dataclasses.replace(plain, log_every=1, checkpoint_every=0, epochs=1)


def test_the_state_before_a_divergence_is_kept(every_step, tiny_digits, console):
    config = dataclasses.replace(every_step, batch_size=4, log_every=4, method=(Poison((6,)),))
    experiment = build_experiment(config, tiny_digits)
    with pytest.raises(DivergedError, match=r"diverged at step 6 \(.*objective = nan") as caught:
        list(experiment.run(experiment.init(0)))
    # Poison behind the end: without a step, another program would round otherwise.
    without = dataclasses.replace(config, method=(Poison((99,)),), log_every=5)
    (_, expected, _), _ = run_until_the_end(without, tiny_digits)
    found = caught.value.state
    assert int(found.step) == 5
    chex.assert_trees_all_equal(found._replace(key=None), expected._replace(key=None))


def test_a_step_that_is_skipped_changes_nothing_but_its_number(every_step, tiny_digits):
    config = dataclasses.replace(
        every_step, batch_size=4, on_divergence="skip", method=(Poison((3, 4)),)
    )
    states, rows = run_until_the_end(config, tiny_digits)
    assert [row["skipped_steps"] for row in rows] == [0, 0, 1, 1, 0, 0, 0, 0, 0, 0]
    assert [int(state.step) for state in states] == list(range(11))
    before, after = (state._replace(key=None, step=None) for state in (states[2], states[4]))
    chex.assert_trees_all_equal(before, after)
    assert "loss" not in rows[2]
    assert np.isfinite([row["loss"] for row in rows[4:]]).all()
    assert (states[5].params["head"]["bias"] != states[4].params["head"]["bias"]).all()


@pytest.mark.parametrize("what", ["gradient_norm", "trace_estimate"])
def test_a_step_is_judged_by_more_than_its_loss(every_step, tiny_digits, what):
    config = dataclasses.replace(every_step, batch_size=4, method=(Poison((1,), what=what),))
    experiment = build_experiment(config, tiny_digits)
    before = experiment.init(0)
    order = experiment.task.epoch_order(before.key, 0)
    after, metrics = experiment.train_step(before, experiment.task.train_data, order)
    assert np.isfinite(metrics["objective"])
    assert np.isnan(metrics[what])
    chex.assert_trees_all_equal(after._replace(key=None), before._replace(key=None))


def test_nothing_is_read_from_the_device_between_two_lines_of_the_log(
    every_step, tiny_digits, monkeypatch
):
    config = dataclasses.replace(every_step, batch_size=4, log_every=5)
    experiment = build_experiment(config, tiny_digits)
    train_step, value = experiment.train_step, ArrayImpl._value.fget
    num_steps, read_after = 0, set()

    def count_step(*arguments):
        nonlocal num_steps
        num_steps += 1
        return train_step(*arguments)

    def note_read(array):
        read_after.add(num_steps)
        return value(array)

    state = experiment.init(0)
    experiment.warm_up(state)
    experiment = dataclasses.replace(experiment, train_step=count_step)
    monkeypatch.setattr(ArrayImpl, "_value", property(note_read))
    list(experiment.run(state))
    assert read_after == {0, 5, 10}


def test_means_are_those_of_the_finite_steps(every_step, tiny_digits):
    config = dataclasses.replace(
        every_step, batch_size=4, log_every=5, on_divergence="skip", method=(Poison((3,)),)
    )
    _, rows = run_until_the_end(config, tiny_digits)
    _, single = run_until_the_end(dataclasses.replace(config, log_every=1), tiny_digits)
    assert rows[0]["skipped_steps"] == 1
    finite = [row["loss"] for row in single[:5] if "loss" in row]
    assert len(finite) == 4
    assert rows[0]["loss"] == pytest.approx(np.mean(finite))


def test_a_run_that_skips_all_its_steps_ends(every_step, tiny_digits):
    always = Poison(tuple(range(4, 41)))
    config = dataclasses.replace(
        every_step, batch_size=1, log_every=8, on_divergence="skip", method=(always,)
    )
    with pytest.raises(DivergedError, match="20 steps in a row were skipped, the last of them"):
        run_until_the_end(config, tiny_digits)


def test_skipped_steps_are_counted_in_the_result(plain, console):
    config = dataclasses.replace(plain, on_divergence="skip", method=(Poison((3, 13)),))
    assert train(config, console)["skipped_steps"] == 2


def test_a_run_that_is_restored_goes_on_with_other_random_numbers(plain, console, monkeypatch):
    # Step 6 is poisoned with the key that it has at first, and not with the next.
    config = dataclasses.replace(
        plain,
        on_divergence="restore",
        method=(Poison((6,), threshold=0.5),),
        seed=RESTORED_SEED,
    )
    with monkeypatch.context() as patch:
        interrupt_at(patch, 12)
        with pytest.raises(KeyboardInterrupt):
            train(config, console)
    result = train(config, console)
    text = console.file.getvalue()
    assert "The run diverged at step 6" in text
    assert "The run goes back to step 4." in text
    assert (result["steps"], result["restores"]) == (20, 1)
    rows = read_log(config.run_dir / "metrics.jsonl")
    assert {row["step"]: row["restores"] for row in rows} == {
        step: int(step > 4) for step in (3, 4, 6, 8, 9, 10, 12, 15, 16, 18, 20)
    }


def test_a_run_that_diverges_whatever_the_random_numbers_ends(plain, console):
    config = dataclasses.replace(plain, on_divergence="restore", method=(Poison((6,)),))
    with pytest.raises(DivergedError, match=r"at step 6 .* Newest checkpoint: step 4\."):
        train(config, console)
    assert console.file.getvalue().count("goes back to step 4") == RESTORES


def test_without_a_checkpoint_nothing_is_restored(plain, console):
    config = dataclasses.replace(plain, on_divergence="restore", method=(Poison((2,)),))
    with pytest.raises(DivergedError, match=r"at step 2 .* There is no checkpoint\."):
        train(config, console)


def test_a_diverged_state_can_be_looked_at(plain, digits, console):
    config = dataclasses.replace(plain, method=(Poison((6,)),))
    with pytest.raises(DivergedError, match=r"The state before it went wrong is in .*diverged\."):
        train(config, console)
    like = build_experiment(config, digits).init(0)
    with Checkpoints(config.run_dir / "diverged") as checkpoints:
        state, _ = checkpoints.restore(like, warn=pytest.fail)
    assert int(state.step) == 5


@pytest.mark.parametrize("end", [11, 20])  # where nothing is due, and at the last step
def test_a_run_that_is_told_to_end_saves_and_goes_on_there(
    whole, tmp_path, digits, console, monkeypatch, end
):
    whole_config, _ = whole
    config = dataclasses.replace(whole_config, run_dir=tmp_path / "run")
    is_stop = Experiment._is_stop

    def told_to_end(self, step):
        if step == end:
            os.kill(os.getpid(), signal.SIGTERM)
        return is_stop(self, step)

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(Experiment, "_is_stop", told_to_end)
        with pytest.raises(Terminated, match=f"at step {end}"):
            train(config, console)
    assert signal.getsignal(signal.SIGTERM) is before
    with Checkpoints(config.run_dir / "checkpoints") as checkpoints:
        assert checkpoints.latest_step == end
    train(config, console)
    assert f"Going on from step {end}" in console.file.getvalue()
    chex.assert_trees_all_equal(last_state(config, digits), last_state(whole_config, digits))
    assert [row["step"] for row in log_of(config)] == sorted(
        {row["step"] for row in log_of(whole_config)} | {end}
    )


def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(
    whole, tmp_path, digits, console, monkeypatch
):
    whole_config, _ = whole
    config = dataclasses.replace(whole_config, run_dir=tmp_path / "run")
    interrupt_at(monkeypatch, 9)
    with pytest.raises(KeyboardInterrupt):
        train(config, console)
    monkeypatch.undo()
    for path in (config.run_dir / "checkpoints" / "8").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    train(config, console)
    text = console.file.getvalue().replace("\n", " ")
    assert "The checkpoint of step 8 is damaged" in text
    assert "Going on from step 4" in text
    chex.assert_trees_all_equal(last_state(config, digits), last_state(whole_config, digits))
    assert log_of(config) == log_of(whole_config)


def test_a_log_that_a_kill_cut_short_is_read_up_to_there(tmp_path):
    path = tmp_path / "metrics.jsonl"
    row = {"step": 1, "epoch": 0.1, "loss": 2.0, "seconds": 0.1, "step_time": 0.1}
    path.write_text(json.dumps(row) + '\n{"step": 2, "lo')
    assert read_log(path) == [row]
