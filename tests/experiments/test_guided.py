"""Parsers and input that is made by which of their lines it reaches; atheris is optional."""

import importlib.util
import os
import subprocess
import sys

import pytest

RUNS = 20_000


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="needs atheris")
@pytest.mark.parametrize("target", ["json", "log", "method", "storage", "mesh"])
def test_a_parser_ends_with_no_error_that_is_not_meant(tmp_path, checkout, record_property, target):
    script = checkout / "tests" / "guided_fuzz.py"
    finished = subprocess.run(
        [sys.executable, script, target, str(RUNS), tmp_path],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(checkout), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert f"Done {RUNS} runs" in finished.stderr
