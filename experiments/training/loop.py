"""Training from the first step to the last, with log, checkpoints and resumption."""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree
from rich.console import Console

from experiments.config import TrainConfig
from experiments.data.corpus import Corpus
from experiments.data.dataset import Dataset
from experiments.data.load import LoadFunction, load_data, load_data_once
from experiments.errors import DivergedError, SettingError, option
from experiments.regularizers import InitialNetwork, Regularizer, describe_method
from experiments.tasks.base import SPLITS, Evaluator, Metrics, Task
from experiments.tasks.build import build_task
from experiments.training.checkpoint import Best, Checkpoints
from experiments.training.devices import (
    ONE_DEVICE,
    Placement,
    in_turn,
    is_first_process,
    join_processes,
    make_mesh,
    wait_for_all,
)
from experiments.training.divergence import (
    SKIPPED_IN_A_ROW,
    describe_divergence,
    find_bad_steps,
    remedies,
)
from experiments.training.logging import (
    LOG,
    PER_SECOND,
    TOGETHER,
    RunLog,
    add_run,
    make_progress,
    read_log,
    show,
)
from experiments.training.plateau import after_epoch, is_lower
from experiments.training.preemption import Terminated, catch_termination, end_at_termination
from experiments.training.run_directory import (
    claim_run_directory,
    hold_run_directory,
    read_result,
    read_settings,
    record_start,
    write_result,
)
from experiments.training.state import (
    TrainState,
    build_optimizer,
    check_accumulation,
    evaluation_params,
    init_state,
    make_optimizer,
    with_methods,
)
from experiments.training.step import TrainStep, make_train_step
from experiments.training.strengths import Strengths, strengths_of, with_strengths
from seht_jax.curvature import Curvature

Row: TypeAlias = dict[str, float]

_TRACE_SEED = 0
_TRACES: dict[str, Curvature] = {"trace": "hessian", "gauss_newton_trace": "gauss_newton"}

CHECKPOINTS, DIVERGED = "checkpoints", "diverged"
RESTORES = 3
"""So often a run goes back to one checkpoint, each time with other random numbers."""


def train(config: TrainConfig, console: Console, load: LoadFunction = load_data) -> dict[str, Any]:
    """Train one network, or go on with a run that was interrupted.

    Args:
        config: The configuration; its run directory may hold an earlier part of the same run.
        console: Where progress is shown.
        load: Loads the data.

    Returns:
        The result: figures of the reported weights, tr(H) and tr(G), steps and seconds.

    Raises:
        ConfigMismatchError: If the run directory belongs to another configuration.
        DamagedCheckpointError: If there are checkpoints, and none can be read.
        DivergedError: If a loss or gradient is no finite number, and the run does not go on from
            there.
        MissingDataError: If the data are not there.
        OSError: If log or checkpoints can not be written.
        RunningError: If another process is at this run.
        SettingError: If a setting does not fit the data.
        Terminated: At SIGTERM, when the state is saved.
    """
    join_processes(config.devices)
    directory = config.resolved_run_dir
    data = load(config.data)
    check_fit(config, data)  # before a directory is made that would hold the wrong settings
    settings = in_turn(
        "claim the run directory", lambda: claim_run_directory(directory, config, data)
    )
    result = read_result(directory)
    wait_for_all("look for a result")
    if result is not None:
        console.print(f"This run is finished; its result was in {directory}.")
        return result
    experiment = build_experiment(config, data)
    with (
        _hold_together(directory),
        Checkpoints(
            directory / CHECKPOINTS,
            settings=settings,
            keep=config.keep_checkpoints,
            keep_period=config.keep_checkpoints_every or None,
        ) as checkpoints,
    ):
        if is_first_process():
            record_start(directory)
        run = _Run(experiment, directory, checkpoints, console)
        with end_at_termination("Told to end while the result was measured; all steps are saved."):
            with catch_termination() as ends_at:
                state, best = run.train(ends_at)
            wait_for_all("train")
            result = summarise(experiment, state, best, read_log(directory / LOG))
            checkpoints.finish()
        if is_first_process():
            write_result(directory, result)
        checkpoints.keep_newest()
    return result


def train_next(config: TrainConfig, console: Console) -> dict[str, Any]:
    """Train one of many networks, as `train` does; data that the last one had are not loaded again.

    Args:
        config: The configuration.
        console: Where progress is shown.

    Returns:
        The result, as `train` returns it.

    Raises:
        DivergedError: As `train` does, which may raise more.
    """
    return train(config, console, load_data_once)


def build_experiment(config: TrainConfig, data: Dataset | Corpus) -> "Experiment":
    """Build network, optimizer and training step.

    Nothing is computed yet, unless a method wants to see the network before the first step.

    Args:
        config: The configuration.
        data: The data.

    Returns:
        What all runs of this configuration, whatever their seed, have in common.

    Raises:
        SettingError: If a setting does not fit the data.
    """
    mesh = make_mesh(config.devices)
    data = Placement(mesh).everywhere(data)
    task = check_fit(config, data)
    placement = Placement(mesh, task.network_state_spec)
    num_steps = config.epochs * task.steps_per_epoch
    initial = functools.partial(_initial_network, task, placement, num_steps)
    method = tuple(part.at_start(initial) for part in config.method)
    tx = make_optimizer(config.optimizer, num_steps, method)
    train_step = _make_train_step(config, task, num_steps, method, placement)
    # Without the method, so that networks are compared as they are: the trace is that of a loss
    # with nothing dropped.
    evaluator = build_task(config, data).evaluator()
    return Experiment(config, task, method, tx, train_step, evaluator, placement)


def _make_train_step(
    config: TrainConfig,
    task: Task,
    num_steps: int,
    method: Sequence[Regularizer],
    placement: Placement,
) -> TrainStep:
    """Build the training step, compiled once for all strengths where compilations are kept."""
    optimizer = with_methods(config.optimizer, method)

    @jax.jit
    def train_step(
        state: TrainState, data: PyTree, order: PyTree, strengths: Strengths
    ) -> tuple[TrainState, Metrics]:
        settings, parts = with_strengths(optimizer, method, strengths)
        tx = build_optimizer(settings, num_steps, parts)
        step = make_train_step(task, tx, parts, config.on_divergence, placement)
        return step(state, data, order)

    strengths = placement.everywhere(strengths_of(optimizer, method))
    return functools.partial(train_step, strengths=strengths)


def _initial_network(task: Task, placement: Placement, num_steps: int) -> InitialNetwork:
    state = placement.state(init_state(task, optax.identity(), seed=0))
    network = task.network(state.network_state, state.step, state.key, {})
    loss_fn = task.loss_fn(network, (), task.initial_batch())
    return InitialNetwork(loss_fn, state.params, state.key, num_steps)


def check_fit(config: TrainConfig, data: Dataset | Corpus) -> Task:
    """Check the settings against the data and the devices; nothing is computed.

    Args:
        config: The configuration.
        data: The data.

    Returns:
        The task, with the methods' network.

    Raises:
        SettingError: If there is too little data for a step or for a change of the weights, a
            method can not work on them, on the network or with the optimizer, validation data are
            needed and there are none, or a batch can not be spread over the devices.
    """
    task = build_fitting_task(config, data)
    mesh = make_mesh(config.devices)
    parts = 1 if mesh is None else mesh.shape["data"]
    if config.batch_size % parts:
        raise SettingError(
            f"--batch-size must be a multiple of the {parts} devices over which it is spread, not "
            f"{config.batch_size}"
        )
    if not task.size("validation"):
        for setting, value, wanted in (
            ("reported", config.reported, "best"),
            ("schedule", config.optimizer.schedule, "plateau"),
        ):
            if value == wanted:
                raise SettingError(
                    f"{option(setting)} {wanted} needs validation data, and none are held out"
                )
    return task


def build_fitting_task(config: TrainConfig, data: Dataset | Corpus) -> Task:
    """Build the task, and check the settings against the data; nothing is computed.

    Args:
        config: The configuration.
        data: The data.

    Returns:
        The task, with the methods' network.

    Raises:
        SettingError: If there is too little data for a step or for a change of the weights, or a
            method can not work on them, on the network or with the optimizer.
    """
    task = build_task(config, data, config.method)
    task.check_fit(config.method)
    check_accumulation(config.optimizer, config.epochs * task.steps_per_epoch, config.method)
    return task


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What all runs of one configuration have in common, whatever their seed.

    Attributes:
        config: The configuration.
        task: Data, network and loss.
        method: The regularizers, as they are for this network and these data.
        tx: The optimizer.
        train_step: The jitted step; its strengths are arguments that are filled in.
        evaluator: Jitted evaluation.
        placement: Over which devices it is spread.
    """

    config: TrainConfig
    task: Task
    method: Sequence[Regularizer]
    tx: optax.GradientTransformationExtraArgs
    train_step: TrainStep
    evaluator: Evaluator
    placement: Placement = ONE_DEVICE

    @property
    def dataset(self) -> Any:
        """The three splits."""
        return self.task.dataset

    @property
    def model(self) -> nn.Module:
        """The network, as the methods have changed it."""
        return self.task.model

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in the training set."""
        return self.task.steps_per_epoch

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
        return self.placement.state(init_state(self.task, self.tx, seed, self.config.method))

    def evaluation_params(self, state: TrainState) -> PyTree:
        """Choose the params at which the network is evaluated.

        Args:
            state: Any state of a run.

        Returns:
            The params of the state, unless a method has others.
        """
        return evaluation_params(self.config.method, state)

    def no_best(self, state: TrainState) -> Best:
        """Return the best epoch of a run that has had none.

        Args:
            state: Any state, for the shapes.

        Returns:
            Epoch 0, with a loss above every other.
        """
        return self.new_best(state, 0, float("inf"))

    def new_best(self, state: TrainState, epoch: int, loss: float) -> Best:
        """Keep the weights of an epoch.

        Args:
            state: The state at its end.
            epoch: Which epoch, from 1.
            loss: Its validation loss.

        Returns:
            The weights at which it is evaluated, and what the network carries.
        """
        return Best(
            epoch=self.placement.everywhere(jnp.asarray(epoch, jnp.int32)),
            loss=self.placement.everywhere(jnp.asarray(loss, jnp.float32)),
            params=self.evaluation_params(state),
            network_state=state.network_state,
        )

    def warm_up(self, state: TrainState) -> None:
        """Compile the training step, by taking one step and forgetting it.

        Args:
            state: Any state; it is not changed.
        """
        order = self.task.epoch_order(state.key, 0)
        jax.block_until_ready(self.train_step(state, self.task.train_data, order))

    def times(self, seconds: float, num_steps: int) -> Row:
        """Write down how fast some steps were, in the columns of the log.

        Args:
            seconds: What they took.
            num_steps: How many they were.

        Returns:
            The columns.
        """
        return {
            "seconds": seconds,
            "step_time": seconds / num_steps,
            f"{self.task.unit}{PER_SECOND}": self.task.units_per_step * num_steps / seconds,
        }

    def is_checkpoint(self, step: int) -> bool:
        """Tell whether a checkpoint is due.

        Args:
            step: Steps taken.

        Returns:
            Whether it is.
        """
        return step % (self.config.checkpoint_every or self.steps_per_epoch) == 0

    def run(
        self, state: TrainState, ends_at: Callable[[int], bool] = lambda _: False
    ) -> Iterator[tuple[TrainState, Row]]:
        """Train to the last step, and come up for air wherever something is to be logged.

        The steps in between are not waited for. It stops at every ``log_every``-th step, at
        checkpoints, ends of epochs and the last step, so that an interrupted run and its
        continuation stop at the same steps as a run in one piece.

        Args:
            state: Where to go on from.
            ends_at: Whether to come up at a step besides.

        Yields:
            The state, and the means of the metrics over the finite steps since the last stop, with
            ``seconds`` for these steps, ``step_time``, seconds per step, and what is done in a
            second, ``images_per_second`` for one. At the end of every ``evaluate_every``-th epoch
            figures of the validation data, by names with ``validation/``, are among them. A run
            that skips steps has ``skipped_steps``, their number.

        Raises:
            DivergedError: If a metric of one of these steps is no finite number, and such steps are
                not to be skipped, or there are too many in a row.
        """
        step = int(state.step)
        data = self.task.train_data
        order = None
        pending = []
        skipped_in_a_row = 0
        start = time.perf_counter()
        while step < self.num_steps:
            epoch, position = divmod(step, self.steps_per_epoch)
            if order is None or position == 0:
                order = self.task.epoch_order(state.key, epoch)
            state, metrics = self.train_step(state, data, order)
            step += 1
            pending.append(metrics)
            if self._is_stop(step) or ends_at(step):
                rows = jax.device_get(pending)
                seconds = time.perf_counter() - start
                row, skipped_in_a_row = self._judge(rows, step, skipped_in_a_row, state)
                row |= self.times(seconds, len(rows))
                if self._is_evaluated(step):
                    state, figures = self._evaluate(state)
                    row |= figures
                yield state, row
                pending = []
                start = time.perf_counter()

    def _judge(
        self, rows: Sequence[Row], last_step: int, skipped_before: int, state: TrainState
    ) -> tuple[Row, int]:
        """Average the metrics of the finite steps, and count those that were skipped at the end.

        Raises:
            DivergedError: If there is a step that is not to be skipped.
        """
        bad = find_bad_steps(rows, first_step=last_step - len(rows) + 1)
        if bad and self.config.on_divergence != "skip":
            raise DivergedError(describe_divergence(bad[0], self.config), state)
        bad_steps = {each.step for each in bad}
        in_a_row = skipped_before
        finite = []
        for step, row in enumerate(rows, start=last_step - len(rows) + 1):
            if step in bad_steps:
                in_a_row += 1
            else:
                in_a_row = 0
                finite.append(row)
            if in_a_row == SKIPPED_IN_A_ROW:
                raise DivergedError(
                    f"The run diverged: {in_a_row} steps in a row were skipped, the last of them "
                    f"{bad[-1]}. {remedies(self.config)}",
                    state,
                )
        means = {name: float(np.mean([row[name] for row in finite])) for name in rows[0] if finite}
        if self.config.on_divergence == "skip":
            means["skipped_steps"] = float(len(bad))
        return means, in_a_row

    def _evaluate(self, state: TrainState) -> tuple[TrainState, Row]:
        """Evaluate the network on the validation data, and let the learning rate follow."""
        if not self.task.size("validation"):
            return state, {}
        measured = self.evaluator.evaluate(
            self.evaluation_params(state), state.network_state, self.dataset.validation
        )
        state = state._replace(opt_state=after_epoch(state.opt_state, measured.loss))
        state = self.placement.state(state)
        return state, {f"validation/{name}": each for name, each in measured._asdict().items()}

    def _is_evaluated(self, step: int) -> bool:
        epoch, position = divmod(step, self.steps_per_epoch)
        is_due = epoch % self.config.evaluate_every == 0 or step == self.num_steps
        return position == 0 and is_due

    def _is_stop(self, step: int) -> bool:
        return (
            step % self.config.log_every == 0
            or step % self.steps_per_epoch == 0
            or self.is_checkpoint(step)
        )


@dataclasses.dataclass(frozen=True)
class _Run:
    """One run in its directory.

    Attributes:
        experiment: What is trained.
        directory: The run directory.
        checkpoints: The checkpoints in it.
        console: Where progress is shown.
    """

    experiment: Experiment
    directory: Path
    checkpoints: Checkpoints
    console: Console

    def train(self, ends_at: Callable[[int], bool]) -> tuple[TrainState, Best | None]:
        """Begin, or go on from the newest checkpoint, and train to the last step.

        Args:
            ends_at: Whether the run was told to end, and is to do so at a step.

        Returns:
            The last state, and the best epoch if one is kept.

        Raises:
            DivergedError: If the run does not stay finite and does not go on from there.
            Terminated: If the run was told to end, and has saved its state.
        """
        config = self.experiment.config
        state = self.experiment.init(config.seed)
        best = self.experiment.no_best(state) if config.reported == "best" else None
        restored = self.checkpoints.restore(state, best, warn=self._warn)
        if restored is not None:
            state, best = restored
            self._say(f"Going on from step {int(state.step)} in {self.directory}.")
        else:
            method = " ".join(describe_method(config.method, defaults=False))
            self._say(f"Training {method} in {self.directory}.")
        if not self.console.is_terminal:
            self._say("Compiling the training step, which may take minutes.")
        with self.console.status("Compiling the training step"):
            self.experiment.warm_up(state)
        all_restores = self._restores_before(int(state.step))
        restored_from, restores = None, 0
        while True:
            try:
                return self._train_on(state, best, ends_at, all_restores)
            except DivergedError as error:
                restored = None
                restores = restores + 1 if self.checkpoints.latest_step == restored_from else 1
                if config.on_divergence == "restore" and restores <= RESTORES:
                    restored = self.checkpoints.restore(state, best, warn=self._warn)
                if restored is None:
                    raise DivergedError(f"{error} {self._keep(error.state, best)}") from error
                state, best = restored
                restored_from = int(state.step)
                all_restores += 1
                self._warn(f"{error} The run goes back to step {restored_from}.")
                # With the same random numbers it would diverge again.
                state = state._replace(key=jax.random.fold_in(state.key, restores))

    def _train_on(
        self, state: TrainState, best: Best | None, ends_at: Callable[[int], bool], restores: int
    ) -> tuple[TrainState, Best | None]:
        """Train to the last step.

        Raises:
            DivergedError: If a metric, or the validation loss of every epoch of which the best is
                wanted, is no finite number.
            Terminated: If the run was told to end, and has saved its state.
        """
        experiment = self.experiment
        with (
            self._open_log(resumed_at=int(state.step)) as log,
            make_progress(self.console) as progress,
        ):
            task = add_run(progress, "training", experiment.num_steps, done=int(state.step))
            for newest, row in experiment.run(state, ends_at):
                state = newest
                step = int(state.step)
                row["epoch"] = step / experiment.steps_per_epoch
                if experiment.config.on_divergence == "restore":
                    row["restores"] = float(restores)
                loss = row.get("validation/loss")
                if best is not None and loss is not None and is_lower(loss, best.loss):
                    best = experiment.new_best(state, round(row["epoch"]), loss)
                # In turn: if the disk is full, the other processes would wait for this one.
                in_turn("write the log", functools.partial(_write, log, step, row))
                show(progress, task, step, row)
                is_last = step == experiment.num_steps
                ends = ends_at(step)
                if experiment.is_checkpoint(step) or is_last or ends:
                    self.checkpoints.save(state, best)
                if is_last or ends:
                    self.checkpoints.finish()
                if ends:
                    raise Terminated(f"Told to end at step {step}, and saved there.")
            _check_best(best, experiment.config)
        return state, best

    def _open_log(self, resumed_at: int) -> contextlib.AbstractContextManager[RunLog | None]:
        if is_first_process():
            return RunLog(self.directory, resumed_at)
        return contextlib.nullcontext()

    def _restores_before(self, step: int) -> int:
        """Read how often the run had been restored when it came to a step."""
        rows = [row for row in read_log(self.directory / LOG) if row["step"] <= step]
        return int(rows[-1].get("restores", 0)) if rows else 0

    def _keep(self, state: TrainState | None, best: Best | None) -> str:
        """Save the state before a divergence, and say what there is to look at."""
        newest = self.checkpoints.latest_step
        sentences = [
            "There is no checkpoint." if newest is None else f"Newest checkpoint: step {newest}."
        ]
        if state is not None:
            place = self.directory / DIVERGED
            settings = read_settings(self.directory)
            with Checkpoints(place, settings=settings, keep=None) as checkpoints:
                if checkpoints.latest_step != int(state.step):
                    checkpoints.save(state, best)
            sentences.append(f"The state before it went wrong is in {place}.")
        return " ".join(sentences)

    def _say(self, message: str) -> None:
        self.console.print(message, highlight=False, soft_wrap=True)

    def _warn(self, message: str) -> None:
        self.console.print(message, style="yellow", markup=False, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def _hold_together(directory: Path) -> Iterator[None]:
    """Hold a run directory in the first process; if it can not, no process goes on."""
    with contextlib.ExitStack() as held:

        def hold() -> None:
            if is_first_process():
                held.enter_context(hold_run_directory(directory))

        in_turn("hold the run directory", hold)
        yield


def _write(log: RunLog | None, step: int, row: Row) -> None:
    if log is not None:
        log.write(step, row)


def summarise(
    experiment: Experiment, state: TrainState, best: Best | None, rows: Sequence[Row]
) -> dict[str, Any]:
    """Measure what a run has come to.

    Args:
        experiment: What was trained.
        state: The last state.
        best: The best epoch, whose weights are reported instead; `None` for the last ones.
        rows: The log.

    Returns:
        The result, as `train` returns it.
    """
    config, task, evaluator = experiment.config, experiment.task, experiment.evaluator
    result: dict[str, Any] = {
        "name": config.name,
        "method": describe_method(config.method),
        "seed": config.seed,
        "epochs": config.epochs,
        "steps": int(state.step),
        "training_seconds": sum(row["seconds"] for row in rows),
        "median_step_time": float(np.median([row["step_time"] for row in rows])),
    }
    if TOGETHER in rows[-1]:
        result[TOGETHER] = int(rows[-1][TOGETHER])
    if config.on_divergence == "skip":
        result["skipped_steps"] = int(sum(row["skipped_steps"] for row in rows))
    if config.on_divergence == "restore":
        result["restores"] = int(rows[-1].get("restores", 0))  # earlier versions did not count
    params, network_state = experiment.evaluation_params(state), state.network_state
    if best is not None:
        params, network_state = best.params, best.network_state
        result["best_epoch"] = int(best.epoch)
    for name in SPLITS:
        result[f"{name}_{task.unit}"] = task.size(name)
        if task.size(name):
            measured = evaluator.evaluate(params, network_state, getattr(task.dataset, name))
            result |= {f"{name}_{key}": value for key, value in measured._asdict().items()}
    if config.trace_examples:
        part = task.first_examples(config.trace_examples)
        # With JAX's default generator, half of the compilation would be that of random numbers.
        key = jax.random.key(_TRACE_SEED, impl="rbg")
        for name, curvature in _TRACES.items():
            mean, standard_error = evaluator.trace(
                params, network_state, part, key, config.trace_probes, curvature
            )
            result |= {name: mean, f"{name}_standard_error": standard_error}
        result["trace_examples"] = min(config.trace_examples, task.num_examples)
    return result


def _check_best(best: Best | None, config: TrainConfig) -> None:
    """Check that a run that keeps its best epoch has one.

    Raises:
        DivergedError: If it has none.
    """
    if best is not None and not int(best.epoch):
        raise DivergedError(
            "No epoch ended with a finite validation loss, so there is no best one. "
            f"{remedies(config)}"
        )
