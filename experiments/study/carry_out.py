"""One run of the study: trained, measured, and written down."""

import dataclasses
import datetime as dt
import functools
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from rich.console import Console

from experiments.analyse.trained import (
    FinishedRun,
    TrainedNetwork,
    load_network,
    load_run_data,
    read_finished_run,
)
from experiments.config import TrainConfig, to_json
from experiments.data.corpus import Corpus
from experiments.data.dataset import Dataset
from experiments.data.load import load_data_once
from experiments.environment import describe_environment
from experiments.study.measure import prepare_measurement
from experiments.study.protocol import Measurement
from experiments.study.records import Record, append_record
from experiments.study.stages import TUNING, StudyRun, check_run_settings
from experiments.sweep.outcome import Outcome, RunFunction, carry_out
from experiments.sweep.plan import PlannedRun
from experiments.tasks.build import build_task
from experiments.training.logging import TOGETHER
from experiments.training.run_directory import read_settings

CompareTimes: TypeAlias = Callable[[TrainConfig, TrainConfig, Console], dict[str, float]]

_FIGURES = ("steps", "epochs", "best_epoch")
_TIMES = ("training_seconds", "median_step_time")
_OF_A_SPLIT = ("loss", "accuracy", "perplexity")
_ENVIRONMENT = ("jax", "python", "device", "cpu_count")
_STANDARD_ERRORS = 2


def plan_run(run: StudyRun, output_dir: Path, data_dir: Path | None) -> PlannedRun:
    """Say where a run is carried out, and where its data are.

    Args:
        run: The run.
        output_dir: Where the run directories are.
        data_dir: Where the data are that do not come with a package.

    Returns:
        The run, as a queue takes it.
    """
    config = dataclasses.replace(run.config, run_dir=output_dir / run.key)
    if config.data.dataset not in {"digits", "pydoc"}:
        data = dataclasses.replace(config.data, data_dir=data_dir)
        config = dataclasses.replace(config, data=data)
    return PlannedRun(run.key, f"{run.stage} {run.setting} {run.method}", run.values, config)


def carry_out_and_record(
    run: StudyRun,
    planned: PlannedRun,
    measurement: Measurement,
    records: Path,
    commit: str | None,
    train: RunFunction,
    console: Console,
) -> Outcome:
    """Carry out a run, or go on with it, and write its record.

    Args:
        run: The run.
        planned: The same, with its places.
        measurement: How it is measured, if it is tested.
        records: The file of the records.
        commit: The commit of the code.
        train: Carries out a run in its directory.
        console: Where progress is shown.

    Returns:
        What came of it: the figures of its record.

    Raises:
        ConfigMismatchError: If the directory holds a run with other settings.
    """
    start = time.perf_counter()
    directory = planned.config.resolved_run_dir
    there = read_settings(directory)
    if there is not None:
        check_run_settings(run, there, str(directory))
    outcome = carry_out(planned.config, train, console)
    figures: dict[str, float] = {}
    divergence = outcome.divergence or ""
    if outcome.result is not None:
        figures = select_figures(outcome.result, tested=run.stage not in TUNING)
        finished = read_finished_run(directory, planned.config.data.data_dir)
        data = load_run_data(finished, load_data_once)
        divergence = no_better_than_chance(figures, data)
        if run.stage not in TUNING and not divergence:
            console.print("Measuring the trained network.")
            figures |= _measure(planned.config, finished, data, measurement, console)
        if TOGETHER not in figures:
            # The part of a run before an interruption is in the training's own seconds.
            seconds = time.perf_counter() - start
            figures["seconds"] = max(seconds, figures["training_seconds"])
    append_record(
        records, _record(run, read_settings(directory) or {}, commit, figures, divergence)
    )
    return Outcome(figures, None) if figures else Outcome(None, divergence)


def time_and_record(
    run: StudyRun,
    planned: PlannedRun,
    plain: TrainConfig,
    records: Path,
    commit: str | None,
    compare: CompareTimes,
    console: Console,
) -> None:
    """Compare the times of steps with plain training's, and write the record.

    Args:
        run: A run of the stage ``times``.
        planned: The same, with its places.
        plain: Plain training as it was tuned.
        records: The file of the records.
        commit: The commit of the code.
        compare: Compares them.
        console: Where progress is shown.
    """
    config = planned.config
    plain = dataclasses.replace(plain, data=config.data, run_dir=config.run_dir)
    append_record(
        records, _record(run, to_json(run.config), commit, compare(config, plain, console))
    )


def select_figures(result: Mapping[str, Any], *, tested: bool) -> dict[str, float]:
    """Take the figures of a record from the result of a run.

    Args:
        result: The result.
        tested: Whether figures of the test data are among them.

    Returns:
        Figures by name; no times, if the run shared the device with others.
    """
    splits = ("train", "validation", *(["test"] if tested else []))
    general = (*_FIGURES, TOGETHER) if TOGETHER in result else (*_FIGURES, *_TIMES)
    names = (*general, *(f"{split}_{name}" for split in splits for name in _OF_A_SPLIT))
    return {name: result[name] for name in names if name in result}


def no_better_than_chance(figures: Mapping[str, float], data: Dataset | Corpus) -> str:
    """Look for a network that has learnt nothing, or lost all.

    Args:
        figures: Its figures.
        data: What it was trained on.

    Returns:
        A sentence; empty, if its validation accuracy is above chance by more than two standard
        errors, or its perplexity below the number of words.
    """
    if isinstance(data, Corpus):
        chance = len(data.vocabulary)
        perplexity = figures["validation_perplexity"]
        if perplexity < chance:
            return ""
        return (
            f"No better than chance: a validation perplexity of {perplexity:.4g} with {chance} "
            "words."
        )
    chance = 1 / data.num_classes
    error = math.sqrt(chance * (1 - chance) / len(data.validation.labels))
    accuracy = figures["validation_accuracy"]
    if accuracy > chance + _STANDARD_ERRORS * error:
        return ""
    return (
        f"No better than chance: a validation accuracy of {accuracy:.4f} with {data.num_classes} "
        "classes."
    )


def _measure(
    config: TrainConfig,
    finished: FinishedRun,
    data: Dataset | Corpus,
    measurement: Measurement,
    console: Console,
) -> dict[str, float]:
    def warn(message: str) -> None:
        console.print(message, style="yellow", markup=False, highlight=False, soft_wrap=True)

    measure = _measurement_of(_without_training(config), measurement)
    return measure(load_network(finished, data, warn))


@functools.lru_cache(maxsize=1)
def _measurement_of(
    config: TrainConfig, measurement: Measurement
) -> Callable[[TrainedNetwork], dict[str, float]]:
    """Prepare a measurement, unless the network that was measured last had the same."""
    data = load_data_once(config.data)
    return prepare_measurement(build_task(config, data), data, measurement)


def _without_training(config: TrainConfig) -> TrainConfig:
    """Leave data, network and size of a batch."""
    return TrainConfig(
        data=config.data, model=config.model, method=(), batch_size=config.batch_size
    )


def _record(
    run: StudyRun,
    settings: dict[str, Any],
    commit: str | None,
    figures: dict[str, float],
    divergence: str = "",
) -> Record:
    return Record(
        run=run.key,
        stage=run.stage,
        setting=run.setting,
        condition=run.condition,
        method=run.method,
        values=run.values,
        seed=run.config.seed,
        settings=settings,
        commit=commit,
        date=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        environment=_environment(),
        diverged=bool(divergence),
        divergence=divergence,
        figures=figures,
    )


def _environment() -> dict[str, Any]:
    described = describe_environment()
    return {name: described[name] for name in _ENVIRONMENT}
