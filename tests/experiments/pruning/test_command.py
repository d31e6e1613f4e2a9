"""The command, from the run to the files that it writes."""

import dataclasses
import io
import itertools
import json

import jax
import pytest
from analysed_runs import PLAIN, write_run
from known_sweep import FINISHED
from mutation import check_cases, many, mutated_json, refusal
from rich.console import Console

from experiments import __main__ as command_line
from experiments.config import ModelConfig
from experiments.errors import (
    ConfigMismatchError,
    ExperimentError,
    RunningError,
    SettingError,
    option,
)
from experiments.pruning import command
from experiments.pruning.command import PruneConfig, run_prune
from experiments.pruning.report import COMPARED, CRITERIA
from experiments.training.run_directory import (
    claim_run_directory,
    hold_run_directory,
    write_result,
)


@pytest.fixture(scope="module")
def pruned(tmp_path_factory, digits):
    """A run of a tiny network, and what was done to it."""
    run = tmp_path_factory.mktemp("runs") / "run"
    config = PruneConfig(run, keep=(0.5,), seeds=2, epochs=1, probes=2, examples=40)
    with jax.numpy_dtype_promotion("strict"):
        write_run(dataclasses.replace(PLAIN, run_dir=run), digits, FINISHED, factor=1.1)
        console = Console(file=io.StringIO(), width=120)
        run_prune(config, console)
    return config, console.file.getvalue()


@pytest.fixture
def config(pruned, tmp_path):
    """The same, with a copy of the results."""
    config, _ = pruned
    for path in (config.run / "pruning").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return dataclasses.replace(config, output_dir=tmp_path)


def read(directory):
    return json.loads((directory / "pruning.json").read_text())


@pytest.fixture
def trained(monkeypatch):
    """The seeds of fine-tunings that are made, which take no time."""
    seeds = []

    def fine_tune(original, params, seed, advance):
        seeds.append(seed)
        return {"after": {"test_loss": 0.5, "test_accuracy": 0.5}}

    monkeypatch.setattr(command, "_fine_tune", fine_tune)
    monkeypatch.setattr(command.Experiment, "warm_up", lambda self, state: None)
    return seeds


def test_all_criteria_are_fine_tuned_at_all_seeds(pruned):
    config, _ = pruned
    numbers = read(config.run / "pruning")
    found = numbers["fine_tunings"]
    places = [(each["seed"], each["keep"], each["criterion"]) for each in found]
    assert places == list(itertools.product(range(2), (0.5,), CRITERIA))
    for each in found:
        assert 0.4 * numbers["original"]["weights"] < each["weights"]
        assert each["weights"] <= 0.5 * numbers["original"]["weights"]
        fates = set(itertools.chain.from_iterable(each["fates"].values()))
        assert fates == ({0, 1, 2} if each["criterion"] == "hessian + implant" else {0, 2})
        assert each["after"]["test_loss"] != each["before"]["test_loss"]
        assert len(each["step_and_training_and_validation_loss"]) == 1
        assert (each["channel_traces"] is None) == ("hessian" not in each["criterion"])


def test_fine_tunings_of_one_network_differ_by_their_seed(pruned):
    config, _ = pruned
    found = read(config.run / "pruning")["fine_tunings"]
    first, second = (each for each in found if each["criterion"] == "magnitude")
    assert first["before"] == second["before"]
    assert first["after"] != second["after"]


def test_traces_have_standard_errors_and_depend_on_the_seed(pruned):
    config, _ = pruned
    found = read(config.run / "pruning")["fine_tunings"]
    first, second = (each["channel_traces"] for each in found if each["criterion"] == "hessian")
    assert first.keys() == second.keys()
    for name, traces in first.items():
        assert len(traces["mean"]) == len(traces["standard_error"]) > 0
        assert min(traces["standard_error"]) > 0
        assert traces["mean"] != second[name]["mean"]


def test_the_table_is_shown_and_kept_with_a_figure(pruned):
    config, said = pruned
    output_dir = config.run / "pruning"
    table = (output_dir / "pruning.md").read_text()
    assert table in said
    assert table.count("| 50 % |") == len(CRITERIA) + len(COMPARED)
    assert 0 < (output_dir / "pruning.png").stat().st_size < 100_000


def test_the_same_command_makes_what_is_missing_alone(config, console, trained):
    before = read(config.output_dir)
    run_prune(config, console)
    assert not trained
    assert read(config.output_dir) == before
    path = config.output_dir / "pruning.json"
    left = [each for each in before["fine_tunings"] if each["seed"] == 0]
    path.write_text(json.dumps(before | {"fine_tunings": left}))
    run_prune(config, console)
    assert trained == [1] * len(CRITERIA)
    assert read(config.output_dir)["fine_tunings"][: len(left)] == left


def test_other_sizes_are_added_and_those_asked_for_are_shown(config, console, trained):
    run_prune(dataclasses.replace(config, keep=(0.6,)), console)
    assert trained == [0] * len(CRITERIA) + [1] * len(CRITERIA)
    assert {each["keep"] for each in read(config.output_dir)["fine_tunings"]} == {0.5, 0.6}
    table = (config.output_dir / "pruning.md").read_text()
    assert "| 60 % |" in table
    assert "| 50 % |" not in table


@pytest.mark.parametrize("change", [{"implant": 0.3}, {"epochs": 2}, {"learning_rate": 0.1}])
def test_results_of_other_settings_are_left_alone(config, console, change):
    before = read(config.output_dir)
    (name,) = change
    with pytest.raises(ConfigMismatchError, match=rf"other settings:\n  {name}: there .*, asked"):
        run_prune(dataclasses.replace(config, **change), console)
    assert read(config.output_dir) == before


def test_a_table_without_its_numbers_is_left_alone(config, console):
    (config.output_dir / "pruning.json").unlink()
    with pytest.raises(ConfigMismatchError, match=r"holds a pruning.md without its pruning.json"):
        run_prune(config, console)


@many(short=60, long=1000)
def test_damaged_numbers_are_refused_or_understood(config, record_property, num_cases):
    path = config.output_dir / "pruning.json"
    original = read(config.output_dir)

    def look(random):
        path.write_bytes(mutated_json(random, original))
        settings = original["settings"]
        error = refusal(
            ExperimentError, lambda: command._read_existing(config.output_dir, settings)
        )
        return error is not None

    check_cases("results of pruning", num_cases, record_property, look)


@pytest.mark.parametrize("damage", ["", "[]", '{"settings": {}, "fine_tunings": [{"seed": 1}]}'])
def test_damaged_numbers_are_named_and_left_as_they_are(config, capsys, damage):
    path = config.output_dir / "pruning.json"
    path.write_text(damage)
    line = ["prune", str(config.run), "--output-dir", str(config.output_dir)]
    assert command_line.main(line) == 1
    assert f"{path} is damaged" in capsys.readouterr().err
    assert path.read_text() == damage


def test_a_network_of_another_form_is_refused(tmp_path, digits, console):
    model = ModelConfig(network="wide-resnet", width=1, depth=10)
    wide = dataclasses.replace(PLAIN, model=model, run_dir=tmp_path / "run")
    claim_run_directory(wide.run_dir, wide, digits)
    write_result(wide.run_dir, FINISHED)
    with pytest.raises(SettingError, match="digits-resnet or resnet18, not of wide-resnet"):
        run_prune(PruneConfig(wide.run_dir), console)
    assert not (wide.run_dir / "pruning").exists()


def test_results_that_another_process_is_at_are_left_alone(config, console):
    with hold_run_directory(config.output_dir), pytest.raises(RunningError, match="carried out by"):
        run_prune(config, console)


@pytest.mark.parametrize(
    "setting",
    [
        {"keep": ()},
        {"keep": (0.5, 0.5)},
        {"keep": (1.0,)},
        {"keep": (float("nan"),)},
        {"implant": 0.0},
        {"seeds": 1},
        {"epochs": 0},
        {"learning_rate": 0.0},
        {"probes": 1},
        {"examples": 0},
    ],
)
def test_a_setting_out_of_its_range_is_named(tmp_path, setting):
    (name,) = setting
    with pytest.raises(SettingError, match=f"^{option(name)} must"):
        PruneConfig(tmp_path, **setting)
