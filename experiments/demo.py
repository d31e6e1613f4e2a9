"""The demo: one network trained plainly, with the paper's SEHT-D, and as recommended; compared."""

import dataclasses
import itertools
import os
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import jax
import numpy as np
from matplotlib.figure import Figure
from rich.console import Console, Group
from rich.progress import Progress
from rich.table import Table

import seht_jax as seht
from experiments.config import DataConfig, to_json
from experiments.data.load import load_dataset
from experiments.errors import DamagedFileError, SettingError
from experiments.json_file import check_fields, read_json
from experiments.presets import digits
from experiments.regularizers import GaussNewton, Regularizer, SehtD
from experiments.training.logging import add_run, make_progress, show
from experiments.training.loop import Experiment, build_experiment
from experiments.training.run_directory import write_json
from experiments.training.state import TrainState

STRENGTH = 3e-4
WARMUP_STEPS = 100
DRAW_PROBABILITY = 0.05
METHODS: dict[str, tuple[Regularizer, ...]] = {
    "plain": (),
    "SEHT-D": (SehtD(lam=STRENGTH, warmup_steps=WARMUP_STEPS, p=DRAW_PROBABILITY),),
    "recommended": (GaussNewton(),),
}

# Curves are measured at steps that thin out, with few probes: more would cost more than training.
CURVE_PROBES = 2
CURVE_POINTS = 12

# Okabe and Ito's colours, which the colour-blind can tell apart; the dashes do it in grey too.
STYLES = {
    "plain": {"color": "#000000", "linestyle": "-"},
    "SEHT-D": {"color": "#E69F00", "linestyle": "--"},
    "recommended": {"color": "#0072B2", "linestyle": "-."},
}

TIMING_ROUNDS = 9
TIMING_BLOCK = 20

Run: TypeAlias = dict[str, Any]
Results: TypeAlias = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class DemoConfig:
    """How much the demo does."""

    seeds: int = 5
    """Runs of each method, at least 2; the seeds are 0, 1, ..."""
    epochs: int = digits.CONFIG.epochs
    """Passes over the 1,000 training images."""
    output_dir: Path = Path("runs/demo")
    """Where demo.png and results.json go."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            SettingError: If there are too few seeds or epochs.
        """
        if self.seeds < 2:
            raise SettingError(f"--seeds must be at least 2 for a standard error, not {self.seeds}")
        if self.epochs < 1:
            raise SettingError(f"--epochs must be at least 1, not {self.epochs}")


def run_demo(config: DemoConfig, console: Console) -> Results:
    """Train, compare, and write ``demo.png`` and ``results.json``.

    Methods at the same seed start from the same weights and see the same images in the same order.

    Args:
        config: How much to do.
        console: Where progress and the table are shown.

    Returns:
        What ``results.json`` holds.

    Raises:
        DivergedError: If a run does not stay finite.
    """
    train_configs = {
        name: dataclasses.replace(digits.CONFIG, method=method, epochs=config.epochs)
        for name, method in METHODS.items()
    }
    results_path = config.output_dir / "results.json"
    settings = {name: to_json(train_config) for name, train_config in train_configs.items()}
    runs = _take_over(results_path, settings, config.seeds, console)
    console.print(
        f"A residual network with BatchNorm on scikit-learn's digits: {', '.join(METHODS)}, "
        f"{config.seeds} seeds each."
    )
    dataset = load_dataset(DataConfig())
    plain = build_experiment(train_configs["plain"], dataset)
    experiments = {
        # All methods here train the same network, so one compiled evaluation serves them all.
        name: dataclasses.replace(
            build_experiment(train_config, dataset), evaluator=plain.evaluator
        )
        for name, train_config in train_configs.items()
    }
    states: dict[str, TrainState] = {}
    for name, experiment in experiments.items():
        states[name] = experiment.init(0)
        with console.status(f"Compiling the step of {name}"):
            experiment.warm_up(states[name])

    results: Results = {"settings": settings, "environment": _environment(), "runs": runs}
    finished = {(run["method"], run["seed"]) for run in runs}
    with make_progress(console) as progress:
        # Seed by seed, so that an interrupted demo has all methods at the seeds that it has.
        for seed in range(config.seeds):
            for name, experiment in experiments.items():
                if (name, seed) not in finished:
                    runs.append(_train_one(name, experiment, seed, progress))
                    write_json(results_path, results)
    with console.status("Timing the steps"):
        results["step_seconds"] = time_steps(experiments, states)
    results["verdict"] = verdict(runs)
    write_json(results_path, results)
    figure_path = config.output_dir / "demo.png"
    draw_figure(runs).savefig(figure_path, dpi=150)
    console.print(demo_table(results))
    for line in results["verdict"]:
        console.print(line, highlight=False)
    console.print(f"Figure: {figure_path}   All numbers: {results_path}", highlight=False)
    return results


def time_steps(
    experiments: Mapping[str, Experiment], states: Mapping[str, TrainState]
) -> dict[str, float]:
    """Time the training steps in turn, so that a disturbance strikes all methods alike.

    A block is long enough to average over SEHT-D's steps, whose cost depends on what is drawn.

    Args:
        experiments: The experiments, by method; their steps must be compiled.
        states: Where to start from, by method.

    Returns:
        Seconds per step by method: the median over blocks of the mean over the block's steps.
    """
    states = dict(states)
    times: dict[str, list[float]] = {name: [] for name in experiments}
    order = np.arange(max(len(e.dataset.train.labels) for e in experiments.values()))
    order = jax.numpy.asarray(order, jax.numpy.int32)
    for _ in range(TIMING_ROUNDS):
        for name, experiment in experiments.items():
            state = states[name]
            start = time.perf_counter()
            for _ in range(TIMING_BLOCK):
                state, _ = experiment.train_step(state, experiment.dataset.train, order)
            states[name] = jax.block_until_ready(state)
            times[name].append((time.perf_counter() - start) / TIMING_BLOCK)
    return {name: statistics.median(values) for name, values in times.items()}


def verdict(runs: Sequence[Run]) -> list[str]:
    """Say in words whether SEHT beats plain training.

    A difference counts where the mean of the differences seed by seed is more than two standard
    errors away from 0.

    Args:
        runs: Finished runs of all methods at the same seeds.

    Returns:
        One sentence per method and one on the whole.
    """
    sentences, winners = [], []
    for name in METHODS:
        if name == "plain":
            continue
        loss, loss_error = _paired_difference(runs, name, "test_loss")
        accuracy, accuracy_error = _paired_difference(runs, name, "test_accuracy")
        trace, trace_error = _paired_difference(runs, name, "trace")
        sentences.append(
            f"{name} against plain, seed by seed: tr(H) {trace:+.2f} ± {trace_error:.2f} "
            f"({_direction(trace, trace_error, 'lower', 'higher')}), "
            f"test loss {loss:+.4f} ± {loss_error:.4f} "
            f"({_direction(loss, loss_error, 'better', 'worse')}), "
            f"test accuracy {100 * accuracy:+.2f} ± {100 * accuracy_error:.2f} points "
            f"({_direction(accuracy, accuracy_error, 'worse', 'better')})."
        )
        better = loss < -2 * loss_error or accuracy > 2 * accuracy_error
        worse = loss > 2 * loss_error or accuracy < -2 * accuracy_error
        if better and not worse:
            winners.append(name)
    seeds = len({run["seed"] for run in runs})
    if winners:
        sentences.append(
            f"Here {' and '.join(winners)} generalised better than plain training by more than two "
            f"standard errors over {seeds} seeds on a small data set: a hint, no proof."
        )
    else:
        sentences.append(
            f"SEHT does not beat plain training here: over {seeds} seeds no method is better in "
            "test loss or accuracy by more than two standard errors without being worse in the "
            "other."
        )
    return sentences


def demo_table(results: Results) -> Group:
    """Lay out the comparison.

    Args:
        results: What `run_demo` returns.

    Returns:
        A table with a heading and remarks, for a rich console.
    """
    runs = results["runs"]
    seeds = len({run["seed"] for run in runs})
    table = Table()
    for heading in ("", "test accuracy %", "test loss", "tr(H)", "step time"):
        table.add_column(heading, justify="right" if heading else "left")
    plain_seconds = results["step_seconds"]["plain"]
    for name in METHODS:
        accuracy, accuracy_error = mean_and_error(_values(runs, name, "test_accuracy"))
        loss, loss_error = mean_and_error(_values(runs, name, "test_loss"))
        trace, trace_error = mean_and_error(_values(runs, name, "trace"))
        ratio = results["step_seconds"][name] / plain_seconds
        table.add_row(
            name,
            f"{100 * accuracy:.2f} ± {100 * accuracy_error:.2f}",
            f"{loss:.4f} ± {loss_error:.4f}",
            f"{trace:.2f} ± {trace_error:.2f}",
            f"{ratio:.2f}x",
        )
    heading = f"Mean ± standard error over {seeds} seeds, at the last epoch"
    remarks = (
        "tr(H): trace of the Hessian of the cross-entropy at the end, on the whole training set as "
        "one batch, BatchNorm in training mode. "
        f"Step time: relative to plain ({1e3 * plain_seconds:.1f} ms), measured in turn. "
        f"The paper's SEHT-D: lambda = {STRENGTH} after {WARMUP_STEPS} steps of warm-up, layers "
        f"and entries drawn with p = {DRAW_PROBABILITY}, divided by the share that is drawn. "
        "Recommended: the Gauss-Newton form, scale-free, whose lambda rises over the training to "
        f"{GaussNewton().strength:g}. The paper's exact form is not what to begin with: the trace "
        "of the Hessian has no lower bound, and minimising it seeks negative curvature, which "
        "destroys the training once lambda is large. The Gauss-Newton trace is never negative. "
        "All gradients are clipped alike."
    )
    return Group(heading, table, remarks)


def draw_figure(runs: Sequence[Run]) -> Figure:
    """Draw training loss, test loss and tr(H) over the steps.

    Args:
        runs: Finished runs.

    Returns:
        The figure: per method the mean over seeds, and a band of one standard deviation.
    """
    figure = Figure(figsize=(12, 4), layout="constrained")
    panels = {
        "train_losses": "Training loss, mean of an epoch",
        "test_losses": "Test loss",
        "traces": "tr(H), all training images, batch statistics",
    }
    axes = figure.subplots(1, len(panels))
    seeds = len({run["seed"] for run in runs})
    for axis, (quantity, title) in zip(axes, panels.items(), strict=True):
        for name, style in STYLES.items():
            curves = np.array([run[quantity] for run in runs if run["method"] == name])
            steps = next(
                run["train_steps" if quantity == "train_losses" else "curve_steps"]
                for run in runs
                if run["method"] == name
            )
            low, centre, high = _band(curves)
            axis.plot(steps, centre, label=name, linewidth=1.8, **style)
            axis.fill_between(steps, low, high, color=style["color"], alpha=0.15, linewidth=0)
        axis.set_title(title, fontsize=11)
        axis.set_xlabel("training step")
        positive = all(np.min(run[quantity]) > 0 for run in runs)
        axis.set_yscale("log" if positive else "symlog")
        axis.grid(alpha=0.3, which="both", linewidth=0.5)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False)
    figure.suptitle(
        f"Digits, residual network with BatchNorm, {seeds} seeds "
        "(line: mean, band: one standard deviation, both of the logarithm)",
        fontsize=11,
    )
    return figure


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Compute a mean and its standard error.

    Args:
        values: At least two numbers.

    Returns:
        Both.
    """
    return statistics.fmean(values), statistics.stdev(values) / len(values) ** 0.5


def curve_steps(num_steps: int, steps_per_epoch: int) -> list[int]:
    """Choose the ends of epochs at which curves are measured, denser at the beginning.

    Args:
        num_steps: Steps of a run.
        steps_per_epoch: Steps of an epoch.

    Returns:
        At most `CURVE_POINTS` steps, the last one included.
    """
    epochs = num_steps // steps_per_epoch
    chosen = np.unique(np.round(np.geomspace(1, epochs, CURVE_POINTS)).astype(int))
    return [int(epoch) * steps_per_epoch for epoch in chosen]


def _train_one(name: str, experiment: Experiment, seed: int, progress: Progress) -> Run:
    """Train one network.

    Raises:
        DivergedError: If it does not stay finite.
    """
    dataset, evaluator = experiment.dataset, experiment.evaluator
    measured_at = curve_steps(experiment.num_steps, experiment.steps_per_epoch)
    task = add_run(progress, f"{name}, seed {seed}", experiment.num_steps)
    state = experiment.init(seed)
    train_steps, train_losses, test_losses, traces = [], [], [], []
    trace_key = jax.random.key(seed)
    for newest, row in experiment.run(state):
        state = newest
        step = int(state.step)
        train_steps.append(step)
        train_losses.append(row["loss"])
        if step in measured_at:
            test = evaluator.evaluate(state.params, state.network_state, dataset.test)
            trace, _ = evaluator.trace(
                state.params, state.network_state, dataset.train, trace_key, CURVE_PROBES
            )
            test_losses.append(test.loss)
            traces.append(trace)
        # Measured for every method, also the one that has no estimate of its own.
        show(progress, task, step, row | {"trace_estimate": traces[-1]} if traces else row)
    test = evaluator.evaluate(state.params, state.network_state, dataset.test)
    trace, trace_error = evaluator.trace(
        state.params,
        state.network_state,
        dataset.train,
        trace_key,
        experiment.config.trace_probes,
    )
    return {
        "method": name,
        "seed": seed,
        "test_loss": test.loss,
        "test_accuracy": test.accuracy,
        "trace": trace,
        "trace_standard_error": trace_error,
        "train_steps": train_steps,
        "train_losses": train_losses,
        "curve_steps": measured_at,
        "test_losses": test_losses,
        "traces": traces,
    }


def _band(curves: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute mean and standard deviation over the first axis, as low, centre and high.

    Positive curves are averaged in the logarithm, which is how they are shown, so that a band does
    not reach below 0.
    """
    if np.all(curves > 0):
        low, centre, high = (np.exp(curve) for curve in _arithmetic_band(np.log(curves)))
        return low, centre, high
    return _arithmetic_band(curves)


def _arithmetic_band(curves: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    centre, spread = curves.mean(axis=0), curves.std(axis=0, ddof=1)
    return centre - spread, centre, centre + spread


def _values(runs: Sequence[Run], method: str, quantity: str) -> list[float]:
    chosen = sorted((run for run in runs if run["method"] == method), key=lambda run: run["seed"])
    return [run[quantity] for run in chosen]


def _paired_difference(runs: Sequence[Run], method: str, quantity: str) -> tuple[float, float]:
    pairs = zip(_values(runs, method, quantity), _values(runs, "plain", quantity), strict=True)
    return mean_and_error([value - plain for value, plain in pairs])


def _direction(difference: float, error: float, below: str, above: str) -> str:
    if abs(difference) <= 2 * error:
        return "no clear difference"
    return below if difference < 0 else above


def _environment() -> dict[str, Any]:
    return {
        "seht_jax": seht.__version__,
        "jax": jax.__version__,
        "python": platform.python_version(),
        "device": jax.devices()[0].device_kind,
        "cpu_count": os.cpu_count(),
    }


def _take_over(path: Path, settings: dict[str, Any], num_seeds: int, console: Console) -> list[Run]:
    """Decide what happens to earlier results: go on with them, renew them, or put them aside.

    Returns the runs to keep. A demo that was interrupted is gone on with; a finished one of the
    same settings is made anew; files of other settings are renamed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    earlier = _read_results(path)
    if earlier is not None and (
        earlier["settings"] == settings and earlier["environment"] == _environment()
    ):
        if "step_seconds" in earlier:
            console.print(f"Renewing the finished demo in {path.parent}.", highlight=False)
            return []
        kept = [run for run in earlier["runs"] if run["seed"] < num_seeds]
        console.print(f"Going on with {len(kept)} finished runs of {path}.", highlight=False)
        return kept
    for file in (path, path.with_name("demo.png")):
        if file.exists():
            aside = _free_name(file)
            file.rename(aside)
            console.print(
                f"Other settings, or another program, made {file}: kept as {aside}.",
                highlight=False,
            )
    return []


def _read_results(path: Path) -> Results | None:
    try:
        return read_json(path, _check_results, fix="")
    except DamagedFileError:
        return None  # it is put aside


def _check_results(value: Any) -> Results:
    """Check what a demo that goes on reads.

    Raises:
        ValueError: If it is not there, or a curve has not as many points as steps.
    """
    fields = {"settings": dict[str, Any], "environment": dict[str, Any], "runs": list[Run]}
    results = check_fields(value, fields, "the results")
    curves = {"train_losses": "train_steps", "test_losses": "curve_steps", "traces": "curve_steps"}
    numbers = dict.fromkeys(("test_loss", "test_accuracy", "trace"), float)
    lists = dict.fromkeys([*curves, *curves.values()], list[float])
    for run in results["runs"]:
        check_fields(run, {"method": str, "seed": int} | numbers | lists, "a run")
        for curve, steps in curves.items():
            if len(run[curve]) != len(run[steps]):
                raise ValueError(f"{curve!r} of a run has not as many points as {steps!r}")
    return results


def _free_name(path: Path) -> Path:
    candidates = (path.with_stem(f"{path.stem}-earlier-{i}") for i in itertools.count(1))
    return next(candidate for candidate in candidates if not candidate.exists())
