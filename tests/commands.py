"""The command that trains, in processes of its own."""

import json
import os
import random
import re
import socket
import subprocess
import sys
import time

import compilation

# Ten steps an epoch, whose checkpoints are all kept.
TRAIN = [
    "-m", "experiments", "train", "digits", "--width", "2", "--epochs", "1", "--batch-size", "100",
    "--method", "plain", "--trace-examples", "0", "--log-every", "5", "--checkpoint-every", "7",
    "--keep-checkpoints-every", "1",
]  # fmt: skip
FIRST_PORT = 2**16 - 2**12


def free_port():
    """A port that nobody listens at, of those that JAX makes of Slurm's job numbers."""
    while True:
        port = random.randrange(FIRST_PORT, 2**16)
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)):
                return port


def start(checkout, arguments, num_devices=1, **environment):
    """Start Python in a process that has some devices."""
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=checkout,
        env={
            "PATH": os.defpath,
            "PYTHONPATH": str(checkout),
            "JAX_PLATFORMS": "cpu",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "XLA_FLAGS": " ".join(
                [f"--xla_force_host_platform_device_count={num_devices}", *compilation.FLAGS]
            ),
            **environment,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def end(processes, status=0):
    """Wait for processes to end with a status, and return what they said."""
    outputs = [process.communicate(timeout=600)[0] for process in processes]
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == status, output[-3000:]
    return outputs


def rows_of(run_dir):
    """The log of a run."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def terminate_in_training(process, run_dir):
    """Send SIGTERM to a process of a run that has taken some steps."""
    log = run_dir / "metrics.jsonl"
    while not (log.exists() and log.stat().st_size):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.2)
    process.terminate()


def step_of_the_end(output, run_dir):
    """At which step a command says that it has saved and ended; its checkpoint is there."""
    (found,) = re.findall(r"Told to end at step (\d+), and saved there\. The same comm", output)
    assert (run_dir / "checkpoints" / found).is_dir()
    return int(found)
