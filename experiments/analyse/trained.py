"""The network that a finished run left in its directory."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from experiments.config import TrainConfig, complete_settings, from_json
from experiments.data.corpus import Corpus
from experiments.data.dataset import Dataset
from experiments.data.load import LoadFunction, load_data
from experiments.errors import (
    DamagedCheckpointError,
    DamagedFileError,
    ExperimentError,
    SettingError,
)
from experiments.regularizers import describe_method
from experiments.sweep.outcome import read_outcome
from experiments.sweep.plan import PLAN
from experiments.training.checkpoint import Best, Checkpoints
from experiments.training.loop import CHECKPOINTS, build_fitting_task
from experiments.training.run_directory import CHECKSUM, data_checksum, read_settings
from experiments.training.state import (
    TrainState,
    evaluation_params,
    init_state,
    make_optimizer,
)


class FinishedRun(NamedTuple):
    """What the files of a run say of it.

    Attributes:
        directory: Its directory.
        settings: All settings, the checksum of the data included.
        config: The configuration that they are of.
        result: The result.
    """

    directory: Path
    settings: dict[str, Any]
    config: TrainConfig
    result: dict[str, Any]

    @property
    def method(self) -> str:
        """The method in few words, settings with their default left out."""
        return " + ".join(describe_method(self.config.method, defaults=False))


class TrainedNetwork(NamedTuple):
    """The weights that the result of a run is of.

    Attributes:
        params: The network's parameters.
        network_state: What training left beside them: BatchNorm's running statistics for one.
    """

    params: PyTree
    network_state: PyTree


def read_finished_run(directory: Path, data_dir: Path | None) -> FinishedRun:
    """Read what a finished run was; its weights are left on the disk.

    Args:
        directory: The run directory.
        data_dir: Where the data are, for data sets that do not come with a package.

    Returns:
        The run.

    Raises:
        DamagedFileError: If a file of the run holds something else than what was written.
        ExperimentError: If there is no run in the directory, or it has not come to its end.
        SettingError: If data that come with a package are given a place.
    """
    settings = read_settings(directory)
    if settings is None:
        kind = (
            f"a sweep's output directory: name one of its runs, the directories in {directory} "
            "that hold a config.json"
            if (directory / PLAN).is_file()
            else "no run directory; `python -m experiments train` makes one"
        )
        raise ExperimentError(f"{directory} holds no config.json, so it is {kind}.")
    settings = complete_settings(settings)
    try:
        config = from_json(settings)
    except (SettingError, ValueError) as error:
        raise DamagedFileError(
            f"{directory / 'config.json'} is damaged, or of another version: {error}. Restore it."
        ) from error
    if data_dir is not None:
        data = dataclasses.replace(config.data, data_dir=data_dir)
        config = dataclasses.replace(config, data=data)
    outcome = read_outcome(directory)
    if outcome is None:
        raise ExperimentError(
            f"The run in {directory} is not finished: it has no result.json. The command that "
            "began it goes on with it, from its last checkpoint."
        )
    if outcome.result is None:
        raise ExperimentError(
            f"The run in {directory} diverged, so there is no network to look at: "
            f"{outcome.divergence}"
        )
    return FinishedRun(directory, settings, config, outcome.result)


def load_run_data(run: FinishedRun, load: LoadFunction = load_data) -> Dataset | Corpus:
    """Load the data that a run was trained on.

    Args:
        run: The run.
        load: Loads data.

    Returns:
        The data.

    Raises:
        MissingDataError: If they are not there.
        SettingError: If they are others than those that the run saw.
    """
    data = load(run.config.data)
    trained_on = run.settings.get(CHECKSUM)
    if trained_on is not None and trained_on != data_checksum(data):
        raise SettingError(
            f"The run in {run.directory} saw other data than those that are here: "
            f"{CHECKSUM} is {trained_on} there and {data_checksum(data)} here. Pass --data-dir "
            "with those that it saw, or the versions of the packages that they come with."
        )
    return data


def load_network(
    run: FinishedRun, data: Dataset | Corpus, warn: Callable[[str], None]
) -> TrainedNetwork:
    """Read the weights of a run from its newest checkpoint.

    Args:
        run: The run.
        data: Its data.
        warn: Is told of each checkpoint that had to be set aside.

    Returns:
        The weights that the result is of: the last ones, or the best, as the run was told.

    Raises:
        ExperimentError: If there is no checkpoint that can be read, or a setting of the run does
            not fit the data.
    """
    place = run.directory / CHECKPOINTS
    if not place.is_dir() or not any(place.iterdir()):  # opened, an absent one would be made
        raise ExperimentError(
            f"{run.directory} has no weights: {place} is empty, or not there. Copy it from where "
            "the run was made, or train the network again in another directory."
        )
    state = blank_state(run.config, data)
    best = None
    if run.config.reported == "best":
        epoch, loss = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32)
        best = Best(epoch, loss, state.params, state.network_state)
    try:
        with Checkpoints(place, settings=run.settings) as checkpoints:
            restored = checkpoints.restore(state, best, warn=warn)
    except DamagedCheckpointError as error:
        raise ExperimentError(
            f"No checkpoint of {run.directory} can be read; those that were there are now in "
            f"{place}-damaged. Put a good copy in their place, or train the network again in "
            "another directory."
        ) from error
    if restored is None:
        raise ExperimentError(
            f"{place} holds no complete checkpoint. Train the network again in another directory."
        )
    state, best = restored
    if best is not None:
        return TrainedNetwork(best.params, best.network_state)
    params = evaluation_params(run.config.method, state)
    return TrainedNetwork(params, state.network_state)


def blank_state(config: TrainConfig, data: Dataset | Corpus) -> TrainState:
    """Make a state that a checkpoint of a run can be read into.

    Nothing is computed, so no method looks at the network first, which takes long for some.

    Args:
        config: The configuration of the run.
        data: The data.

    Returns:
        Zeros, in the structure, shapes and dtypes of the run's states.

    Raises:
        SettingError: If a setting does not fit the data.
    """
    task = build_fitting_task(config, data)
    num_steps = config.epochs * task.steps_per_epoch
    tx = make_optimizer(config.optimizer, num_steps, config.method)
    shapes = jax.eval_shape(functools.partial(init_state, task, tx, config.seed, config.method))
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
