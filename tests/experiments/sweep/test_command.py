"""The command, with real runs on digits."""

import dataclasses
import json

import pytest
from sweep_worker import fake_run

from experiments import __main__ as command_line
from experiments.config import OptimizerConfig
from experiments.errors import ConfigMismatchError, SettingError
from experiments.presets import SWEEPS
from experiments.report.command import ReportConfig, write_report
from experiments.sweep.command import SweepConfig, run_sweep
from experiments.sweep.definition import Row, Sweep
from experiments.sweep.plan import read_plan
from experiments.training.checkpoint import Checkpoints
from experiments.training.logging import read_log
from experiments.training.loop import train


@pytest.fixture
def tiny_sweep(plain, monkeypatch):
    """Plain runs at a small learning rate, and at one that no run survives."""
    wild = OptimizerConfig(clip_norm=0.0)
    config = dataclasses.replace(plain, epochs=1, run_dir=None)
    row = Row(
        "Plain",
        dataclasses.replace(config, optimizer=wild),
        grid={"optimizer.learning_rate": (0.05, 1e30)},
    )
    sweep = Sweep("tiny", "Tiny", (row,))
    monkeypatch.setitem(SWEEPS, "tiny", sweep)
    return sweep


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_a_sweep_of_real_runs_is_stopped_and_goes_on_from_the_checkpoint(
    tiny_sweep, tmp_path, console
):
    config = SweepConfig("tiny", seeds=1, output_dir=tmp_path / "sweep")
    directory = config.output_dir / "runs/plain/optimizer.learning_rate=0.05/seed0"

    def interrupted(train_config, console):
        save = Checkpoints.save

        def save_and_stop(self, state, best):
            save(self, state, best)
            raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Checkpoints, "save", save_and_stop)
            return train(train_config, console)

    with pytest.raises(KeyboardInterrupt):
        run_sweep(config, console, interrupted)
    assert read_log(directory / "metrics.jsonl")[-1]["step"] == 4
    progress = run_sweep(config, console)
    assert (progress.finished, progress.diverged) == (1, 1)
    text = console.file.getvalue()
    assert "Going on from step 4" in text
    assert "1 runs finished, 1 diverged. The table: python -m experiments report" in text
    assert json.loads((directory / "result.json").read_text())["name"] == "tiny"
    diverged = directory.parents[1] / "optimizer.learning_rate=1e+30/seed0/diverged.json"
    assert "diverged at step 1" in json.loads(diverged.read_text())["message"]

    # And the report finds what it needs in the logs of real runs.
    write_report(ReportConfig(config.output_dir), console)
    report = json.loads((config.output_dir / "report" / "report.json").read_text())
    assert report["rows"][0]["metrics"]["test_accuracy"]["n"] == 1
    assert (config.output_dir / "report" / "convergence.png").exists()


def test_some_rows_are_run_and_the_others_later(tiny_sweep, tmp_path, console, monkeypatch):
    (row,) = tiny_sweep.rows
    other = Row("Other", dataclasses.replace(row.config, batch_size=50))
    quoted = Row("Quoted (1999)", None)
    sweep = dataclasses.replace(tiny_sweep, rows=(row, other, quoted))
    monkeypatch.setitem(SWEEPS, "tiny", sweep)
    kept = []
    monkeypatch.setattr("experiments.sweep.command.keep_compiled_programs", kept.append)
    config = SweepConfig("tiny", seeds=2, output_dir=tmp_path)
    some = run_sweep(dataclasses.replace(config, rows=("Other",)), console, fake_run)
    assert (some.finished, some.total) == (2, 2)
    assert kept == [tmp_path]
    assert [path.name for path in (tmp_path / "runs").iterdir() if path.is_dir()] == ["other"]
    assert len(read_plan(tmp_path)["rows"]) == 3
    everything = run_sweep(config, console, fake_run)
    assert (everything.finished, everything.total) == (6, 6)
    begun = (tmp_path / "runs" / "begun.txt").read_text().splitlines()
    assert len(begun) == 6  # none of them twice


@pytest.mark.parametrize("rows", [("plain",), ("Plain", "Quoted"), ()])
def test_a_row_that_is_not_known_is_refused_with_those_that_are(
    tiny_sweep, tmp_path, console, rows
):
    config = SweepConfig("tiny", rows=rows, output_dir=tmp_path / "sweep")
    with pytest.raises(SettingError, match=r"--rows must name .*these are\n  Plain$"):
        run_sweep(config, console, None)
    assert not config.output_dir.exists()


def test_changed_settings_are_refused_before_anything_runs(
    tiny_sweep, tmp_path, console, monkeypatch
):
    config = SweepConfig("tiny", seeds=1, output_dir=tmp_path)
    run_sweep(config, console, fake_run)
    (row,) = tiny_sweep.rows
    changed = dataclasses.replace(row, config=dataclasses.replace(row.config, batch_size=50))
    monkeypatch.setitem(SWEEPS, "tiny", dataclasses.replace(tiny_sweep, rows=(changed,)))
    with pytest.raises(ConfigMismatchError, match="batch_size is 100 there, and 50 in the sweep"):
        run_sweep(config, console, None)


def test_the_length_of_the_runs_can_be_changed_but_not_in_a_directory_that_has_some(
    tiny_sweep, tmp_path, console
):
    config = SweepConfig("tiny", seeds=1, epochs=3, output_dir=tmp_path)
    epochs = []

    def run(train_config, console):
        epochs.append(train_config.epochs)
        return fake_run(train_config, console)

    run_sweep(config, console, run)
    assert epochs == [3, 3]
    with pytest.raises(ConfigMismatchError, match="epochs is 3 there, and 1 in the sweep"):
        run_sweep(dataclasses.replace(config, epochs=None), console, run)


def test_results_that_are_elsewhere_are_missed(tiny_sweep, tmp_path, console):
    storage = f"sqlite:///{tmp_path / 'sweep.db'}"
    for place in ("first", "second"):
        config = SweepConfig("tiny", seeds=1, storage=storage, output_dir=tmp_path / place)
        run_sweep(config, console, fake_run)
        missing = "2 of these runs are not in" in console.file.getvalue()
        assert missing == (place == "second")


def test_the_command_line_runs_it(tiny_sweep, monkeypatch):
    configs = []
    monkeypatch.setattr(command_line, "run_sweep", lambda config, console: configs.append(config))
    arguments = ["digits-small", "--seeds", "5", "--storage", "postgresql://host/db"]
    assert command_line.main(["sweep", *arguments]) == 0
    assert configs == [SweepConfig("digits-small", seeds=5, storage="postgresql://host/db")]
    assert str(configs[0].resolved_output_dir) == "runs/sweeps/digits-small"


def test_a_sweep_that_is_not_known_is_refused_with_those_that_are(capsys):
    assert command_line.main(["sweep", "digits-smal"]) == 2
    captured = capsys.readouterr()
    assert "digits-small" in captured.out + captured.err


@pytest.mark.parametrize("name", ["seeds", "epochs"])
def test_numbers_out_of_range_are_explained_without_a_traceback(name, capsys):
    assert command_line.main(["sweep", "digits-small", f"--{name}", "0"]) == 1
    assert f"error: --{name} must be at least 1, not 0" in capsys.readouterr().err
