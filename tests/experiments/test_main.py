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
        ([], ["data", "demo", "train", "python -m experiments train digits --method plain"]),
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
    assert command_line.main(["train", "digits", "--method", "sedt-h"]) == 1
    error = capsys.readouterr().err
    assert "--method sedt-h: no regularizer 'sedt-h'; did you mean seht-h or seht-d?" in error


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train digits --epochs 0", "--epochs must be at least 1, not 0"),
        ("train digits --train-images 5", "--train-images must be left out for digits, which"),
        ("train cifar10-small --train-images 0", "--train-images must be at least 1, not 0"),
        ("train digits --width 0", "--width must be at least 1, not 0"),
        ("train digits --weight-decay=-1", "--weight-decay must be finite and at least 0, not -1"),
        ("train digits --mesh foo", "--mesh must be data=N or data=N,model=M with whole numbers"),
        ("demo --seeds 1", "--seeds must be at least 2 for a standard error, not 1"),
        ("stability --learning-rate 0", "--learning-rate must be finite and above 0, not 0"),
        ("prune x --keep 2", "--keep must be above 0 and below 1, not 2"),
        ("analyse x --trace-probes 1", "--trace-probes must be at least 2, and an int32, not 1"),
        ("sweep digits-small --seeds 0", "--seeds must be at least 1, not 0"),
    ],
)
def test_a_value_out_of_its_range_is_answered_with_the_option(capsys, line, message):
    assert command_line.main(line.split()) == 1
    assert capsys.readouterr().err.startswith(f"error: {message}")


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
