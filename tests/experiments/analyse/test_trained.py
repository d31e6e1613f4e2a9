"""What is read of a run directory, and what is refused."""

import dataclasses
import json
import shutil

import chex
import jax
import pytest
from analysed_runs import PLAIN
from known_sweep import FINISHED
from mutation import check_cases, many, mutated_json, refusal

from experiments.analyse.trained import (
    blank_state,
    load_network,
    load_run_data,
    read_finished_run,
)
from experiments.config import from_json, to_json
from experiments.errors import DamagedFileError, ExperimentError, SettingError
from experiments.regularizers import Cutout
from experiments.regularizers.registry import REGULARIZERS
from experiments.tasks.build import build_task
from experiments.training.checkpoint import Checkpoints
from experiments.training.loop import CHECKPOINTS, build_experiment
from experiments.training.run_directory import claim_run_directory, write_result


@pytest.fixture
def run(runs, tmp_path):
    """A copy of the run that was trained."""
    return shutil.copytree(runs / "plain-seed0", tmp_path / "run")


def test_the_weights_are_those_of_the_result(run):
    read = read_finished_run(run, None)
    data = load_run_data(read)
    network = load_network(read, data, pytest.fail)
    evaluator = build_task(read.config, data).evaluator()
    measured = evaluator.evaluate(network.params, network.network_state, data.test)
    assert measured.loss == pytest.approx(read.result["test_loss"], rel=1e-6)


def test_the_best_epoch_is_looked_at_where_the_run_reports_it(tmp_path, digits):
    config = dataclasses.replace(PLAIN, reported="best", run_dir=tmp_path / "run")
    settings = claim_run_directory(config.run_dir, config, digits)
    experiment = build_experiment(config, digits)
    state = experiment.init(0)
    best = experiment.new_best(state, 1, 0.5)
    best = best._replace(params=jax.tree.map(lambda leaf: leaf + 1, best.params))
    with Checkpoints(config.run_dir / CHECKPOINTS, settings=settings) as checkpoints:
        checkpoints.save(state, best)
    write_result(config.run_dir, FINISHED)
    network = load_network(read_finished_run(config.run_dir, None), digits, pytest.fail)
    chex.assert_trees_all_equal(network.params, best.params)


@pytest.mark.parametrize("name", REGULARIZERS)
def test_a_checkpoint_of_every_method_fits_a_state_for_which_no_method_sees_the_network(
    name, tiny_digits, monkeypatch
):
    method = Cutout(size=4) if name == "cutout" else REGULARIZERS[name]()
    config = dataclasses.replace(PLAIN, batch_size=20, method=(method,))
    expected = build_experiment(config, tiny_digits).init(0)
    monkeypatch.setattr(REGULARIZERS[name], "at_start", None)
    found = blank_state(config, tiny_digits)
    chex.assert_trees_all_equal_shapes_and_dtypes(found, expected)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("config.json", "holds no config.json, so it is no run directory"),
        ("result.json", "is not finished: it has no result.json. The command that began it"),
        ("checkpoints", "has no weights: .*checkpoints is empty, or not there"),
    ],
)
def test_what_is_missing_is_named(run, missing, message):
    path = run / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(ExperimentError, match=message):
        load_network(read_finished_run(run, None), None, pytest.fail)
    assert not path.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 10**6}, "--batch-size 1000000 is larger than"),
        ({"optimizer.accumulate": 10**6}, "--accumulate must be at most"),
    ],
)
def test_settings_that_do_not_fit_the_data_are_refused(run, changes, message, digits):
    path = run / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(SettingError, match=message):
        load_network(read_finished_run(run, None), digits, pytest.fail)


def test_the_directory_of_a_sweep_is_told_apart(tmp_path):
    (tmp_path / "sweep.json").write_text("{}")
    with pytest.raises(ExperimentError, match="a sweep's output directory: name one of its runs"):
        read_finished_run(tmp_path, None)


def test_a_run_that_diverged_has_nothing_to_look_at(run):
    (run / "result.json").unlink()
    (run / "diverged.json").write_text('{"message": "at step 7"}')
    with pytest.raises(ExperimentError, match=r"diverged, so there is no network .* at step 7"):
        read_finished_run(run, None)


def test_a_damaged_checkpoint_is_told(run, digits):
    for path in (run / "checkpoints").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    said = []
    with pytest.raises(ExperimentError, match=r"No checkpoint of .* can be read.*-damaged"):
        load_network(read_finished_run(run, None), digits, said.append)
    assert said


def test_other_data_are_told(run):
    path = run / "config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"data.checksum": 1}))
    with pytest.raises(SettingError, match=r"saw other data .* data.checksum is 1 there"):
        load_run_data(read_finished_run(run, None))


def test_data_that_come_with_a_package_have_no_place(run, tmp_path):
    with pytest.raises(SettingError, match="--data-dir must be left out for digits"):
        read_finished_run(run, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.width": "8"}, "'model.width'"),
        ({"model.width": 0}, "--width must be at least 1"),
        ({"model.weight": 1}, "'model.weight' is no setting of a run on digits"),
        ({"method": ["unknown"]}, "no regularizer 'unknown'"),
        ({"optimizer.algorithm": "newton"}, "'optimizer.algorithm'"),
    ],
)
def test_a_damaged_setting_is_named(run, change, message):
    path = run / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DamagedFileError, match=message) as error:
        read_finished_run(run, None)
    assert str(path) in str(error.value)


@many(short=100, long=2000)
def test_damaged_settings_are_refused_or_understood(run, record_property, num_cases):
    path = run / "config.json"
    original = json.loads(path.read_text())

    def read(random):
        path.write_bytes(mutated_json(random, original))
        error = refusal(ExperimentError, lambda: read_finished_run(run, None))
        if error is None:
            config = read_finished_run(run, None).config
            assert from_json(to_json(config)) == config
        return error is not None

    check_cases("settings to analyse", num_cases, record_property, read)
