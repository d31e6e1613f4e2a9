"""A run that was trained for a moment, another that stands for its neighbour, and their page."""

import dataclasses
import io
from pathlib import Path
from typing import NamedTuple

import jax
import pytest
from analysed_runs import METHOD, PLAIN, QUICK, write_run
from rich.console import Console

from experiments.analyse import command
from experiments.analyse.command import AnalyseConfig, run_analyse
from experiments.analyse.measure import Measurement, measurer
from experiments.data.load import load_data
from experiments.training.loop import train
from experiments.training.run_directory import read_result


@pytest.fixture(scope="package")
def runs(tmp_path_factory):
    """The directory of two runs, ``plain-seed0`` and ``method``, whose weights are a bit larger."""
    directory = tmp_path_factory.mktemp("runs")
    plain = dataclasses.replace(PLAIN, run_dir=directory / "plain-seed0")
    config = dataclasses.replace(PLAIN, method=METHOD, run_dir=directory / "method")
    with jax.numpy_dtype_promotion("strict"):
        train(plain, Console(file=io.StringIO()))
        data = load_data(plain.data)
        write_run(config, data, read_result(plain.run_dir), factor=1.1)
    return directory


class Analysis(NamedTuple):
    """What the command said and wrote, and what it measured of the last network."""

    said: str
    output_dir: Path
    measured: Measurement


@pytest.fixture(scope="package")
def analysis(runs, tmp_path_factory):
    """The analysis of both."""
    output_dir = tmp_path_factory.mktemp("analysis")
    console = Console(file=io.StringIO(), width=120)
    config = AnalyseConfig(runs / "method", output_dir=output_dir, measure=QUICK)
    found = []

    def recording(*arguments):
        measure = measurer(*arguments)
        return lambda network: found.append(measure(network)) or found[-1]

    with jax.numpy_dtype_promotion("strict"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "measurer", recording)
        run_analyse(config, console)
    return Analysis(console.file.getvalue(), output_dir, found[-1])
