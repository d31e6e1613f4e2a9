"""Runs that are killed again and again, and run to their end: by `test_survival.py`.

Every life of the run is a process of its own, forked before JAX has started, which is killed by
SIGKILL: at a random moment, or at one of the file operations in the run directory, of which those
inside a save are chosen more often. Prints one line of JSON: how the lives ended, and whether the
last state is, bit for bit, that of a run in one piece.
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

from experiments.config import ModelConfig, TrainConfig
from experiments.data.load import load_dataset
from experiments.regularizers import SehtD
from experiments.training.checkpoint import Checkpoints
from experiments.training.logging import read_log
from experiments.training.loop import build_experiment, train

CONFIG = TrainConfig(
    name="killed",
    model=ModelConfig(width=2),
    method=(SehtD(num_branches=1, p=0.5),),
    epochs=4,
    batch_size=100,
    trace_examples=0,
    log_every=3,
    checkpoint_every=2,
)
TIMES = ("seconds", "step_time", "images_per_second")


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


def run_to_file_operation(directory: Path, number: int, part: str) -> None:
    """Run until this process is killed at a file operation on a path with ``part`` in it."""
    left = number

    def look(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event in {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.utime"}:
            path = str(arguments[0])
            if path.startswith(str(directory)) and part in path:
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(look)
    run(directory)


def run(directory: Path) -> None:
    train(dataclasses.replace(CONFIG, run_dir=directory), Console(file=io.StringIO()))


def record(directory: Path, to: Path) -> None:
    """Write down the last state and the log, without times."""
    state = build_experiment(CONFIG, load_dataset(CONFIG.data)).init(0)
    with Checkpoints(directory / "checkpoints") as checkpoints:
        restored = checkpoints.restore(state, warn=sys.exit)
    state = restored[0]._replace(key=jax.random.key_data(restored[0].key))
    rows = [
        {name: value for name, value in row.items() if name not in TIMES}
        for row in read_log(directory / "metrics.jsonl")
    ]
    leaves = [np.asarray(leaf).tobytes().hex() for leaf in jax.tree.leaves(state)]
    to.write_text(json.dumps({"leaves": leaves, "log": rows}))


def main(place: Path, seed: int, kills: int) -> None:
    random = np.random.default_rng(seed)
    jax.config.update("jax_compilation_cache_dir", str(place / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_disable_most_optimizations", True)
    in_a_life(lambda: run(place / "whole"))
    in_a_life(lambda: record(place / "whole", place / "whole.json"))
    ends: list[tuple[str, float]] = []
    while len(ends) < kills and not (place / "run" / "result.json").exists():
        how = ("moment", "file", "save")[len(ends) % 3]
        number, seconds = int(random.integers(1, 40)), float(random.uniform(0.5, 5.0))

        if how == "moment":
            end = in_a_life(lambda: run(place / "run"), seconds)
        else:
            part = "tmp" if how == "save" else ""
            end = in_a_life(functools.partial(run_to_file_operation, place / "run", number, part))
        if end:
            ends.append((how, seconds if how == "moment" else number))
    in_a_life(lambda: run(place / "run"))
    in_a_life(lambda: record(place / "run", place / "run.json"))
    found, expected = (
        json.loads((place / name).read_text()) for name in ("run.json", "whole.json")
    )
    same = {name: found[name] == expected[name] for name in expected}
    sys.stdout.write(json.dumps({"deaths": ends, **same}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
