"""A study on digits that takes seconds, and a worker of it in a process of its own.

    python tests/study_worker.py OUTPUT_DIR RECORDS

The runs of the worker train nothing: their figures are made up from the settings and the seed.
"""

import io
import os
import sys
import time
import zlib
from pathlib import Path

from rich.console import Console

from experiments.config import ModelConfig, OptimizerConfig, TrainConfig, to_json
from experiments.data.load import load_data
from experiments.regularizers import SAM, GaussNewton, LabelSmoothing, SehtH, describe_method
from experiments.study import carry_out
from experiments.study.command import StudyConfig, run_study
from experiments.study.protocol import Measurement, Method, Protocol, Setting
from experiments.study.records import Record
from experiments.study.stages import TUNING
from experiments.training.run_directory import claim_run_directory, write_result

BASE = TrainConfig(
    model=ModelConfig(network="convnet", width=2),
    optimizer=OptimizerConfig(learning_rate=0.05, clip_norm=5.0),
    method=(),
    epochs=4,
    batch_size=100,
    trace_examples=0,
)
SETTING = Setting(
    "digits",
    "Digits, a network without normalisation",
    BASE,
    {"optimizer.learning_rate": (0.05, 0.1), "optimizer.weight_decay": (5e-4,)},
    (
        Method("Label smoothing", (LabelSmoothing(),), "label-smoothing.weight", (0.1, 0.3)),
        Method("SAM", (SAM(),), "sam.rho", (0.05, 0.1)),
        Method("SEHT-H", (SehtH(),), "seht-h.lam", (1e-5, 1e-4)),
        Method("Gauss-Newton SEHT-H", (GaussNewton(),), "gauss-newton.strength", (0.2, 0.6)),
    ),
    margin=0.01,
    conditions={"label noise 20 %": {"data.label_noise": 0.2}},
)
PROTOCOL = Protocol(
    (SETTING,),
    tuning_seeds=(100, 101),
    finalist_seeds=(0, 1, 2),
    condition_seeds=(0, 1),
    groups=(("SEHT-H",),),
    num_others=0,
    measurement=Measurement(
        examples=50, trace_probes=2, eigenvalue_examples=50, eigenvalue_products=3
    ),
)
# 2 points; 8 strengths; 4 finalists, 3 of them dearer than plain training; 3 methods; plain.
NUM_RUNS = {
    "plain": 2 * 2,
    "strengths": 8 * 2,
    "times": 3,
    "finalists": 4 * 3,
    "equal-time": 3 * 3,
    "conditions": 3 * 2,
    "longer": 3,
}
CURVATURE = {
    "calibration_error": 0.05,
    "hessian_trace": 100.0,
    "hessian_trace_standard_error": 5.0,
    "gauss_newton_trace": 110.0,
    "gauss_newton_trace_standard_error": 5.0,
    "top_eigenvalue": 20.0,
    "params_norm": 12.0,
    "relative_trace": 3.0,
    "relative_trace_standard_error": 0.1,
}


def figures_of(config):
    """Make up what a run comes to: a little better for each method, a little worse by the seed."""
    words = " ".join(describe_method(config.method))
    penalty = 0.0 if words == "plain" else 0.01
    noise = zlib.crc32(f"{words} {config.seed}".encode()) / 2**32 / 100
    accuracy = 0.9 + penalty + noise - abs(config.optimizer.learning_rate - 0.1)
    step_time = 0.01 if words == "plain" else 0.02
    return {
        "steps": 10 * config.epochs,
        "epochs": config.epochs,
        "training_seconds": 10 * config.epochs * step_time,
        "median_step_time": step_time,
        **{f"{split}_loss": 1 - accuracy for split in ("train", "validation", "test")},
        **{f"{split}_accuracy": accuracy for split in ("train", "validation", "test")},
    }


def compare(config, plain, console):
    """Make up times of steps: each method takes twice as long as plain training."""
    del config, plain, console
    return {
        "plain_step_time": 0.01,
        "step_time": 0.02,
        "step_time_ratio": 2.0,
        "step_time_ratio_least": 1.9,
        "step_time_ratio_most": 2.1,
    }


def fake_run(config, console):
    """Leave a line in a common file, and what a run leaves."""
    directory = config.resolved_run_dir
    runs = next(parent for parent in directory.parents if parent.name == "runs")
    with (runs / "begun.txt").open("a") as file:
        file.write(f"{directory.relative_to(runs.parent)} {os.getpid()}\n")
    claim_run_directory(directory, config, load_data(config.data))
    time.sleep(0.05)
    result = {
        "name": config.name,
        "method": describe_method(config.method),
        "seed": config.seed,
        **figures_of(config),
    }
    write_result(directory, result)
    return result


def record_of(run, **changes):
    """Make up the record of a run."""
    figures = figures_of(run.config) | {"seconds": 1.0}
    if run.stage == "times":
        figures = compare(run.config, None, None)
    elif run.stage in TUNING:
        figures = {name: value for name, value in figures.items() if not name.startswith("test")}
    else:
        figures |= CURVATURE
    record = Record(
        run=run.key,
        stage=run.stage,
        setting=run.setting,
        condition=run.condition,
        method=run.method,
        values=run.values,
        seed=run.config.seed,
        settings=to_json(run.config) | {"data.checksum": 1},
        commit="0" * 40,
        date="2026-01-01T00:00:00+00:00",
        environment={"jax": "0", "cpu_count": 2},
        diverged=False,
        divergence="",
        figures=figures,
    )
    return record._replace(**changes)


def begun(output_dir):
    """The runs that were begun, each with the process."""
    path = output_dir / "runs" / "begun.txt"
    return [line.rsplit(" ", 1) for line in path.read_text().splitlines()] if path.exists() else []


def work(
    output_dir,
    records,
    run=fake_run,
    protocol=PROTOCOL,
    console=None,
    compare=compare,
    **options,
):
    config = StudyConfig(output_dir, records=records, settings=("digits",), **options)
    console = Console(file=io.StringIO(), width=120) if console is None else console
    run_study(config, console, protocol, run, compare)


def main():
    carry_out._measure = lambda *_: CURVATURE  # nothing was trained
    work(Path(sys.argv[1]), Path(sys.argv[2]))


if __name__ == "__main__":
    main()
