"""A worker of a sweep in a process of its own, whose runs cost nothing.

    python tests/sweep_worker.py STORAGE OUTPUT_DIR GRACE_SECONDS [hang]

It takes runs from workers that were silent for GRACE_SECONDS. With `hang`, it stops for ever in the
middle of its first run, to be killed there.
"""

import contextlib
import dataclasses
import io
import os
import sys
import time
from pathlib import Path

import sqlalchemy
from known_sweep import FINISHED
from rich.console import Console

from experiments.config import TrainConfig
from experiments.regularizers import SehtH
from experiments.sweep.definition import Row, Sweep
from experiments.sweep.plan import plan_runs
from experiments.sweep.queue import RunQueue
from experiments.sweep.worker import work
from experiments.training.run_directory import write_result

STRENGTHS = (1e-5, 1e-4)
NUM_SEEDS = 2
SWEEP = Sweep(
    name="toy",
    title="A toy",
    rows=(
        Row("Plain", TrainConfig(method=())),
        Row("SEHT-H", TrainConfig(method=(SehtH(),)), grid={"seht-h.lam": STRENGTHS}),
    ),
)
NUM_RUNS = NUM_SEEDS * (1 + len(STRENGTHS))


def open_queue(storage, output_dir, sweep=SWEEP, num_seeds=NUM_SEEDS, grace_seconds=600):
    return RunQueue(
        storage,
        "study",
        sweep,
        plan_runs(sweep, num_seeds, output_dir),
        heartbeat_seconds=1,
        grace_seconds=grace_seconds,
    )


def fake_run(config, console):
    """Leave a line in a common file, and what a run leaves."""
    directory = config.run_dir
    runs = next(parent for parent in directory.parents if parent.name == "runs")
    with (runs / "begun.txt").open("a") as file:
        file.write(f"{directory} {os.getpid()}\n")
    directory.mkdir(exist_ok=True)
    time.sleep(0.05)
    result = FINISHED | {"validation_accuracy": 0.5, "test_accuracy": 0.25}
    write_result(directory, result)
    return result


def hanging_run(config, console):
    config.run_dir.mkdir()
    (config.run_dir / "checkpoint").touch()
    time.sleep(600)


@contextlib.contextmanager
def database_away(queue):
    """Let every question to the queue's database fail."""

    def fail(connection, cursor, statement, parameters, context, executemany):
        raise sqlalchemy.exc.OperationalError(statement, parameters, OSError("the server is away"))

    arguments = (queue._storage.engine, "before_cursor_execute", fail)
    sqlalchemy.event.listen(*arguments)
    try:
        yield
    finally:
        sqlalchemy.event.remove(*arguments)


def begun(output_dir):
    """The runs that were begun, each with the process."""
    return [line.split() for line in (output_dir / "runs" / "begun.txt").read_text().splitlines()]


def with_strengths(*strengths):
    """The same sweep with another grid."""
    plain, seht = SWEEP.rows
    rows = (plain, dataclasses.replace(seht, grid={"seht-h.lam": strengths}))
    return dataclasses.replace(SWEEP, rows=rows)


if __name__ == "__main__":
    queue = open_queue(sys.argv[1], Path(sys.argv[2]), grace_seconds=int(sys.argv[3]))
    run = hanging_run if sys.argv[4:] else fake_run
    work(queue, SWEEP.selected_by, run, Console(file=io.StringIO()), poll_seconds=0.2)
