"""Runs that are killed again and again, and run to their end: by `test_survival.py`.

Every life of the run is a process of its own, forked before JAX has started, which is killed by
SIGKILL: at a random moment, at one of the file operations in the run directory, or at one of those
in a checkpoint that is not complete yet. Prints one line of JSON: how the lives ended, and whether
the last state and the best epoch are, bit for bit, those of a run in one piece.
"""

import dataclasses
import functools
import io
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from rich.console import Console

from experiments.config import (
    LanguageModelConfig,
    ModelConfig,
    OptimizerConfig,
    TextConfig,
    TrainConfig,
)
from experiments.data.load import load_data
from experiments.regularizers import Dropout, SehtD
from experiments.training.checkpoint import Checkpoints
from experiments.training.logging import read_log
from experiments.training.loop import build_experiment, train

CONFIGS = {
    "digits": TrainConfig(
        name="killed",
        model=ModelConfig(width=2),
        method=(SehtD(num_branches=1, p=0.5),),
        epochs=4,
        batch_size=100,
        reported="best",
        trace_examples=0,
        log_every=3,
        checkpoint_every=2,
    ),
    "text": TrainConfig(
        name="killed",
        data=TextConfig(length=5, train_tokens=10 * 51, evaluation_tokens=200),
        model=LanguageModelConfig(width=4, num_layers=1),
        # So large a learning rate that epochs are worse than those before.
        optimizer=OptimizerConfig(learning_rate=20.0, schedule="plateau", momentum=0.5),
        method=(Dropout(0.2), SehtD(lam=1e-4, num_branches=1, p=0.5)),
        epochs=4,
        batch_size=10,
        reported="best",
        trace_examples=0,
        log_every=3,
        checkpoint_every=2,
    ),
}
TIMES = ("seconds", "step_time", "images_per_second", "tokens_per_second")
INSIDE_A_SAVE = "orbax-checkpoint-tmp"
OPERATIONS = 25
"""So many file operations there are in a save and the steps before it."""


def in_a_life(work: Callable[[], None], seconds: float | None = None) -> int:
    """Do something in a process of its own; returns the signal that ended it, or 0.

    After ``seconds`` it is killed.
    """
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:  # noqa: BLE001  # a forked process must not go on here
            sys.stderr.write(f"{error!r}\n")
            os._exit(1)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        sys.exit("a life of the run ended with an error")
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def run_to_file_operation(
    config: TrainConfig, directory: Path, number: int, part: str, last_words: Path
) -> None:
    """Run until this process is killed at a file operation on a path with ``part`` in it.

    The path, relative to the run directory, is written to ``last_words``.
    """
    left = number
    inside = f"{directory}{os.sep}"
    output = os.open(last_words, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def look(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event in {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.utime"}:
            path = str(arguments[0])
            if path.startswith(inside) and part in path.removeprefix(inside):
                left -= 1
                if left == 0:
                    os.write(output, path.removeprefix(inside).encode())
                    os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(look)
    run(config, directory)


def run(config: TrainConfig, directory: Path) -> None:
    train(dataclasses.replace(config, run_dir=directory), Console(file=io.StringIO()))


def record(config: TrainConfig, directory: Path, to: Path) -> None:
    """Write down the last state, the best epoch and the log, without times."""
    experiment = build_experiment(config, load_data(config.data))
    state = experiment.init(0)
    with Checkpoints(directory / "checkpoints") as checkpoints:
        restored = checkpoints.restore(state, experiment.no_best(state), warn=sys.exit)
    state = restored[0]._replace(key=jax.random.key_data(restored[0].key))
    rows = [
        {name: value for name, value in row.items() if name not in TIMES}
        for row in read_log(directory / "metrics.jsonl")
    ]
    leaves, best = (
        [np.asarray(leaf).tobytes().hex() for leaf in jax.tree.leaves(tree)]
        for tree in (state, restored[1])
    )
    to.write_text(json.dumps({"leaves": leaves, "best": best, "log": rows}))


def main(place: Path, data: str, seed: int, kills: int) -> None:
    config = CONFIGS[data]
    random = np.random.default_rng(seed)
    jax.config.update("jax_compilation_cache_dir", str(place / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_disable_most_optimizations", True)
    in_a_life(lambda: run(config, place / "whole"))
    in_a_life(lambda: record(config, place / "whole", place / "whole.json"))
    ends: list[tuple[str, float | str]] = []
    last_words = place / "last_words"
    while len(ends) < kills and not (place / "run" / "result.json").exists():
        how = ("moment", "file", "save")[len(ends) % 3]
        number, seconds = int(random.integers(1, OPERATIONS)), float(random.uniform(0.5, 5.0))
        if how == "moment":
            end = in_a_life(lambda: run(config, place / "run"), seconds)
        else:
            part = INSIDE_A_SAVE if how == "save" else ""
            end = in_a_life(
                functools.partial(
                    run_to_file_operation, config, place / "run", number, part, last_words
                )
            )
        if end:
            ends.append((how, seconds if how == "moment" else last_words.read_text()))
    in_a_life(lambda: run(config, place / "run"))
    in_a_life(lambda: record(config, place / "run", place / "run.json"))
    found, expected = (
        json.loads((place / name).read_text()) for name in ("run.json", "whole.json")
    )
    same = {name: found[name] == expected[name] for name in expected}
    sys.stdout.write(json.dumps({"deaths": ends, **same}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
