"""The command `python -m experiments prune`."""

import dataclasses
import functools
import io
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeAlias

import jax
import numpy as np
import tyro
from jaxtyping import PyTree
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import Progress, TaskID

import seht_jax as seht
from experiments.analyse.trained import (
    FinishedRun,
    TrainedNetwork,
    load_network,
    load_run_data,
    read_finished_run,
)
from experiments.data.corpus import Corpus
from experiments.data.dataset import Dataset
from experiments.environment import describe_environment
from experiments.errors import ConfigMismatchError, ExperimentError, SettingError, option
from experiments.json_file import Scalar, check_fields, read_json
from experiments.models.resnet import ResNet
from experiments.pruning.keep_zeros import KeepZeros
from experiments.pruning.masks import choose_fates, num_weights, prune, weight_masks
from experiments.pruning.report import (
    CRITERIA,
    HESSIAN,
    IMPLANT,
    MAGNITUDE,
    RANDOM,
    FineTuning,
    draw_figure,
    markdown,
)
from experiments.pruning.sensitivity import (
    ChannelTraces,
    Kernels,
    Scores,
    chance,
    channel_samples,
    convolutions,
    hessian_sensitivity,
    magnitude,
)
from experiments.safe_files import output_inside, replace_file
from experiments.tasks.base import SPLITS
from experiments.tasks.build import build_task
from experiments.training.logging import add_run, make_progress, show
from experiments.training.loop import Experiment, build_experiment
from experiments.training.run_directory import hold_run_directory, write_json

Row: TypeAlias = dict[str, float]

NUMBERS, TABLE, FIGURE = "pruning.json", "pruning.md", "pruning.png"

# More of these may be asked for later, and a run may be moved.
_NOT_COMPARED = ("run", "keep", "seeds", "output_dir", "data_dir")
_FINE_TUNING = {
    "seed": int,
    "keep": float,
    "criterion": str,
    "weights": int,
    "before": dict[str, float],
    "after": dict[str, float],
}
_BY_TRACES = (HESSIAN, IMPLANT)
_BATCH_SIZE = 100  # of the traces, for whose memory it is; it has no influence on them
_MEASURED = ("test_loss", "test_accuracy")


@dataclasses.dataclass(frozen=True)
class PruneConfig:
    """Which network is pruned, how far, and how it is fine-tuned."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Directory of a finished run of digits-resnet or resnet18; `python -m experiments train` makes
    one."""
    keep: tuple[float, ...] = (0.5, 0.2)
    """Sizes: shares of the weights of all convolutions that are left."""
    implant: float = 0.2
    """Share of the channels that are not kept whole, the most sensitive of them, whose 3x3 kernel
    is replaced by a 1x1 one, in the one of the four criteria that has implants."""
    seeds: int = 3
    """Fine-tunings for each size and criterion, at least 2; the seeds are 0, 1, ..."""
    epochs: int = 10
    """Epochs of a fine-tuning."""
    learning_rate: float | None = None
    """Learning rate of the fine-tunings, which falls as it did in the run; by default the run's."""
    probes: int = 128
    """Random vectors for the traces of the channels, others for each seed."""
    examples: int = 1000
    """Training images whose mean loss has these traces: the first ones, or all if there are
    fewer."""
    output_dir: Path | None = None
    """Where pruning.json, pruning.md and pruning.png go; by default to the subdirectory pruning of
    RUN."""
    data_dir: Path | None = None
    """Where the data are, for those that do not come with a package."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            SettingError: If one is out of its range.
        """
        if not self.keep or len(set(self.keep)) < len(self.keep):
            raise SettingError(
                f"--keep must name at least one size, and none twice, not {self.keep}"
            )
        for keep in self.keep:
            if not 0 < keep < 1:
                raise SettingError(f"--keep must be above 0 and below 1, not {keep}")
        if not 0 < self.implant <= 1:
            raise SettingError(f"--implant must be above 0 and at most 1, not {self.implant}")
        for name, least in (("seeds", 2), ("epochs", 1), ("probes", 2), ("examples", 1)):
            value = getattr(self, name)
            if not least <= value < 2**31:
                raise SettingError(
                    f"{option(name)} must be at least {least}, and an int32, not {value}"
                )
        rate = self.learning_rate
        if rate is not None and not 0 < rate < math.inf:
            raise SettingError(f"--learning-rate must be finite and above 0, not {rate}")


class _Original(NamedTuple):
    """The network that is pruned.

    Attributes:
        run: Its run.
        network: Its weights.
        experiment: How it is fine-tuned.
    """

    run: FinishedRun
    network: TrainedNetwork
    experiment: Experiment


def run_prune(config: PruneConfig, console: Console) -> Path:
    """Prune a network by four criteria at equal size, fine-tune what is left, and compare.

    What is finished is in ``pruning.json``, and the same command goes on after it. A fine-tuning is
    short beside the compilation of its step, which all of them share; so it is no run of its own
    with checkpoints, and one that is interrupted begins anew.

    Args:
        config: What is done.
        console: Where progress and the table are shown.

    Returns:
        The path of the table.

    Raises:
        ConfigMismatchError: If there are results of other settings.
        DamagedFileError: If the file with the results holds something else.
        DivergedError: If a fine-tuning does not stay finite.
        ExperimentError: If the run is not finished, or has no weights or no finite curvature.
        RunningError: If another process is at these results.
        SettingError: If its network is no residual network of this project's form, or can not be
            pruned so far.
    """
    run = read_finished_run(config.run, config.data_dir)
    data = load_run_data(run)
    if not isinstance(build_task(run.config, data).model, ResNet):
        raise SettingError(
            f"RUN must be of digits-resnet or resnet18, not of {run.config.model.network}: "
            "channels are pruned with the normalisation behind their convolution"
        )
    output_dir = config.output_dir or output_inside(run.directory, "pruning", "results")
    output_dir.mkdir(parents=True, exist_ok=True)
    with hold_run_directory(output_dir):
        settings = _settings(config, run)
        fine_tunings = _read_existing(output_dir, settings)
        original = _prepare(config, run, data, console)
        network = original.network
        unpruned: dict[str, Any] = _measure(original, network.params, network.network_state)
        unpruned["weights"] = sum(kernel.size for kernel in convolutions(network.params).values())
        results = {
            "settings": settings,
            "environment": describe_environment(),
            "original": unpruned,
            "fine_tunings": fine_tunings,
        }
        wanted = list(itertools.product(range(config.seeds), config.keep, CRITERIA))
        there = set(map(_place, fine_tunings))
        missing = [each for each in wanted if each not in there]
        if missing:
            with console.status("Compiling the training step"):
                original.experiment.warm_up(original.experiment.init(0))
            for fine_tuning in _fine_tune_all(config, original, missing, console):
                fine_tunings.append(fine_tuning)
                write_json(output_dir / NUMBERS, results)
        shown = [each for each in fine_tunings if _place(each) in wanted]
        table = markdown(unpruned, shown)
        replace_file(output_dir / TABLE, table.encode())
        replace_file(output_dir / FIGURE, _as_png(draw_figure(unpruned, shown)))
    console.print(table, highlight=False, soft_wrap=True)
    console.print(
        f"Table: {output_dir / TABLE}   Figure: {FIGURE}   All numbers: {NUMBERS}",
        highlight=False,
        soft_wrap=True,
    )
    return output_dir / TABLE


def _prepare(
    config: PruneConfig, run: FinishedRun, data: Dataset | Corpus, console: Console
) -> _Original:
    """Read the network, and build what fine-tunes it."""
    network = load_network(run, data, console.print)
    rate = config.learning_rate or run.config.optimizer.learning_rate
    fine_tuned = dataclasses.replace(
        run.config,
        method=(KeepZeros(), *run.config.method),
        epochs=config.epochs,
        optimizer=dataclasses.replace(run.config.optimizer, learning_rate=rate),
    )
    return _Original(run, network, build_experiment(fine_tuned, data))


def _fine_tune_all(
    config: PruneConfig,
    original: _Original,
    missing: Sequence[tuple[int, float, str]],
    console: Console,
) -> Iterator[FineTuning]:
    """Prune and fine-tune, seed by seed.

    Raises:
        DivergedError: If one does not stay finite.
        ExperimentError: If a trace is not finite.
        SettingError: If the network can not be pruned so far.
    """
    kernels = convolutions(original.network.params)
    num_steps = original.experiment.num_steps
    seeds = sorted({seed for seed, _, _ in missing})
    with make_progress(console) as progress:
        tracing = add_run(progress, "traces", config.probes * len(seeds))
        tuning = add_run(progress, "fine-tuning", num_steps * len(missing))
        traces_of = _tracer(config, original, lambda: progress.advance(tracing))
        done = itertools.count(0, num_steps)
        for seed in seeds:
            traces = traces_of(seed)
            scores = _score(traces, kernels, seed)
            for _, keep, criterion in (each for each in missing if each[0] == seed):
                share = config.implant if criterion == IMPLANT else 0.0
                fates = choose_fates(scores[criterion], kernels, keep, share)
                progress.update(tuning, description=f"{criterion}, {keep:g}, seed {seed}")
                params = prune(original.network.params, fates)
                advance = functools.partial(_advance, progress, tuning, next(done))
                yield {
                    "seed": seed,
                    "keep": keep,
                    "criterion": criterion,
                    "weights": num_weights(weight_masks(fates, kernels)),
                    "fates": {name: fate.tolist() for name, fate in fates.items()},
                    "channel_traces": _to_json(traces) if criterion in _BY_TRACES else None,
                    "before": _measure(original, params, original.network.network_state),
                    **_fine_tune(original, params, seed, advance),
                }


def _to_json(traces: Mapping[str, ChannelTraces]) -> dict[str, dict[str, list[float]]]:
    return {
        name: {"mean": each.mean.tolist(), "standard_error": each.standard_error.tolist()}
        for name, each in traces.items()
    }


def _advance(progress: Progress, task: TaskID, before: int, step: int, row: Row) -> None:
    show(progress, task, before + step, row)


def _tracer(
    config: PruneConfig, original: _Original, advance: Callable[[], None]
) -> Callable[[int], dict[str, ChannelTraces]]:
    """Prepare the traces of the channels, a probe at a time, so that there is something to show."""
    task = build_task(original.run.config, original.experiment.dataset)
    examples = task.examples(config.examples)
    size = min(_BATCH_SIZE, len(jax.tree.leaves(examples)[0]))
    loss_fn = seht.mean_over_batches(task.evaluation_loss, size)
    sample = jax.jit(lambda key, *arguments: channel_samples(loss_fn, key)(*arguments))
    network = original.network

    def traces_of(seed: int) -> dict[str, ChannelTraces]:
        samples = []
        for key in jax.random.split(jax.random.key(seed), config.probes):
            samples.append(
                jax.device_get(sample(key, network.params, examples, network.network_state))
            )
            advance()
        return {
            name: ChannelTraces(np.stack([each[name] for each in samples])) for name in samples[0]
        }

    return traces_of


def _score(traces: Mapping[str, ChannelTraces], kernels: Kernels, seed: int) -> dict[str, Scores]:
    """Score the channels by each criterion.

    Raises:
        ExperimentError: If a score is not finite.
    """
    sensitivity = hessian_sensitivity(traces, kernels)
    if not all(np.isfinite(each).all() for each in sensitivity.values()):
        raise ExperimentError("A trace of the network is not finite: there is nothing to prune by.")
    return {
        HESSIAN: sensitivity,
        IMPLANT: sensitivity,
        MAGNITUDE: magnitude(kernels),
        RANDOM: chance(seed, kernels),
    }


def _fine_tune(
    original: _Original, params: PyTree, seed: int, advance: Callable[[int, Row], None]
) -> dict[str, Any]:
    """Fine-tune a pruned network.

    Raises:
        DivergedError: If it does not stay finite.
    """
    experiment = original.experiment
    state = experiment.init(seed)._replace(
        params=params,
        network_state=original.network.network_state,
        opt_state=experiment.tx.init(params),
    )
    state = experiment.placement.state(state)
    losses = []
    for newest, row in experiment.run(state):
        state = newest
        losses.append([int(state.step), row.get("loss"), row.get("validation/loss")])
        advance(int(state.step), row)
    after = _measure(original, experiment.evaluation_params(state), state.network_state)
    return {"after": after, "step_and_training_and_validation_loss": losses}


def _measure(original: _Original, params: PyTree, network_state: PyTree) -> dict[str, float]:
    """Evaluate a network on the splits that there are."""
    experiment = original.experiment
    splits = {
        name: getattr(experiment.dataset, name) for name in SPLITS if experiment.task.size(name)
    }
    return {
        f"{name}_{key}": value
        for name, split in splits.items()
        for key, value in experiment.evaluator.evaluate(params, network_state, split)
        ._asdict()
        .items()
    }


def _as_png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, dpi=100)
    return file.getvalue()


def _settings(config: PruneConfig, run: FinishedRun) -> dict[str, Any]:
    """Collect what a fine-tuning depends on, beside its size, criterion and seed."""
    own = dataclasses.asdict(config)
    own = {name: value for name, value in own.items() if name not in _NOT_COMPARED}
    return own | {f"run.{name}": value for name, value in run.settings.items()}


def _read_existing(output_dir: Path, settings: dict[str, Any]) -> list[FineTuning]:
    """Read the fine-tunings that are finished.

    Raises:
        ConfigMismatchError: If they are of other settings.
        DamagedFileError: If the file holds something else.
    """
    fix = "Move it away, or pass another --output-dir."
    existing = read_json(output_dir / NUMBERS, _check_numbers, fix)
    if existing is None:
        for name in (TABLE, FIGURE):
            if (output_dir / name).exists():
                raise ConfigMismatchError(
                    f"{output_dir} holds a {name} without its {NUMBERS}, so nobody knows of what "
                    "it is. Pass another --output-dir, or delete that file."
                )
        return []
    there, nothing = existing["settings"], "(not set)"
    lines = [
        f"  {name}: there {there.get(name, nothing)}, asked for {settings.get(name, nothing)}"
        for name in sorted(there | settings)
        if there.get(name, nothing) != settings.get(name, nothing)
    ]
    if lines:
        raise ConfigMismatchError(
            f"{output_dir} holds results of other settings:\n"
            + "\n".join(lines)
            + "\nPass another --output-dir, or delete that one."
        )
    return existing["fine_tunings"]


def _check_numbers(value: Any) -> dict[str, Any]:
    """Check what is read of results.

    Raises:
        ValueError: If they are something else.
    """
    kinds = {"settings": dict[str, Scalar | list[Scalar]], "fine_tunings": list[dict[str, Any]]}
    check_fields(value, kinds, "the results")
    for each in value["fine_tunings"]:
        check_fields(each, _FINE_TUNING, "a fine-tuning")
        for when in ("before", "after"):
            check_fields(each[when], dict.fromkeys(_MEASURED, float), f"{when!r} of a fine-tuning")
            if not all(map(math.isfinite, each[when].values())):
                raise ValueError(f"{when!r} of a fine-tuning has a number that is not finite")
    return value


def _place(fine_tuning: FineTuning) -> tuple[int, float, str]:
    return fine_tuning["seed"], fine_tuning["keep"], fine_tuning["criterion"]
