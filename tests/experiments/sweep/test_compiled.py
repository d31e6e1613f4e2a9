"""Where compilations are kept."""

import platform

import jax
import pytest

from experiments.sweep.compiled import keep_compiled_programs


@pytest.fixture
def cache_dir():
    """Tell JAX of a place for the time of a test."""
    before = jax.config.values["jax_compilation_cache_dir"]
    yield lambda place: jax.config.update("jax_compilation_cache_dir", place)
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.parametrize("named", [None, "elsewhere"])
def test_compilations_are_kept_below_the_output_directory_unless_a_place_is_named(
    named, cache_dir, tmp_path
):
    cache_dir(named)
    keep_compiled_programs(tmp_path)
    expected = named or str(tmp_path / "compiled" / platform.node())
    assert jax.config.values["jax_compilation_cache_dir"] == expected
