"""Several runs of one experiment as one program: small networks do not fill a large device.

The training step of `experiments.training.step` is mapped over the runs (`jax.vmap`). They may
differ in their seeds and in numbers of the methods and of the optimizer; an epoch is one call.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree
from rich.console import Console

from experiments.config import DevicesConfig, TrainConfig, to_json
from experiments.data.corpus import Corpus
from experiments.data.dataset import Dataset
from experiments.errors import DivergedError, ExperimentError, SettingError, option
from experiments.models.convolution import convolution_as_product
from experiments.regularizers import SehtD
from experiments.tasks.base import Metrics, Task
from experiments.training.checkpoint import Checkpoints
from experiments.training.divergence import describe_divergence, find_bad_steps
from experiments.training.logging import (
    LOG,
    TOGETHER,
    RunLog,
    add_run,
    make_progress,
    read_log,
    show,
)
from experiments.training.loop import (
    CHECKPOINTS,
    Experiment,
    Row,
    build_experiment,
    summarise,
)
from experiments.training.run_directory import (
    claim_run_directory,
    hold_run_directory,
    read_result,
    record_start,
    write_result,
)
from experiments.training.state import TrainState, build_optimizer, with_methods
from experiments.training.step import make_train_step
from experiments.training.strengths import OPTIMIZER, Strengths, strengths_of, with_strengths

_MAY_DIFFER = frozenset({"method", "optimizer.learning_rate", "optimizer.weight_decay"})


def train_together(
    configs: Sequence[TrainConfig], data: Dataset | Corpus, console: Console
) -> list[dict[str, Any] | DivergedError]:
    """Train networks side by side, each in its run directory, as `train` does one.

    Products are in full float32 on every device. The log has a row for each epoch, without figures
    of the validation data, and only the state behind the last step is saved: where it is
    interrupted, all runs begin anew.

    Args:
        configs: The configurations. They may differ in seed, run directory, learning rate, weight
            decay, and strength of the method.
        data: The data of all of them.
        console: Where progress is shown.

    Returns:
        Of each run its result, which has `TOGETHER` besides, or the error with which it diverged.

    Raises:
        ConfigMismatchError: If a run directory belongs to another configuration.
        ExperimentError: If a method can not work on the network, or a directory has checkpoints of
            a run that was begun by itself.
        OSError: If a log or a checkpoint can not be written.
        RunningError: If another process is at one of the runs.
        SettingError: If the configurations differ in more, do not fit the data, or ask for what
            runs side by side can not do.
    """
    _check_alike(configs)
    experiments = _build(configs, data)
    strengths = _stack_strengths(experiments)
    directories = [config.resolved_run_dir for config in configs]
    with contextlib.ExitStack() as held, jax.default_matmul_precision("highest"):
        settings = []
        for directory, config in zip(directories, configs, strict=True):
            settings.append(claim_run_directory(directory, config, data))
            held.enter_context(hold_run_directory(directory))
        outcomes: list[Any] = [*map(read_result, directories)]
        new = [i for i, outcome in enumerate(outcomes) if outcome is None]
        for i in new:
            _check_not_begun(directories[i])
            record_start(directories[i])
        if not new:
            return outcomes
        console.print(f"Training together: {len(new)} runs.", highlight=False)
        states, rows, errors = _train(
            [experiments[i] for i in new],
            {place: numbers[jnp.asarray(new)] for place, numbers in strengths.items()},
            console,
        )
        for k, i in enumerate(new):
            _write_log(directories[i], rows[k])
            outcomes[i] = errors[k] or _finish(
                experiments[i], directories[i], settings[i], _state_of(states, k)
            )
    return outcomes


def is_begun_alone(directory: Path) -> bool:
    """Tell whether a run directory has checkpoints of a run that is not finished.

    Args:
        directory: The run directory, which need not exist.

    Returns:
        Whether it has.
    """
    checkpoints = directory / CHECKPOINTS
    return read_result(directory) is None and checkpoints.is_dir() and any(checkpoints.iterdir())


def _check_not_begun(directory: Path) -> None:
    """Check that no run would be lost.

    Raises:
        ExperimentError: If there is one.
    """
    if is_begun_alone(directory):
        raise ExperimentError(
            f"{directory} holds a run that was begun by itself and has checkpoints. Finish it by "
            "itself, or move its directory away."
        )


def _state_of(states: TrainState, run: int) -> TrainState:
    leaves = jax.tree.map(lambda leaf: leaf[run], states._replace(step=None))
    return leaves._replace(step=states.step)


def _write_log(directory: Path, rows: Sequence[tuple[int, Row]]) -> None:
    with RunLog(directory, resumed_at=0) as log:
        for step, row in rows:
            log.write(step, row)


def _finish(
    experiment: Experiment, directory: Path, settings: Mapping[str, Any], state: TrainState
) -> dict[str, Any]:
    """Measure a run, and write its checkpoint and its result."""
    result = summarise(experiment, state, None, read_log(directory / LOG))
    with Checkpoints(directory / CHECKPOINTS, settings=settings, keep=1) as checkpoints:
        checkpoints.save(state)
        checkpoints.finish()
    write_result(directory, result)
    return result


def _build(configs: Sequence[TrainConfig], data: Dataset | Corpus) -> list[Experiment]:
    """Build what is trained, once for all runs that differ in their seed alone."""
    built: dict[TrainConfig, Experiment] = {}
    experiments = []
    for config in configs:
        shared = dataclasses.replace(config, seed=0, run_dir=None)
        if shared not in built:
            built[shared] = build_experiment(shared, data)
        evaluator = next(iter(built.values())).evaluator  # compiled once
        experiments.append(dataclasses.replace(built[shared], config=config, evaluator=evaluator))
    return experiments


def _check_alike(configs: Sequence[TrainConfig]) -> None:
    """Check that configurations can be trained as one program.

    Raises:
        SettingError: If not.
    """
    if any(config.devices != DevicesConfig() for config in configs):
        raise SettingError("runs that are trained together are not spread over devices")
    for config in configs:
        for name, value, wanted in (
            ("reported", config.reported, "last"),
            ("schedule", config.optimizer.schedule, "cosine"),
            ("on_divergence", config.on_divergence, "stop"),
        ):
            if value != wanted:
                raise SettingError(f"runs are trained together with {option(name)} {wanted} alone")
    if len({tuple(map(type, config.method)) for config in configs}) > 1:
        raise SettingError("runs that are trained together must have one method")
    settings = [to_json(dataclasses.replace(config, seed=0, run_dir=None)) for config in configs]
    differing = sorted(
        name
        for name in settings[0]
        if any(each.get(name) != settings[0][name] for each in settings)
        if name not in _MAY_DIFFER
    )
    if differing:
        raise SettingError(
            f"runs that are trained together must not differ in {', '.join(differing)}"
        )


def _train(
    experiments: Sequence[Experiment], strengths: Strengths, console: Console
) -> tuple[TrainState, list[list[tuple[int, Row]]], list[DivergedError | None]]:
    """Train to the last step; the states are stacked, with one step for all."""
    first = experiments[0]
    task, num_runs = first.task, len(experiments)
    run_epoch = _make_epoch(first)
    states = [experiment.init(experiment.config.seed) for experiment in experiments]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    stacked = stacked._replace(step=states[0].step)
    rows: list[list[tuple[int, Row]]] = [[] for _ in experiments]
    errors: list[DivergedError | None] = [None] * num_runs
    with make_progress(console) as progress:
        shown = add_run(progress, "training", first.num_steps)
        for epoch in range(first.config.epochs):
            start = time.perf_counter()
            orders = [task.epoch_order(state.key, epoch) for state in states]
            order = jax.tree.map(lambda *leaves: jnp.stack(leaves), *orders)
            stacked, metrics = run_epoch(stacked, task.train_data, order, strengths)
            metrics = jax.device_get(metrics)
            seconds = (time.perf_counter() - start) / num_runs
            last_step = (epoch + 1) * first.steps_per_epoch
            for i in range(num_runs):
                if errors[i] is not None:
                    continue
                of_run = {name: each[:, i] for name, each in metrics.items()}
                errors[i] = _look_for_divergence(of_run, last_step, first.config)
                if errors[i] is None:
                    row = {name: float(np.mean(each)) for name, each in of_run.items()}
                    row |= first.times(seconds, first.steps_per_epoch)
                    row |= {"epoch": float(epoch + 1), TOGETHER: float(num_runs)}
                    rows[i].append((last_step, row))
            if None not in errors:
                break
            _, newest = rows[errors.index(None)][-1]
            show(progress, shown, last_step, newest | {"step_time": num_runs * newest["step_time"]})
    return stacked, rows, errors


def _make_epoch(
    experiment: Experiment,
) -> Callable[[TrainState, PyTree, PyTree, Strengths], tuple[TrainState, Metrics]]:
    """Build the jitted epoch of all runs: from stacked states to the next, and all metrics."""
    task = _with_products(experiment.task)
    optimizer = with_methods(experiment.config.optimizer, experiment.method)
    parts = [
        # Each run draws its own layers, and under vmap a switch computes all of its branches.
        dataclasses.replace(part, num_branches=1) if isinstance(part, SehtD) else part
        for part in experiment.method
    ]

    def step(
        state: TrainState, data: PyTree, order: PyTree, strengths: Strengths
    ) -> tuple[TrainState, Metrics]:
        settings, method = with_strengths(optimizer, parts, strengths)
        tx = build_optimizer(settings, experiment.num_steps, method)
        return make_train_step(task, tx, method)(state, data, order)

    # With one step for all, what depends on it alone stays a branch. Under vmap, a condition that
    # differs from run to run computes both sides; such is whether a strength is 0, so that a lazy
    # method is no cheaper here than one that is not.
    runs = TrainState._make((0, 0, 0, None, 0))
    steps = jax.vmap(step, in_axes=(runs, None, 0, 0))

    @jax.jit
    def run_epoch(
        states: TrainState, data: PyTree, order: PyTree, strengths: Strengths
    ) -> tuple[TrainState, Metrics]:
        def one(states: TrainState, _: None) -> tuple[TrainState, Metrics]:
            following, metrics = steps(states, data, order, strengths)
            return following._replace(step=states.step + 1), metrics

        return jax.lax.scan(one, states, length=experiment.steps_per_epoch)

    return run_epoch


def _with_products(task: Task) -> Task:
    """Let a network that convolves do so by matrix products, where it leaves that open."""
    if "convolution" not in {field.name for field in dataclasses.fields(task.model)}:
        return task
    return dataclasses.replace(task, model=task.model.clone(convolution=convolution_as_product))


def _stack_strengths(experiments: Sequence[Experiment]) -> Strengths:
    """Collect the strengths, one array of all runs for each.

    Raises:
        SettingError: If the runs differ in something else, or their methods make different
            networks.
    """
    first = experiments[0]
    if any(each.task.model != first.task.model for each in experiments):
        raise SettingError("runs that are trained together must have one network")
    # Not only as they are named: the calibrated form becomes SEHT-H or SEHT-D.
    if len({tuple(map(type, each.method)) for each in experiments}) > 1:
        raise SettingError("runs that are trained together must have one estimator")
    optimizers = [with_methods(each.config.optimizer, each.method) for each in experiments]
    strengths = [
        strengths_of(optimizer, each.method)
        for optimizer, each in zip(optimizers, experiments, strict=True)
    ]
    common = set.intersection(*map(set, strengths))
    places = {OPTIMIZER: optimizers} | {
        place: [each.method[place] for each in experiments] for place in range(len(first.method))
    }
    for place, settings in places.items():
        for field in dataclasses.fields(settings[0]):
            of_runs = [getattr(each, field.name) for each in settings]
            differ = any(each != of_runs[0] for each in of_runs)
            if differ and (place, field.name) not in common:
                raise SettingError(
                    f"runs that are trained together must not differ in {field.name}, "
                    f"{' and '.join(sorted({str(each) for each in of_runs}))} here"
                )
    return {name: jnp.stack([each[name] for each in strengths]) for name in sorted(common)}


def _look_for_divergence(
    metrics: Mapping[str, np.ndarray], last_step: int, config: TrainConfig
) -> DivergedError | None:
    """Look for the first step of an epoch with a metric that is no finite number."""
    rows = [dict(zip(metrics, step, strict=True)) for step in zip(*metrics.values(), strict=True)]
    bad = find_bad_steps(rows, first_step=last_step - len(rows) + 1)
    return DivergedError(describe_divergence(bad[0], config)) if bad else None
