"""Which run is the plain twin, and how one is made."""

import dataclasses
import json
import shlex
import shutil

import pytest
from analysed_runs import METHOD, PLAIN

from experiments import __main__ as command_line
from experiments.analyse.trained import FinishedRun, read_finished_run
from experiments.analyse.twin import check_plain_twin, find_plain_twin, plain_twin_command
from experiments.config import (
    DataConfig,
    LanguageModelConfig,
    ModelConfig,
    OptimizerConfig,
    TextConfig,
    TrainConfig,
    to_json,
)
from experiments.errors import SettingError
from experiments.presets import PRESETS


def finished(config):
    return FinishedRun(config.resolved_run_dir, to_json(config), config, {})


@pytest.fixture
def copied(runs, tmp_path):
    """Copies of the two runs."""
    return shutil.copytree(runs, tmp_path / "runs")


def change(path, **settings):
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def test_the_twin_is_found_beside_the_run(copied):
    run = read_finished_run(copied / "method", None)
    assert find_plain_twin(run) == copied / "plain-seed0"


@pytest.mark.parametrize(
    "settings",
    [{"seed": 1}, {"epochs": 2}, {"model.width": 3}, {"data.checksum": 1}, {"method": ["sam"]}],
    ids=str,
)
def test_another_run_is_no_twin(copied, settings):
    change(copied / "plain-seed0" / "config.json", **settings)
    assert find_plain_twin(read_finished_run(copied / "method", None)) is None


def test_what_changes_no_weight_makes_no_difference(copied):
    changes = {"log_every": 7, "evaluate_every": 7, "trace_probes": 9, "name": "other"}
    change(copied / "plain-seed0" / "config.json", **changes)
    assert find_plain_twin(read_finished_run(copied / "method", None)) is not None


def test_where_the_best_epoch_is_kept_it_matters_how_often_one_is_looked_for(copied):
    for name in ("method", "plain-seed0"):
        change(copied / name / "config.json", reported="best")
    assert find_plain_twin(read_finished_run(copied / "method", None)) is not None
    change(copied / "plain-seed0" / "config.json", evaluate_every=7)
    assert find_plain_twin(read_finished_run(copied / "method", None)) is None


@pytest.mark.parametrize("name", ["config.json", "result.json"])
def test_a_twin_that_is_damaged_or_not_finished_is_passed_by(copied, name):
    run = read_finished_run(copied / "method", None)
    path = copied / "plain-seed0" / name
    path.write_text("{")
    assert find_plain_twin(run) is None
    path.unlink()
    assert find_plain_twin(run) is None


def test_the_twin_is_found_in_the_sweep(copied, tmp_path):
    points = {"Plain": "runs/plain", "Penalty": "runs/penalty"}
    settings = {name: to_json(dataclasses.replace(PLAIN, method=())) for name in points}
    plan = {
        "name": "small",
        "title": "Small",
        "seeds": 1,
        "columns": [],
        "selected_by": "validation_accuracy",
        "baseline": "Plain",
        "convergence": [],
        "rows": [
            {
                "label": label,
                "paper": {},
                "note": "",
                "points": [{"values": {}, "directory": place, "settings": settings[label]}],
            }
            for label, place in points.items()
        ],
    }
    sweep = tmp_path / "sweep"
    for source, place in (("plain-seed0", "plain"), ("method", "penalty")):
        shutil.copytree(copied / source, sweep / "runs" / place / "seed0")
    run = read_finished_run(sweep / "runs/penalty/seed0", None)
    assert find_plain_twin(run) is None
    (sweep / "sweep.json").write_text(json.dumps(plan))
    assert find_plain_twin(run) == sweep / "runs/plain/seed0"


def test_a_twin_that_was_named_may_differ_in_its_training_and_the_difference_is_told():
    run = finished(dataclasses.replace(PLAIN, method=METHOD))
    plain = finished(dataclasses.replace(PLAIN, epochs=3))
    assert check_plain_twin(run, plain) == ["epochs: 1, plain 3"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": ModelConfig(width=3)}, r"model.width: 2, plain 3"),
        ({"data": DataConfig("cifar10")}, r"data.dataset: digits, plain cifar10"),
        ({"method": METHOD}, r"--plain must name a run without a method, .* with gauss-newton"),
    ],
)
def test_a_named_twin_must_be_plain_and_of_the_same_network(changes, message):
    run = finished(dataclasses.replace(PLAIN, method=METHOD))
    with pytest.raises(SettingError, match=message):
        check_plain_twin(run, finished(dataclasses.replace(PLAIN, **changes)))


@pytest.mark.parametrize(
    "config",
    [
        PRESETS["digits"],
        dataclasses.replace(PRESETS["cifar10-small"], seed=3, method=METHOD),
        dataclasses.replace(PRESETS["pydoc"], epochs=2),
        dataclasses.replace(PRESETS["digits"], name="a sweep", batch_size=50),
        dataclasses.replace(
            PRESETS["digits"], optimizer=OptimizerConfig("adam", 1e-3, clip_norm=0)
        ),
        TrainConfig(
            data=DataConfig("cifar100", validation_size=10),
            model=ModelConfig("wide-resnet", 2, 10, remat=True),
            method=METHOD,
        ),
        TrainConfig(
            name="odd",
            data=TextConfig(train_tokens=1000),
            model=LanguageModelConfig("gru", tied_embeddings=True),
            method=METHOD,
        ),
    ],
    ids=lambda config: f"{config.name} {config.data.dataset}",
)
def test_the_command_makes_the_twin(monkeypatch, tmp_path, config):
    run = finished(dataclasses.replace(config, run_dir=tmp_path / "a run"))
    trained = []

    def train_network(config, console):
        trained.append(config)
        raise SettingError("enough")

    monkeypatch.setattr(command_line, "train_network", train_network)
    program = ["python", "-m", "experiments"]
    words = shlex.split(plain_twin_command(run))
    assert words[:3] == program
    assert command_line.main(words[3:]) == 1
    (twin,) = trained
    wanted = to_json(dataclasses.replace(run.config, method=()))
    assert to_json(twin) | {"name": wanted["name"]} == wanted
    assert twin.run_dir == tmp_path / f"plain-seed{config.seed}"


def test_the_default_place_is_not_spelt_out():
    assert plain_twin_command(finished(PRESETS["digits"])) == (
        "python -m experiments train digits --method plain"
    )
