"""A long training in a process of its own, whose memory and compilations are watched.

It is the command that a user gives, with log, evaluation and checkpoints. At the end it is told to
end by SIGTERM, and has to save.
"""

import dataclasses
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from matplotlib.figure import Figure
from rich.console import Console

from benchmarks.report import environment, make_progress, new_report_path, write_report
from experiments.errors import ExperimentError
from experiments.training.preemption import EXIT_STATUS

MIB = 2**20
_COMPILED = "Finished XLA compilation"


class SoakError(ExperimentError):
    """The training that was watched did not do what it should."""


class Sample(NamedTuple):
    """What the training had taken at one time.

    Attributes:
        minutes: Since it was started.
        memory: Bytes of memory, resident.
        compilations: Programs that it had compiled.
    """

    minutes: float
    memory: int
    compilations: int


@dataclasses.dataclass(frozen=True)
class SoakConfig:
    """What to watch, and for how long."""

    minutes: float = 60.0
    """How long the training goes on."""
    warm_up: float = 5.0
    """Minutes that are not judged: programs are compiled, and data are loaded."""
    every: float = 10.0
    """Seconds between two looks."""
    arguments: tuple[str, ...] = ("digits", "--checkpoint-every", "2000")
    """Arguments of `python -m experiments train`."""

    def __post_init__(self) -> None:
        """Check the times.

        Raises:
            ValueError: If one is out of its range.
        """
        if not 0 < self.warm_up < self.minutes:
            raise ValueError(
                f"warm_up must be above 0 and below minutes={self.minutes}, not {self.warm_up}"
            )
        if not 0 < self.every <= 60 * (self.minutes - self.warm_up) / 2:
            raise ValueError(
                f"every must be above 0, and allow two looks after the warm-up, not {self.every}"
            )


def run_soak(config: SoakConfig, console: Console) -> Path:
    """Watch a training, say how constant its memory was, and write a JSON file and a figure.

    Args:
        config: What to watch.
        console: Where it is shown.

    Returns:
        The path of the file.

    Raises:
        SoakError: If the training ends by itself, or does not save when it is told to end.
    """
    path = new_report_path("soak", config.arguments[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    log = path.with_suffix(".log")
    samples = _watch(_command(config, path.with_suffix("")), log, config, console)
    judged = [sample for sample in samples if sample.minutes >= config.warm_up]
    median = statistics.median(sample.memory for sample in judged)
    report: dict[str, Any] = {
        "config": dataclasses.asdict(config),
        "environment": environment(),
        "median_memory": median,
        "largest_deviation": max(abs(sample.memory / median - 1) for sample in judged),
        "compilations_after_warm_up": judged[-1].compilations - judged[0].compilations,
        "samples": [sample._asdict() for sample in samples],
    }
    write_report(path, report)
    _draw(samples, config, path.with_suffix(".png"))
    console.print(
        f"After {config.warm_up:g} minutes: {median / MIB:.0f} MiB, within "
        f"{100 * report['largest_deviation']:.1f} %; {report['compilations_after_warm_up']} "
        f"programs compiled. Written to {path}; the figure is beside it.",
        soft_wrap=True,
    )
    return path


def _command(config: SoakConfig, run_dir: Path) -> list[str]:
    endless = ["--epochs", "1000000", "--run-dir", str(run_dir)]
    return [sys.executable, "-m", "experiments", "train", *config.arguments, *endless]


def _watch(command: Sequence[str], log: Path, config: SoakConfig, console: Console) -> list[Sample]:
    """Start a training, look at it until the time is over, and tell it to end.

    Raises:
        SoakError: If it ends by itself, or does not save when it is told to end.
    """
    samples = []
    with log.open("wb") as output, make_progress(console) as progress:
        task = progress.add_task("training", total=config.minutes)
        process = subprocess.Popen(  # noqa: S603  # this project's own command
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"JAX_LOG_COMPILES": "1"},
        )
        try:
            watched = psutil.Process(process.pid)
            begin = time.monotonic()
            while (minutes := (time.monotonic() - begin) / 60) < config.minutes:
                time.sleep(config.every)
                if process.poll() is not None:
                    raise SoakError(
                        f"the training ended after {minutes:.1f} minutes; {log} says why"
                    )
                compilations = log.read_text(errors="replace").count(_COMPILED)
                samples.append(Sample(minutes, watched.memory_info().rss, compilations))
                progress.update(task, completed=minutes)
            process.send_signal(signal.SIGTERM)
            if process.wait(timeout=600) != EXIT_STATUS:
                raise SoakError(
                    f"told to end, the training ended with status {process.returncode} instead of "
                    f"{EXIT_STATUS}; {log} says why"
                )
        finally:
            process.kill()
    return samples


def _draw(samples: Sequence[Sample], config: SoakConfig, path: Path) -> None:
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    minutes = [sample.minutes for sample in samples]
    axes.plot(minutes, [sample.memory / MIB for sample in samples])
    axes.axvspan(0, config.warm_up, color="0.9", label="warm-up")
    axes.set(xlabel="minutes", ylabel="resident memory (MiB)", ylim=(0, None), xlim=(0, None))
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=150)
