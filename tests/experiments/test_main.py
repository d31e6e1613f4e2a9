"""The command line."""

import subprocess
import sys

import pytest

from experiments import __main__ as command_line
from experiments.errors import ExperimentError
from experiments.regularizers import SehtD


@pytest.fixture
def trained(monkeypatch):
    """The configurations that would be trained."""
    configs = []

    def train_network(config, console):
        configs.append(config)
        return {
            "name": config.name,
            "method": ["plain"],
            "seed": config.seed,
            "epochs": config.epochs,
            "steps": 10,
            "training_seconds": 1.0,
            "median_step_time": 0.1,
            "test_loss": 0.25,
            "test_accuracy": 0.75,
        }

    monkeypatch.setattr(command_line, "train_network", train_network)
    return configs


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["data", "demo", "train"]),
        (["data"], ["prepare"]),
        (["data", "prepare"], ["cifar10", "cifar100", "--data-dir", "--archive"]),
        (["analyse"], ["RUN", "--plain", "--output-dir", "--examples", "--trace-probes"]),
        (["demo"], ["--seeds", "--epochs", "--output-dir"]),
        (["prune"], ["RUN", "--keep", "--implant", "--seeds", "--output-dir"]),
        (["stability"], ["--lam", "--learning-rate", "--output-dir"]),
        (["train"], ["digits", "cifar10-small"]),
        (
            ["train", "cifar10-small"],
            ["--data-dir", "--seed", "--run-dir", "--method", "--width", "--learning-rate"],
        ),
    ],
)
def test_help(capsys, arguments, words):
    with pytest.raises(SystemExit, match="0"):
        command_line.main([*arguments, "--help"])
    text = capsys.readouterr().out
    assert all(word in text for word in words)


def test_a_preset_is_trained_with_the_settings_given(trained, capsys):
    arguments = ["train", "digits", "--seed", "3", "--width", "4", "--method", "seht-d:lam=1e-2"]
    assert command_line.main(arguments) == 0
    (config,) = trained
    assert (config.name, config.seed, config.model.width) == ("digits", 3, 4)
    assert config.method == (SehtD(lam=1e-2),)
    assert "75.00 %" in capsys.readouterr().out


def test_a_command_line_is_read_before_jax_starts_its_devices(checkout):
    """Or the processes of --distributed could not meet any more."""
    program = """
from jax._src import xla_bridge
from experiments import __main__ as command_line
from experiments.regularizers.registry import REGULARIZERS
command_line.join_processes = lambda devices: print(xla_bridge.backends_are_initialized())
command_line.is_first_process = lambda: True
command_line.train_network = lambda config, console: exit(len(config.method) != len(REGULARIZERS))
command_line.main(["train", "digits", "--method", *REGULARIZERS])
"""
    finished = subprocess.run(
        [sys.executable, "-c", program], cwd=checkout, capture_output=True, text=True, check=False
    )
    assert (finished.returncode, finished.stdout) == (0, "False\n"), finished.stderr


def test_plain_is_a_method(trained):
    command_line.main(["train", "cifar10-small", "--method", "plain"])
    assert trained[0].method == ()


def test_a_method_that_is_not_known_is_named(trained, capsys):
    with pytest.raises(SystemExit, match="2"):
        command_line.main(["train", "digits", "--method", "saht"])
    captured = capsys.readouterr()
    assert "saht" in captured.out + captured.err


def test_missing_data_are_explained_without_a_traceback(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command_line.main(["train", "cifar10-small", "--data-dir", str(tmp_path)]) == 1
    assert "Pass --data-dir" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["train", "digits"], "--run-dir"),
        (["sweep", "digits-small"], "--output-dir"),
        (["data", "prepare", "cifar10"], "--data-dir"),
        (["demo"], "--output-dir"),
        (["stability"], "--output-dir"),
        (["strength"], "--output-dir"),
    ],
    ids=["train", "sweep", "data", "demo", "stability", "strength"],
)
def test_a_directory_that_can_not_be_written_is_explained_without_a_traceback(
    tmp_path, capsys, arguments, option
):
    (tmp_path / "thesis.txt").write_text("years of work")
    directory = tmp_path / "thesis.txt" / "run"
    assert command_line.main([*arguments, option, str(directory)]) == 1
    error = capsys.readouterr().err
    assert f"in {directory}: " in error
    assert "Not a directory" in error
    assert f"Pass {option} with a directory that can be written" in error


def test_an_error_is_shown_as_it_is(monkeypatch, capsys):
    def failing(config, console):
        raise ExperimentError("no such row [parameters: (1,)]")

    monkeypatch.setattr(command_line, "train_network", failing)
    assert command_line.main(["train", "digits"]) == 1
    assert "error: no such row [parameters: (1,)]\n" in capsys.readouterr().err


def test_ctrl_c_says_how_to_go_on(monkeypatch, capsys):
    def interrupted(config, console):
        raise KeyboardInterrupt

    monkeypatch.setattr(command_line, "train_network", interrupted)
    assert command_line.main(["train", "digits"]) == 130
    assert "The same command goes on from the last checkpoint" in capsys.readouterr().err
