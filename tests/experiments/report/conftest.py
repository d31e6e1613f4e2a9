"""A sweep whose runs' numbers are known."""

import pytest
from known_sweep import write_runs


@pytest.fixture
def finished(tmp_path):
    """Its output directory, with all runs at their end."""
    return write_runs(tmp_path / "known")
