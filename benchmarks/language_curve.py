"""The first few hundred steps of a language model beside PyTorch's, on the same text.

Both are trained with the plain recipe of `table3` or `table4`, dropout included, from weights drawn
from the same distribution, each with random numbers of its own. They take turns step by step, so
that their times are those of the same machine in the same minutes.
"""

import dataclasses
import importlib.util
import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
from rich.console import Console
from rich.table import Table

from benchmarks.report import (
    environment,
    make_progress,
    new_report_path,
    num_threads,
    write_report,
)
from experiments.config import TextConfig
from experiments.data.load import load_corpus
from experiments.errors import ExperimentError
from experiments.presets import SWEEPS
from experiments.presets.table3 import BASELINE, LENGTH
from experiments.tasks.language import EVALUATION_STRANDS, cut_into_strands
from experiments.training.loop import Experiment, build_experiment

TABLES = {"lstm": "table3", "gru": "table4"}


@dataclasses.dataclass(frozen=True)
class LanguageCurveConfig:
    """What to compare."""

    network: Literal["lstm", "gru"] = "lstm"
    """Which recurrent layers."""
    seeds: int = 3
    """Runs of each."""
    steps: tuple[int, ...] = (100, 200, 300)
    """After which steps the validation loss is compared."""
    width: int = 512
    """Size of embeddings and states."""
    train_tokens: int | None = None
    """Tokens of the training text, with a vocabulary of their own; by default all of them."""
    evaluation_tokens: int = 20_000
    """Tokens of the validation text."""
    data_dir: Path | None = None
    """Where WikiText-2 is; see `python -m experiments train pydoc --help`."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: If there are too few seeds for a standard error, no steps, or no text.
        """
        if self.seeds < 2:
            raise ValueError(f"seeds must be at least 2, not {self.seeds}")
        for name in ("width", "evaluation_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not self.steps or min(self.steps) < 1 or list(self.steps) != sorted(set(self.steps)):
            raise ValueError(f"steps must be rising numbers, at least one, not {self.steps}")


def run_language_curve(config: LanguageCurveConfig, console: Console) -> Path:
    """Train both, show a table, and write a JSON file.

    Args:
        config: What to compare.
        console: Where progress and table are shown.

    Returns:
        The path of the file.

    Raises:
        ExperimentError: If PyTorch is not installed.
    """
    if importlib.util.find_spec("torch") is None:
        raise ExperimentError("PyTorch is not installed; the extra `bench` has it")
    experiment = _experiment(config)
    with make_progress(console) as progress:
        task = progress.add_task("training", total=config.seeds * config.steps[-1])
        pairs = [
            _train_pair(experiment, config, seed, lambda: progress.advance(task))
            for seed in range(config.seeds)
        ]
    rows = [
        compare(
            step,
            [pair["losses"][i] for pair in pairs],
            [pair["torch_losses"][i] for pair in pairs],
        )
        for i, step in enumerate(config.steps)
    ]
    seconds = {
        name: statistics.median(time for pair in pairs for time in pair[name])
        for name in ("seconds", "torch_seconds")
    }
    path = new_report_path("language_curve", config.network)
    report = {
        "benchmark": "language_curve",
        "environment": environment(),
        **dataclasses.asdict(config) | {"data_dir": None},
        "vocabulary_size": len(experiment.dataset.vocabulary),
        "threads": num_threads(),
        "rows": rows,
        "median_step": seconds | {"ratio": seconds["seconds"] / seconds["torch_seconds"]},
    }
    write_report(path, report)
    console.print(_table(config, rows))
    console.print(
        f"A step takes {1e3 * seconds['seconds']:.0f} ms here and "
        f"{1e3 * seconds['torch_seconds']:.0f} ms in PyTorch (medians). All numbers: {path}",
        highlight=False,
        soft_wrap=True,
    )
    return path


def compare(step: int, ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """Compare the losses at one step.

    Args:
        step: Which step.
        ours: Our losses, one for each seed.
        theirs: PyTorch's.

    Returns:
        The losses, the difference of their means, its standard error, and the ratio of both.
    """
    difference = statistics.fmean(ours) - statistics.fmean(theirs)
    variances = [statistics.variance(losses) / len(losses) for losses in (ours, theirs)]
    error = math.sqrt(sum(variances))
    return {
        "step": step,
        "losses": list(ours),
        "torch_losses": list(theirs),
        "difference": difference,
        "standard_error": error,
        "in_standard_errors": difference / error,
    }


def _experiment(config: LanguageCurveConfig) -> Experiment:
    (baseline,) = (
        point.config for point in SWEEPS[TABLES[config.network]].points() if point.label == BASELINE
    )
    data = TextConfig(
        dataset="wikitext2",
        length=LENGTH,
        train_tokens=config.train_tokens,
        evaluation_tokens=config.evaluation_tokens,
        data_dir=config.data_dir,
    )
    model = dataclasses.replace(baseline.model, width=config.width)
    train_config = dataclasses.replace(baseline, data=data, model=model)
    return build_experiment(train_config, load_corpus(data))


def _train_pair(
    experiment: Experiment, config: LanguageCurveConfig, seed: int, advance: Callable[[], None]
) -> dict[str, list[float]]:
    """Train one network of each kind, in turn."""
    # Where it is used, so that `--help` needs no PyTorch.
    from benchmarks import torch_language  # noqa: PLC0415

    torch_language.seed_everything(seed, num_threads())
    task, optimizer = experiment.task, experiment.config.optimizer
    model: Any = task.model
    network = torch_language.TorchLanguageModel(model, model.dropout_rate)
    torch_language.draw_uniformly(network)
    validation = torch_language.as_tokens(
        cut_into_strands(experiment.dataset.validation.tokens, EVALUATION_STRANDS)
    )
    strands = task.train_data
    torch_strands = torch_language.as_tokens(strands)
    state, states = experiment.init(seed), None
    experiment.warm_up(state)
    pair: dict[str, list[float]] = {
        name: [] for name in ("losses", "torch_losses", "seconds", "torch_seconds")
    }
    for step in range(config.steps[-1]):
        start = time.perf_counter()
        state, _ = jax.block_until_ready(experiment.train_step(state, strands, None))
        between = time.perf_counter()
        position = step % task.steps_per_epoch * LENGTH
        window = torch_strands[:, position : position + LENGTH + 1]
        states = torch_language.train_step(
            network,
            window[:, :-1],
            window[:, 1:],
            states if position else None,
            learning_rate=optimizer.learning_rate,
            clip_norm=optimizer.clip_norm,
        )
        pair["seconds"].append(between - start)
        pair["torch_seconds"].append(time.perf_counter() - between)
        if step + 1 in config.steps:
            measured = experiment.evaluator.evaluate(
                state.params, state.network_state, experiment.dataset.validation
            )
            pair["losses"].append(measured.loss)
            pair["torch_losses"].append(torch_language.evaluate(network, validation, LENGTH))
        advance()
    return pair


def _table(config: LanguageCurveConfig, rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(title=f"Validation loss, {config.network}, {config.seeds} seeds")
    for heading in ("step", "here", "PyTorch", "difference", "in standard errors"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            str(row["step"]),
            f"{statistics.fmean(row['losses']):.4f}",
            f"{statistics.fmean(row['torch_losses']):.4f}",
            f"{row['difference']:+.4f} ± {row['standard_error']:.4f}",
            f"{row['in_standard_errors']:+.1f}",
        )
    return table
