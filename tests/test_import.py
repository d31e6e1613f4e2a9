"""What importing the library does, and what it offers."""

import inspect
import subprocess
import sys

import jaxtyping
import pytest

import seht_jax as seht
from seht_jax.probes import draw_layers


@pytest.fixture(scope="module")
def loaded():
    """Return the modules that `import seht_jax` loads in a fresh interpreter."""
    program = "import seht_jax, sys; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stderr == ""
    return {name.split(".")[0] for name in result.stdout.split()}


@pytest.mark.parametrize(
    "package", ["flax", "tensorflow", "haiku", "equinox", "matfree", "matplotlib", "experiments"]
)
def test_importing_the_library_does_not_load(package, loaded):
    assert package not in loaded


def test_the_public_names_are_sorted_and_there():
    assert list(seht.__all__) == sorted(seht.__all__)
    assert all(hasattr(seht, name) for name in seht.__all__)


@pytest.mark.parametrize("name", seht.__all__)
def test_every_public_name_is_documented(name):
    value = getattr(seht, name)
    assert inspect.getdoc(value)
    if inspect.isfunction(value):
        assert "Example:\n" in inspect.getdoc(value)
        assert ">>> " in inspect.getdoc(value)
    for parameter in inspect.signature(value).parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty


def test_annotations_are_checked_at_run_time():
    with pytest.raises(jaxtyping.TypeCheckError):
        draw_layers("no key", 3, 0.5)
