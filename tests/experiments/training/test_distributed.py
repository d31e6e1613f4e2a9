"""Several processes train the weights of one."""

import dataclasses
import json
import os
import time

import numpy as np
import pytest
from commands import (
    FIRST_PORT,
    TRAIN,
    end,
    free_port,
    rows_of,
    start,
    step_of_the_end,
    terminate_in_training,
)

from experiments.config import ModelConfig
from experiments.data.load import load_data
from experiments.presets import PRESETS
from experiments.training.preemption import EXIT_STATUS
from experiments.training.run_directory import claim_run_directory, hold_run_directory

TOLERANCE = {"float64": 1e-8, "float32": 1e-2}  # of the largest entry


def start_command(checkout, run_dir, num_processes, command=TRAIN):
    """Start the command that trains in several processes, which have four devices in all."""
    port = free_port()
    processes = []
    for number in range(num_processes):
        meet = (
            ["--distributed", "--coordinator", f"127.0.0.1:{port}", "--num-processes",
             num_processes, "--process-id", number]
            if num_processes > 1
            else []
        )  # fmt: skip
        arguments = [*command, "--run-dir", run_dir, *meet]
        processes.append(start(checkout, arguments, 4 // num_processes))
    return processes


def weights_of(place, number=0):
    with np.load(f"{place}-{number}.npz") as file:
        return [file[name] for name in sorted(file.files)]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("network", "dtype", "numbers"),
    [
        ("convnet", "float64", (2,)),  # compiled in half of the time
        pytest.param("digits-resnet", "float64", (2, 4), marks=pytest.mark.long),
        pytest.param("digits-resnet", "float32", (2, 4), marks=pytest.mark.long),
    ],
)
def test_processes_train_the_weights_of_one(
    tmp_path, checkout, network, dtype, numbers, record_property
):
    script = checkout / "tests" / "distributed_run.py"
    x64 = {"JAX_ENABLE_X64": "1" if dtype == "float64" else "0"}
    found = {}
    for number in (1, *numbers):
        place = tmp_path / str(number)
        arguments = [script, place, network, dtype, free_port(), number]
        end(
            [
                start(checkout, [*arguments, process], 4 // number, **x64)
                for process in range(number)
            ]
        )
        found[number] = [weights_of(place, process) for process in range(number)]
    (expected,) = found[1]
    assert expected[0].dtype == dtype
    for number in numbers:
        largest = 0.0
        for weights in found[number]:
            for one, other in zip(weights, expected, strict=True):
                difference = np.abs(one - other).max() / max(np.abs(other).max(), 1e-3)
                largest = max(largest, float(difference))
            # The last array is how many layers each step drew.
            np.testing.assert_array_equal(weights[-1], expected[-1])
        what = f"{network}, {dtype}, {number} processes"
        record_property("difference", {"what": what, "largest": largest})
        assert largest < TOLERANCE[dtype]
    assert len(set(expected[-1])) > 1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_of_two_processes_is_gone_on_with_by_one(tmp_path, checkout):
    both = tmp_path / "both"
    first, second = end(start_command(checkout, both, 2))
    assert "Training" in first  # the other one is silent
    assert "Training" not in second
    result = json.loads((both / "result.json").read_text())
    rows = rows_of(both)
    assert [row["step"] for row in rows] == [5, 7, 10]
    assert len(json.loads((both / "environment.json").read_text())) == 1
    # One process goes on from the checkpoint of two, for the rest of the same run.
    (both / "result.json").unlink()
    (both / "checkpoints" / "10").rename(tmp_path / "10")
    (output,) = end(start_command(checkout, both, 1))
    assert "Going on from step 7" in output
    assert len(json.loads((both / "environment.json").read_text())) == 2
    assert rows_of(both)[:2] == rows[:2]  # times included: these steps were not taken again
    assert [row["step"] for row in rows_of(both)] == [5, 7, 10]
    again = json.loads((both / "result.json").read_text())
    assert again["test_loss"] == pytest.approx(result["test_loss"], rel=1e-3)


@pytest.mark.slow
def test_an_error_in_one_process_ends_the_others_too(tmp_path, checkout):
    (tmp_path / "thesis.txt").write_text("years of work")
    first, second = end(start_command(checkout, tmp_path, 2), status=1)
    assert "is not empty and holds no config.json" in first
    assert "Process 0 could not claim the run directory; what it says itself" in second
    assert "Traceback" not in first + second


@pytest.mark.slow
def test_a_run_that_another_process_is_at_is_left_to_it_by_all(tmp_path, checkout):
    run_dir = tmp_path / "run"
    config = dataclasses.replace(
        PRESETS["digits"], model=ModelConfig(width=2), epochs=1, batch_size=100, method=(),
        trace_examples=0, log_every=5, checkpoint_every=7,
    )  # fmt: skip
    claim_run_directory(run_dir, config, load_data(config.data))
    with hold_run_directory(run_dir):
        first, second = end(start_command(checkout, run_dir, 2), status=1)
    assert f"is being carried out by process {os.getpid()} on " in first
    assert "Process 0 could not hold the run directory; what it says itself" in second
    assert "Traceback" not in first + second


FAILING = """
import sys
from experiments import __main__ as command_line
from experiments.training.logging import RunLog
write = RunLog.write
def fail_at_the_second_line(self, step, row):
    if step > 5:
        raise OSError("no space")
    write(self, step, row)
RunLog.write = fail_at_the_second_line
sys.exit(command_line.main(sys.argv[1:]))
"""


@pytest.mark.long
@pytest.mark.timeout(900)
def test_an_error_in_the_middle_ends_the_others_too(tmp_path, checkout):
    begun = time.monotonic()
    command = ["-c", FAILING, *TRAIN[2:], "--epochs", 10_000]  # without -m experiments
    processes = start_command(checkout, tmp_path / "run", 2, command)
    first, second = (process.communicate(timeout=600)[0] for process in processes)
    assert [process.returncode for process in processes] == [1, 1]
    assert time.monotonic() - begun < 240  # JAX waits for 300 seconds if it is not told otherwise
    assert "no space" in first
    assert "Process 0 could not write the log; what it says itself" in second
    assert "Traceback" not in first + second


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_on_slurm_processes_need_no_arguments_and_one_signal_ends_all(tmp_path, checkout):
    run_dir = tmp_path / "run"
    slurm = {
        "SLURM_JOB_ID": str(free_port() - FIRST_PORT),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
    }
    arguments = [*TRAIN, "--epochs", 10_000, "--run-dir", run_dir, "--distributed"]
    processes = [
        start(checkout, arguments, 2, **slurm, SLURM_PROCID=process, SLURM_LOCALID=process)
        for process in ("0", "1")
    ]
    terminate_in_training(processes[1], run_dir)
    first, second = (step_of_the_end(output, run_dir) for output in end(processes, EXIT_STATUS))
    assert first == second == rows_of(run_dir)[-1]["step"]
