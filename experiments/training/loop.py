"""Training from the first step to the last, with log, checkpoints and resumption."""

import dataclasses
import functools
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree
from rich.console import Console

from experiments.config import TrainConfig
from experiments.data.augment import normalise
from experiments.data.dataset import Dataset, Split
from experiments.data.load import load_dataset
from experiments.errors import DivergedError, SettingError
from experiments.models.build import build_model
from experiments.regularizers import Batch, InitialNetwork, describe_method
from experiments.tasks.classification import Evaluator, make_loss_fn, make_network
from experiments.training.checkpoint import Checkpoints
from experiments.training.logging import LOG, RunLog, add_run, make_progress, read_log, show
from experiments.training.run_directory import (
    claim_run_directory,
    read_result,
    record_start,
    write_result,
)
from experiments.training.state import TrainState, init_state, make_optimizer
from experiments.training.step import TrainStep, epoch_order, make_train_step
from seht_jax.curvature import Curvature

Row: TypeAlias = dict[str, float]

_TRACE_SEED = 0
_TRACES: dict[str, Curvature] = {"trace": "hessian", "gauss_newton_trace": "gauss_newton"}

# What the methods call the strength of a penalty.
_STRENGTHS = ("lam", "gamma", "strength", "initial_penalty", "relative")

# As many as the traces of the studies of strengths are measured on.
INITIAL_EXAMPLES = 256


def train(config: TrainConfig, console: Console) -> dict[str, Any]:
    """Train one network, or go on with a run that was interrupted.

    Args:
        config: The configuration; its run directory may hold an earlier part of the same run.
        console: Where progress is shown.

    Returns:
        The result: losses and accuracies at the last epoch, tr(H) and tr(G), steps and seconds.

    Raises:
        ConfigMismatchError: If the run directory belongs to another configuration.
        DivergedError: If a loss or gradient is no finite number.
        MissingDataError: If the data are not there.
        SettingError: If a setting does not fit the data.
    """
    directory = config.resolved_run_dir
    dataset = load_dataset(config.data)
    check_fit(config, dataset)  # before a directory is made that would hold the wrong settings
    claim_run_directory(directory, config, dataset)
    result = read_result(directory)
    if result is not None:
        console.print(f"This run is finished; its result was in {directory}.")
        return result
    record_start(directory)
    experiment = build_experiment(config, dataset)
    state = experiment.init(config.seed)
    with Checkpoints(directory / "checkpoints") as checkpoints:
        if checkpoints.latest_step is not None:
            state = checkpoints.restore(state)
            console.print(f"Going on from step {int(state.step)} in {directory}.")
        else:
            console.print(f"Training {' '.join(describe_method(config.method))} in {directory}.")
        with console.status("Compiling the training step"):
            experiment.warm_up(state)
        with RunLog(directory, resumed_at=int(state.step)) as log:
            state = _train_and_log(experiment, state, checkpoints, log, console)
        result = _summarise(experiment, state, read_log(directory / LOG))
        write_result(directory, result)
        checkpoints.keep_newest()
    return result


def build_experiment(config: TrainConfig, dataset: Dataset) -> "Experiment":
    """Build network, optimizer and training step.

    Nothing is computed yet, unless a method wants to see the network before the first step.

    Args:
        config: The configuration.
        dataset: The data.

    Returns:
        What all runs of this configuration, whatever their seed, have in common.

    Raises:
        SettingError: If a setting does not fit the data.
    """
    check_fit(config, dataset)
    size = len(dataset.train.labels)
    model = build_model(config.model, dataset.num_classes, config.method)
    num_steps = config.epochs * (size // config.batch_size)
    initial = functools.partial(_initial_network, model, dataset, num_steps)
    method = [part.at_start(initial) for part in config.method]
    tx = make_optimizer(config.optimizer, num_steps, method)
    train_step = make_train_step(
        model,
        tx,
        method,
        dataset,
        batch_size=config.batch_size,
        augmentation=config.data.augmentation,
    )
    # Without the method, so that networks are compared as they are: the trace is that of a loss
    # with nothing dropped.
    evaluator = Evaluator(build_model(config.model, dataset.num_classes), dataset)
    return Experiment(config, dataset, model, tx, train_step, evaluator)


def _initial_network(model: nn.Module, dataset: Dataset, num_steps: int) -> InitialNetwork:
    state = init_state(model, optax.identity(), dataset.train.images.shape[1:], seed=0)
    part = Split(*(array[:INITIAL_EXAMPLES] for array in dataset.train))
    batch = Batch(
        normalise(part.images, dataset.mean, dataset.standard_deviation),
        jax.nn.one_hot(part.labels, dataset.num_classes),
    )
    network = make_network(model, state.batch_stats, state.key)
    return InitialNetwork(make_loss_fn(network, (), batch), state.params, state.key, num_steps)


def check_fit(config: TrainConfig, dataset: Dataset) -> None:
    """Check the settings against the data; nothing is computed.

    Args:
        config: The configuration.
        dataset: The data.

    Raises:
        SettingError: If the batch is larger than the training set, or a method can not work on
            images of this size.
    """
    size = len(dataset.train.labels)
    if config.batch_size > size:
        raise SettingError(
            f"batch_size {config.batch_size} is larger than the {size} training images"
        )

    def augment(images: Array, labels: Array) -> Batch:
        batch = Batch(images, labels)
        for part in config.method:
            batch = part.augment(jax.random.key(0), batch)
        return batch

    image_shape = dataset.train.images.shape[1:]
    jax.eval_shape(
        augment,
        jax.ShapeDtypeStruct((config.batch_size, *image_shape), jnp.float32),
        jax.ShapeDtypeStruct((config.batch_size, dataset.num_classes), jnp.float32),
    )


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What all runs of one configuration have in common, whatever their seed.

    Attributes:
        config: The configuration.
        dataset: The data.
        model: The network.
        tx: The optimizer.
        train_step: The jitted step.
        evaluator: Jitted evaluation.
    """

    config: TrainConfig
    dataset: Dataset
    model: nn.Module
    tx: optax.GradientTransformationExtraArgs
    train_step: TrainStep
    evaluator: Evaluator

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in the training set."""
        return len(self.dataset.train.labels) // self.config.batch_size

    @property
    def num_steps(self) -> int:
        """Steps of a whole run."""
        return self.config.epochs * self.steps_per_epoch

    def init(self, seed: int) -> TrainState:
        """Draw initial weights.

        Args:
            seed: Seed of the run.

        Returns:
            The state before the first step.
        """
        image_shape = self.dataset.train.images.shape[1:]
        return init_state(self.model, self.tx, image_shape, seed, self.config.method)

    def evaluation_params(self, state: TrainState) -> PyTree:
        """Choose the params at which the network is evaluated.

        Args:
            state: Any state of a run.

        Returns:
            The params of the state, unless a method has others.
        """
        params = state.params
        for part in self.config.method:
            params = part.evaluation_params(params, state.opt_state)
        return params

    def warm_up(self, state: TrainState) -> None:
        """Compile the training step, by taking one step and forgetting it.

        Args:
            state: Any state; it is not changed.
        """
        order = epoch_order(state.key, 0, self.dataset.train.labels)
        jax.block_until_ready(self.train_step(state, self.dataset.train, order))

    def is_checkpoint(self, step: int) -> bool:
        """Tell whether a checkpoint is due.

        Args:
            step: Steps taken.

        Returns:
            Whether it is.
        """
        return step % (self.config.checkpoint_every or self.steps_per_epoch) == 0

    def run(self, state: TrainState) -> Iterator[tuple[TrainState, Row]]:
        """Train to the last step, and come up for air wherever something is to be logged.

        The steps in between are not waited for. It stops at every ``log_every``-th step, at
        checkpoints, ends of epochs and the last step, so that an interrupted run and its
        continuation stop at the same steps as a run in one piece.

        Args:
            state: Where to go on from.

        Yields:
            The state, and the means of the metrics over the steps since the last stop, with
            ``seconds`` for these steps, ``step_time``, seconds per step, and ``images_per_second``.

        Raises:
            DivergedError: If a metric of one of these steps is no finite number.
        """
        step = int(state.step)
        train_split = self.dataset.train
        order = None
        pending = []
        start = time.perf_counter()
        while step < self.num_steps:
            epoch, position = divmod(step, self.steps_per_epoch)
            if order is None or position == 0:
                order = epoch_order(state.key, epoch, train_split.labels)
            state, metrics = self.train_step(state, train_split, order)
            step += 1
            pending.append(metrics)
            if self._is_stop(step):
                rows = jax.device_get(pending)
                seconds = time.perf_counter() - start
                _check_finite(rows, first_step=step - len(rows) + 1, config=self.config)
                means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
                times = {
                    "seconds": seconds,
                    "step_time": seconds / len(rows),
                    "images_per_second": self.config.batch_size * len(rows) / seconds,
                }
                yield state, means | times
                pending = []
                start = time.perf_counter()

    def _is_stop(self, step: int) -> bool:
        return (
            step % self.config.log_every == 0
            or step % self.steps_per_epoch == 0
            or self.is_checkpoint(step)
        )


def _train_and_log(
    experiment: Experiment,
    state: TrainState,
    checkpoints: Checkpoints,
    log: RunLog,
    console: Console,
) -> TrainState:
    """Train to the last step; returns the last state.

    Raises:
        DivergedError: If a metric is no finite number; it says which checkpoint there is.
    """
    validation = experiment.dataset.validation
    with make_progress(console) as progress:
        task = add_run(progress, "training", experiment.num_steps, done=int(state.step))
        try:
            for newest, row in experiment.run(state):
                state = newest
                step = int(state.step)
                if step % experiment.steps_per_epoch == 0 and len(validation.labels):
                    measured = experiment.evaluator.evaluate(
                        experiment.evaluation_params(state), state.batch_stats, validation
                    )
                    row["validation/loss"] = measured.loss
                    row["validation/accuracy"] = measured.accuracy
                row["epoch"] = step / experiment.steps_per_epoch
                log.write(step, row)
                show(progress, task, step, row)
                if experiment.is_checkpoint(step) or step == experiment.num_steps:
                    checkpoints.save(state)
        except DivergedError as error:
            saved = checkpoints.latest_step
            kept = (
                "There is no checkpoint." if saved is None else f"Newest checkpoint: step {saved}."
            )
            raise DivergedError(f"{error} {kept}") from error
    return state


def _summarise(experiment: Experiment, state: TrainState, rows: Sequence[Row]) -> dict[str, Any]:
    config, dataset, evaluator = experiment.config, experiment.dataset, experiment.evaluator
    result: dict[str, Any] = {
        "name": config.name,
        "method": describe_method(config.method),
        "seed": config.seed,
        "epochs": config.epochs,
        "steps": int(state.step),
        "training_seconds": sum(row["seconds"] for row in rows),
        "median_step_time": float(np.median([row["step_time"] for row in rows])),
    }
    params = experiment.evaluation_params(state)
    for name in ("train", "validation", "test"):
        split: Split = getattr(dataset, name)
        result[f"{name}_images"] = len(split.labels)
        if len(split.labels):
            measured = evaluator.evaluate(params, state.batch_stats, split)
            result |= {f"{name}_{key}": value for key, value in measured._asdict().items()}
    if config.trace_examples:
        part = Split(*(array[: config.trace_examples] for array in dataset.train))
        for name, curvature in _TRACES.items():
            mean, standard_error = evaluator.trace(
                params,
                state.batch_stats,
                part,
                jax.random.key(_TRACE_SEED),
                config.trace_probes,
                curvature,
            )
            result |= {name: mean, f"{name}_standard_error": standard_error}
        result["trace_examples"] = len(part.labels)
    return result


def _check_finite(
    rows: Sequence[dict[str, np.ndarray]], first_step: int, config: TrainConfig
) -> None:
    """Look for the first step that went wrong.

    Raises:
        DivergedError: If there is one.
    """
    for step, row in enumerate(rows, start=first_step):
        wrong = {name: float(value) for name, value in row.items() if not math.isfinite(value)}
        if wrong:
            values = ", ".join(f"{name} = {value}" for name, value in wrong.items())
            raise DivergedError(
                f"The run diverged at step {step} ({values}); the steps up to {step - 1} were "
                f"finite. Try {' or '.join(_remedies(config))}."
            )


def _remedies(config: TrainConfig) -> list[str]:
    """Name the settings of this run that may keep it from diverging, and which way to turn them."""
    fields = {field.name for part in config.method for field in dataclasses.fields(part)}
    return [
        "a smaller learning_rate",
        *(f"a smaller {name}" for name in _STRENGTHS if name in fields),
        *(["more warmup_steps"] if "warmup_steps" in fields else []),
        # 0 is no bound.
        "a smaller clip_norm" if config.optimizer.clip_norm else "a clip_norm above 0",
    ]
