"""What a step of a method costs: trained in turn with plain training, in one process."""

import statistics
from collections.abc import Iterator

from rich.console import Console

from experiments.config import TrainConfig
from experiments.data.load import load_data_once
from experiments.study.stages import RATIO
from experiments.training.loop import Experiment, Row, build_experiment

_EPOCHS = 9


def compare_step_times(
    config: TrainConfig, plain: TrainConfig, console: Console
) -> dict[str, float]:
    """Train with a method and without it, a few steps of each in turn, and compare the times.

    The load of a machine changes from minute to minute, and concerns both alike. Compilation, data
    on their way to the device and evaluation are not counted.

    Args:
        config: Training with the method.
        plain: Plain training on the same data, in batches of the same size.
        console: Where progress is shown.

    Returns:
        Seconds per step: ``plain_step_time`` and ``step_time``, medians over the epochs; and
        ``step_time_ratio``, the median of an epoch's ratio, with its ``_least`` and ``_most``.
    """
    data = load_data_once(config.data)
    experiments = [build_experiment(each, data) for each in (plain, config)]
    runs = [_stretches(each) for each in experiments]
    times = []
    num_epochs = min(_EPOCHS, config.epochs)
    for epoch in range(1, num_epochs + 1):
        seconds = _epoch(runs)
        times.append([each / experiments[0].steps_per_epoch for each in seconds])
        console.print(
            f"epoch {epoch} of {num_epochs}: "
            + ", ".join(f"{1e3 * each:.1f} ms" for each in times[-1])
            + f" per step, {seconds[1] / seconds[0]:.2f} times as long",
            highlight=False,
        )
    ratios = [step_time / plain_step_time for plain_step_time, step_time in times]
    return {
        "plain_step_time": statistics.median(each for each, _ in times),
        "step_time": statistics.median(each for _, each in times),
        RATIO: statistics.median(ratios),
        f"{RATIO}_least": min(ratios),
        f"{RATIO}_most": max(ratios),
    }


_Stretch = tuple[bool, Row]


def _stretches(experiment: Experiment) -> Iterator[_Stretch]:
    """Train, and tell after each stretch of steps whether an epoch ends there."""
    state = experiment.init(experiment.config.seed)
    experiment.warm_up(state)
    for now, row in experiment.run(state):
        yield int(now.step) % experiment.steps_per_epoch == 0, row


def _epoch(runs: list[Iterator[_Stretch]]) -> list[float]:
    """Train both for an epoch, and return what each took."""
    seconds = [0.0, 0.0]
    ended = False
    while not ended:
        for i, run in enumerate(runs):
            ended, row = next(run)
            seconds[i] += row["seconds"]
    return seconds
