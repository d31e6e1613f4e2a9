"""What the training loop of the experiments adds to the bare step.

The bare step is the jitted value and gradient with the same optimizer, on one batch that was loaded
before. The loop loads its batches, crops and flips images, and hands its metrics out every few
steps. Log files and checkpoints, once in many steps, are not in it.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
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
from experiments.config import (
    DataConfig,
    LanguageModelConfig,
    ModelConfig,
    OptimizerConfig,
    TextConfig,
    TrainConfig,
)
from experiments.data.corpus import Corpus, Tokens
from experiments.data.dataset import Dataset, make_dataset
from experiments.training.loop import Experiment, build_experiment

NUM_IMAGES = 2048
LENGTH = 35
VOCABULARY_SIZE = 1_000
INTERVALS = 10  # of the log in an epoch of text
LOOP = "training loop"


@dataclasses.dataclass(frozen=True)
class TrainerConfig:
    """What to measure."""

    network: Literal["resnet18", "lstm", "gru", "transformer"] = "resnet18"
    """Which network; text has 35 tokens per step and a vocabulary of 1,000."""
    width: int = 64
    """Channels of the first stage of the ResNet-18, or size of a language model's embeddings."""
    batch_size: int = 32
    """Images per step, or strands of text."""
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
    small = dataclasses.replace(config, width=4, batch_size=4, steps=2, rounds=1)
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
    path = new_report_path("trainer", config.network)
    settings = dataclasses.asdict(config)
    write_report(
        path,
        {"benchmark": "trainer", "environment": environment(), **settings, "rows": measurements},
    )
    title = (
        f"{config.steps} steps of {config.network}, width {config.width}, "
        f"batch {config.batch_size}\n"
        f"{describe_device()}"
    )
    console.print(measurements_table(title, measurements))
    console.print(f"All numbers: {path}", highlight=False, soft_wrap=True)
    return path


def _experiment(config: TrainerConfig) -> Experiment:
    """Build a training on noise, longer than any measurement."""
    if config.network == "resnet18":
        data = DataConfig(dataset="cifar10", augmentation="crop-flip")
        model = ModelConfig(network=config.network, width=config.width)
        noise = _noisy_images(config)
    else:
        data = TextConfig(length=LENGTH)
        model = LanguageModelConfig(network=config.network, width=config.width)
        noise = _noisy_text(config)
    train_config = TrainConfig(
        data=data,
        model=model,
        optimizer=OptimizerConfig(clip_norm=0.0),
        method=(),
        epochs=1_000,
        batch_size=config.batch_size,
        log_every=config.steps,
        # At the end of every epoch by default, where the loop comes up for air once more.
        checkpoint_every=config.steps,
    )
    return build_experiment(train_config, noise)


def _noisy_images(config: TrainerConfig) -> Dataset:
    random = np.random.default_rng(0)
    # Whole log intervals, so that every stop is after the same number of steps.
    interval = config.steps * config.batch_size
    size = max(NUM_IMAGES // interval, 1) * interval
    images = random.integers(0, 256, (size, 32, 32, 3), np.uint8)
    labels = random.integers(0, 10, size)
    return make_dataset((images, labels), (images[:0], labels[:0]), (images, labels), 10)


def _noisy_text(config: TrainerConfig) -> Corpus:
    random = np.random.default_rng(0)
    # As of images; the last token of a strand has no next one.
    size = config.batch_size * (LENGTH * config.steps * INTERVALS + 1)
    tokens = Tokens(jnp.asarray(random.integers(0, VOCABULARY_SIZE, size, np.int32)))
    none = Tokens(tokens.tokens[:0])
    return Corpus(tokens, none, none, tuple(map(str, range(VOCABULARY_SIZE))))


def _loop(experiment: Experiment) -> Program:
    state = experiment.init(0)
    experiment.warm_up(state)
    rows: Iterator[Any] = experiment.run(state)
    return Program(run=lambda _: next(rows), strata=ONE_KEY)


def _bare(experiment: Experiment, num_steps: int) -> Program:
    task, state = experiment.task, experiment.init(0)
    order = task.epoch_order(state.key, 0)
    batch = jax.jit(task.batch)(task.train_data, order, state.step, state.key)

    @jax.jit
    def step(params: Any, network_state: Any, opt_state: Any) -> tuple[Any, Any, Any]:
        network = task.network(network_state, jnp.ones_like(state.step), state.key, {})
        loss_fn = task.loss_fn(network, (), batch)
        (_, outputs), gradients = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, opt_state = experiment.tx.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), outputs.network_state, opt_state

    def run(_: Any) -> None:
        carry = state.params, state.network_state, state.opt_state
        for _step in range(num_steps):
            carry = step(*carry)
        jax.block_until_ready(carry)

    return Program(run=run, strata=ONE_KEY)
