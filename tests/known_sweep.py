"""A sweep whose runs' numbers are known, without any training."""

import dataclasses
import json

from experiments.config import TrainConfig
from experiments.regularizers import SehtD
from experiments.sweep.definition import TIME_RATIO, Column, Reported, Row, Sweep
from experiments.sweep.plan import plan_runs, write_plan
from experiments.training.run_directory import write_json, write_result

NUM_SEEDS = 3
# What every result has beside its figures.
FINISHED = {
    "name": "known",
    "method": ["plain"],
    "seed": 0,
    "epochs": 2,
    "steps": 8,
    "training_seconds": 1.0,
    "median_step_time": 0.1,
}
PLAIN = TrainConfig(method=(), epochs=2)


def seht_d(max_iter, p):
    return dataclasses.replace(PLAIN, method=(SehtD(num_probes=max_iter, p=p),))


SWEEP = Sweep(
    name="known",
    title="Known <numbers>",
    rows=(
        Row("Plain", PLAIN, paper={"test_accuracy": Reported(94.0, 0.24)}),
        Row(
            "SEHT-D 1",
            seht_d(1, 0.05),
            grid={"seht-d.lam": (0.1, 0.2, 0.3)},
            paper={"test_accuracy": Reported(95.37, 0.09), TIME_RATIO: Reported(1.2)},
        ),
        Row("SEHT-D 5", seht_d(5, 0.05), note="a remark"),
        Row("SEHT-D 5, p", seht_d(5, 0.01)),
        Row("MM + FRL", None, paper={"test_accuracy": Reported(95.33)}),
    ),
    columns=(Column("test_accuracy", "test accuracy, %"), Column("test_loss", "test loss", 1.0)),
    note="The numbers are made up.",
)

# By row and point: validation and test accuracy by seed; None is a run that diverged.
ACCURACIES = {
    "runs/plain": [(0.5, 0.7), (0.6, 0.8), (0.7, 0.9)],
    "runs/seht-d-1/seht-d.lam=0.1": [(0.5, 0.99), (0.5, 0.99), (0.5, 0.99)],
    "runs/seht-d-1/seht-d.lam=0.2": [(0.7, 0.61), (0.6, 0.62), (0.8, 0.63)],
    "runs/seht-d-1/seht-d.lam=0.3": [(0.9, 0.9), None, (0.9, 0.9)],
    "runs/seht-d-5": [(0.5, 0.5), None, (0.5, 0.6)],
    "runs/seht-d-5-p": [None, None, None],
}


def log(step_time):
    """Two epochs of four steps, logged every three steps."""
    losses = {3: 4.0, 4: 8.0, 6: 1.0, 8: 2.0}
    previous = 0
    for step, loss in losses.items():
        row = {"step": step, "loss": loss, "epoch": step / 4, "step_time": step_time}
        row["seconds"] = step_time * (step - previous)
        if step % 4 == 0:
            row["validation/accuracy"] = step / 10
        previous = step
        yield row


def write_run(directory, accuracies, step_time):
    directory.mkdir(parents=True)
    write_json(directory / "environment.json", {"jax": "0.10.2", "device": "cpu", "host": "desk"})
    lines = [json.dumps(row) + "\n" for row in log(step_time)]
    if accuracies is None:
        (directory / "metrics.jsonl").write_text("".join(lines[:-1]))
        write_json(directory / "diverged.json", {"message": "The run diverged at step 7."})
        return
    (directory / "metrics.jsonl").write_text("".join(lines))
    validation, test = accuracies
    result = {"validation_accuracy": validation, "test_accuracy": test, "test_loss": 1 - test}
    write_result(directory, FINISHED | result)


def write_runs(directory, sweep=SWEEP, num_seeds=NUM_SEEDS):
    """A plain step takes 2 ms, every other 3 ms; seed by seed 1 ms more."""
    write_plan(sweep, num_seeds, directory)
    for run in plan_runs(sweep, num_seeds, directory):
        point, _, seed = run.key.rpartition("/seed")
        step_time = 1e-3 * ((2 if run.label == "Plain" else 3) + int(seed))
        write_run(directory / run.key, ACCURACIES[point][int(seed)], step_time)
    return directory
