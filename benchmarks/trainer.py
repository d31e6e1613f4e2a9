"""What the training loop of the experiments adds to the bare step.

The bare step is the jitted value and gradient with the same optimizer, on one batch that was loaded
and normalised before. The loop loads, crops and flips its batches, and hands its metrics out every
few steps. Log files and checkpoints, once in many steps, are not in it.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from rich.console import Console

from benchmarks.measure import PLAIN, Program, Row, measure, with_hasty_compilation
from benchmarks.report import (
    describe_device,
    environment,
    make_progress,
    measurements_table,
    new_report_path,
    write_report,
)
from benchmarks.variants import ONE_KEY
from experiments.config import DataConfig, ModelConfig, OptimizerConfig, TrainConfig
from experiments.data.dataset import Dataset, make_dataset
from experiments.tasks.classification import make_loss_fn, make_network, prepare_batch
from experiments.training.loop import Experiment, build_experiment

NUM_IMAGES = 2048
LOOP = "training loop"


@dataclasses.dataclass(frozen=True)
class TrainerConfig:
    """What to measure."""

    width: int = 64
    """Channels of the first stage of the ResNet-18."""
    batch_size: int = 32
    """Images per step."""
    steps: int = 5
    """Steps that are timed together: the loop does not wait for each."""
    rounds: int = 5
    """How often both are timed."""
    quick: bool = False
    """Test the benchmark: a narrow network, 1 round of 2 steps; no result."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: If one is below 1, or a batch larger than the data.
        """
        for name in ("width", "batch_size", "steps", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.batch_size > NUM_IMAGES:
            raise ValueError(f"batch_size must be at most {NUM_IMAGES}, not {self.batch_size}")


def run_trainer(config: TrainerConfig, console: Console) -> Path:
    """Measure, show a table, and write a JSON file.

    Args:
        config: What to measure.
        console: Where progress and table are shown.

    Returns:
        The path of the file.
    """
    if not config.quick:
        return _run(config, console)
    small = dataclasses.replace(config, width=2, batch_size=4, steps=2, rounds=1)
    with with_hasty_compilation():
        return _run(small, console)


def _run(config: TrainerConfig, console: Console) -> Path:
    experiment = _experiment(config)
    rows = [
        Row(PLAIN, lambda: _bare(experiment, config.steps)),
        Row(LOOP, lambda: _loop(experiment)),
    ]
    with make_progress(console) as progress:
        measurements = measure(rows, config.rounds, progress)
    path = new_report_path("trainer", "resnet18")
    settings = dataclasses.asdict(config)
    write_report(
        path,
        {"benchmark": "trainer", "environment": environment(), **settings, "rows": measurements},
    )
    title = (
        f"{config.steps} steps of a ResNet-18 of width {config.width}, batch {config.batch_size}\n"
        f"{describe_device()}"
    )
    console.print(measurements_table(title, measurements))
    console.print(f"All numbers: {path}", highlight=False, soft_wrap=True)
    return path


def _experiment(config: TrainerConfig) -> Experiment:
    """Build a training on noise, longer than any measurement."""
    train_config = TrainConfig(
        data=DataConfig(dataset="cifar10", augmentation="crop-flip"),
        model=ModelConfig(network="resnet18", width=config.width),
        optimizer=OptimizerConfig(clip_norm=0.0),
        method=(),
        epochs=1_000,
        batch_size=config.batch_size,
        log_every=config.steps,
        # At the end of every epoch by default, where the loop comes up for air once more.
        checkpoint_every=config.steps,
    )
    return build_experiment(train_config, _noise(config))


def _noise(config: TrainerConfig) -> Dataset:
    random = np.random.default_rng(0)
    # Whole log intervals, so that every stop is after the same number of steps.
    interval = config.steps * config.batch_size
    size = max(NUM_IMAGES // interval, 1) * interval
    images = random.integers(0, 256, (size, 32, 32, 3), np.uint8)
    labels = random.integers(0, 10, size)
    return make_dataset((images, labels), (images[:0], labels[:0]), (images, labels), 10)


def _loop(experiment: Experiment) -> Program:
    state = experiment.init(0)
    experiment.warm_up(state)
    rows: Iterator[Any] = experiment.run(state)
    return Program(run=lambda _: next(rows), strata=ONE_KEY)


def _bare(experiment: Experiment, num_steps: int) -> Program:
    state = experiment.init(0)
    batch = prepare_batch(
        experiment.dataset, experiment.task.first_examples(experiment.config.batch_size)
    )

    @jax.jit
    def step(params: Any, network_state: Any, opt_state: Any) -> tuple[Any, Any, Any]:
        network = make_network(experiment.model, network_state, state.key)
        loss_fn = make_loss_fn(network, (), batch)
        (_, outputs), gradients = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, opt_state = experiment.tx.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), outputs.network_state, opt_state

    def run(_: Any) -> None:
        carry = state.params, state.network_state, state.opt_state
        for _step in range(num_steps):
            carry = step(*carry)
        jax.block_until_ready(carry)

    return Program(run=run, strata=ONE_KEY)
