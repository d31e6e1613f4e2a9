"""Several processes train the weights of one."""

import json
import socket
import subprocess
import sys

import numpy as np
import pytest

TOLERANCE = {"float64": 1e-8, "float32": 1e-2}  # of the largest entry


def run_processes(checkout, what, place, setting, num_processes, *, x64=False):
    """Run `distributed_run.py` in several processes, which have as many devices in all."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = checkout / "tests" / "distributed_run.py"
    environment = {
        "PATH": "",
        "PYTHONPATH": str(checkout),
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_X64": "1" if x64 else "0",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={4 // num_processes}",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, script, what, place, str(setting), str(port), str(num_processes),
             str(number)],
            cwd=checkout,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(num_processes)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=600)[0] for process in processes]
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output[-3000:]


def weights_of(place, number=0):
    with np.load(f"{place}-{number}.npz") as file:
        return [file[name] for name in sorted(file.files)]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("dtype", ["float64", pytest.param("float32", marks=pytest.mark.long)])
def test_processes_train_the_weights_of_one(tmp_path, checkout, dtype, record_property):
    found = {}
    for number in (1, 2, 4):
        place = tmp_path / str(number)
        run_processes(checkout, "steps", place, dtype, number, x64=dtype == "float64")
        found[number] = [weights_of(place, process) for process in range(number)]
    (expected,) = found[1]
    assert expected[0].dtype == dtype
    for number in (2, 4):
        for weights in found[number]:
            differences = [
                np.abs(one - other).max() / max(np.abs(other).max(), 1e-3)
                for one, other in zip(weights, expected, strict=True)
            ]
            record_property(f"{dtype}, {number} processes", float(max(differences)))
            assert max(differences) < TOLERANCE[dtype]
            # The last array is how many layers each step drew.
            np.testing.assert_array_equal(weights[-1], expected[-1])
    assert len(set(expected[-1])) > 1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_of_two_processes_is_gone_on_with_by_one(tmp_path, checkout):
    both = tmp_path / "both"
    run_processes(checkout, "train", both, 1, 2)
    result = json.loads((both / "result.json").read_text())
    lines = (both / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [5, 7, 10]
    assert len(json.loads((both / "environment.json").read_text())) == 1
    # One process goes on from the checkpoint of two, for the rest of the same run.
    (both / "result.json").unlink()
    (both / "checkpoints" / "10").rename(tmp_path / "10")
    run_processes(checkout, "train", both, 1, 1)
    again = json.loads((both / "result.json").read_text())
    assert again["test_loss"] == pytest.approx(result["test_loss"], rel=1e-3)
