"""A run that is killed goes on where it was, and ends as if nothing had been."""

import json
import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("seed", "kills"),
    [(0, 6), *(pytest.param(seed, 21, marks=pytest.mark.long) for seed in (1, 2, 3))],
)
def test_a_run_killed_at_any_moment_ends_with_the_same_weights(tmp_path, checkout, seed, kills):
    script = checkout / "tests" / "killed_runs.py"
    finished = subprocess.run(
        [sys.executable, str(script), str(tmp_path), str(seed), str(kills)],
        cwd=checkout,
        env={"PYTHONPATH": str(checkout), "PATH": "", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    found = json.loads(finished.stdout)
    assert found["leaves"], found
    assert found["log"], found
    assert len(found["deaths"]) == kills, found
    assert {how for how, _ in found["deaths"]} == {"moment", "file", "save"}
