"""The command line, and the benchmark of scaling with nothing measured."""

import io
import json

import pytest
from rich.console import Console

from benchmarks import __main__ as command_line
from benchmarks import scaling
from benchmarks.measure import Measurement
from benchmarks.scaling import ScalingConfig, run_scaling
from benchmarks.step_time import NoSuchRowError


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["step_time", "scaling", "exact_trace", "trainer", "communication", "cluster"]),
        (["step_time"], ["--models", "--rows", "--rounds", "--quick", "wrn-16-4"]),
        (["scaling"], ["--tables", "--width", "--rounds", "--quick", "probes"]),
        (["exact_trace"], ["--layers", "--width", "--weights", "--quick", "stem_conv"]),
        (["communication"], ["--models", "--placements", "--tpu", "--quick", "shard_map"]),
        (["cluster"], ["--devices", "--bandwidth", "--latency", "--overlap", "--flops"]),
        (["pyhessian"], ["--dataset", "--width", "--samples", "--trace-probes", "cifar10"]),
        (["trainer"], ["--width", "--batch-size", "--steps", "--rounds", "--quick"]),
    ],
)
def test_help(capsys, arguments, words):
    with pytest.raises(SystemExit, match="0"):
        command_line.main([*arguments, "--help"])
    text = capsys.readouterr().out
    assert all(word in text for word in words)


def test_settings_are_taken_from_the_command_line(monkeypatch):
    configs = []
    monkeypatch.setattr(command_line, "run_step_time", lambda config, _: configs.append(config))
    arguments = ["step_time", "--models", "mlp", "lstm", "--rows", "SAM", "--rounds", "3"]
    assert command_line.main(arguments) == 0
    (config,) = configs
    assert (config.models, config.rows, config.rounds) == (("mlp", "lstm"), ("SAM",), 3)


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [(NoSuchRowError("no such row"), 1, "no such row"), (KeyboardInterrupt, 130, "Stopped")],
)
def test_what_stops_it_is_explained(monkeypatch, capsys, error, status, words):
    def stopped(config, console):
        raise error

    monkeypatch.setattr(command_line, "run_step_time", stopped)
    assert command_line.main(["step_time"]) == status
    assert words in capsys.readouterr().err


def test_scaling_fills_its_tables(monkeypatch):
    cells = []

    def measure_cell(cell, rounds, progress):
        cells.append(cell)
        plain = Measurement("plain step", "plain step", seconds=1.0, compile_seconds=1.0)
        penalised = Measurement(
            "SEHT-H", "plain step", seconds=3.0, ratio=3.0, memory_ratio=2.0, compile_seconds=4.0
        )
        return [plain, penalised]

    monkeypatch.setattr(scaling, "_measure_cell", measure_cell)
    console = Console(file=io.StringIO(), width=100)
    report = json.loads(run_scaling(ScalingConfig(), console).read_text())
    assert report["finished"]
    assert len(report["cells"]) == len(cells) == 4 + 4 + 3 + 3
    assert [cell.num_probes for cell in cells[:4]] == [1, 2, 5, 10]
    assert [cell.size["batch_size"] for cell in cells[4:8]] == [8, 16, 32, 64]
    assert [cell.size["width"] for cell in cells[8:11]] == [16, 32, 64]
    assert [cell.size["depth"] for cell in cells[11:]] == [10, 16, 22]
    assert console.file.getvalue().count("3.00x") == len(cells)
