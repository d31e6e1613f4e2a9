"""Settings and small configurations of the experiments' tests; they compute in float32."""

import dataclasses
import io
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache as compilation_cache_module
from rich.console import Console

from experiments.config import ModelConfig, TrainConfig
from experiments.data.load import load_dataset
from experiments.regularizers import Cutout


@pytest.fixture(autouse=True)
def enable_x64():
    """Leave float64 off, as in a real run."""


@pytest.fixture(scope="module", autouse=True)
def strict_dtypes():
    """Be strict with dtypes, in fixtures of a module too: they compile the tests' programs."""
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    """Where compilations are kept for the tests of all modules."""
    return tmp_path_factory.mktemp("compiled")


# Of a module: a package's fixture would last until the session's end, and the library's tests,
# which share few programs, would write theirs too.
@pytest.fixture(scope="module", autouse=True)
def compilation_cache(compiled):
    """Compile faster, and what several tests have in common only once."""
    settings = {
        "jax_disable_most_optimizations": True,
        "jax_compilation_cache_dir": str(compiled),
        "jax_persistent_cache_min_compile_time_secs": 0.1,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: jax.config.values[name] for name in settings}
    for values in (settings, before):
        for name, value in values.items():
            jax.config.update(name, value)
        compilation_cache_module.reset_cache()
        if values is settings:
            yield


@pytest.fixture(scope="session")
def digits():
    return load_dataset(TrainConfig().data)


@pytest.fixture(scope="session")
def tiny_digits(digits):
    """The digits with 40 training images."""
    train = type(digits.train)(*(array[:40] for array in digits.train))
    return digits._replace(train=train)


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=120)


@pytest.fixture(scope="session")
def tiny_settings():
    """Two epochs of ten steps, which can be interrupted in the middle; the place is missing."""
    return TrainConfig(
        name="tiny",
        model=ModelConfig(width=2),
        epochs=2,
        batch_size=100,
        trace_examples=0,
        log_every=3,
        checkpoint_every=4,
        method=(Cutout(size=3),),  # draws in every step, and is compiled in no time
    )


@pytest.fixture
def tiny_config(tiny_settings, tmp_path):
    return dataclasses.replace(tiny_settings, run_dir=tmp_path / "run")


@pytest.fixture
def plain(tiny_config):
    return dataclasses.replace(tiny_config, method=())


@pytest.fixture(scope="session")
def checkout():
    return Path(__file__).parents[2]
