"""A run that is killed goes on where it was, and ends as if nothing had been."""

import json
import re
import subprocess
import sys

import compilation
import pytest


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("data", "seed", "kills"),
    [
        ("digits", 0, 3),
        *(
            pytest.param(data, seed, 21, marks=pytest.mark.long)
            for data, seed in (("digits", 1), ("digits", 2), ("text", 3))
        ),
    ],
)
def test_a_run_killed_at_any_moment_ends_with_the_same_weights(
    tmp_path, checkout, data, seed, kills
):
    script = checkout / "tests" / "killed_runs.py"
    finished = subprocess.run(
        [sys.executable, str(script), str(tmp_path), data, str(seed), str(kills)],
        cwd=checkout,
        env={
            "PYTHONPATH": str(checkout),
            "PATH": "",
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": " ".join(compilation.FLAGS),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    found = json.loads(finished.stdout)
    assert found["leaves"], found
    assert found["best"], found
    assert found["log"], found
    assert len(found["deaths"]) == kills, found
    assert {how for how, _ in found["deaths"]} == {"moment", "file", "save"}
    for how, path in found["deaths"]:
        assert how != "save" or re.match(r"checkpoints/\d+\.orbax-checkpoint-tmp", path), path
