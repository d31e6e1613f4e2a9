"""Settings of the benchmarks' tests: those of a real run, but a fast compilation."""

import jax
import pytest


@pytest.fixture(autouse=True)
def enable_x64(monkeypatch, tmp_path):
    """Compute in float32 and promote dtypes implicitly; write to a directory of the test's own."""
    monkeypatch.chdir(tmp_path)
    with jax.numpy_dtype_promotion("standard"):
        yield
