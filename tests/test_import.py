"""What importing the library does, and what it offers."""

import ast
import inspect
import re
import subprocess
import sys
import textwrap
import typing
from pathlib import Path

import jax
import jaxtyping
import optax
import pytest

import seht_jax as seht
from seht_jax import analysis
from seht_jax.probes import draw_layers

MODULES = [seht, analysis]
REFERENCE = Path(__file__).parents[1] / "docs" / "reference"
WITHOUT_FORMULA = [
    "layer_names",
    "module_layer",
    "dense_eigenvalues",
    "dense_symmetric_eigenvalues",
]
# What is nobody's but this library's, or a definition that is in every textbook.
WITHOUT_SOURCE = [*WITHOUT_FORMULA, "exact_trace", "mean_over_batches"]
SOURCE = r"Eqs?\. |Algorithm |section \d|\((19|20)\d\d\)"


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


def test_analysis_without_matfree_says_what_to_install():
    program = "import sys; sys.modules['matfree'] = None; import seht_jax.analysis"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    last = result.stderr.splitlines()[-1]
    assert last == (
        "ModuleNotFoundError: seht_jax.analysis needs matfree: pip install 'seht-jax[analysis]'"
    )


@pytest.mark.parametrize("module", MODULES)
def test_the_public_names_are_sorted_and_there(module):
    assert list(module.__all__) == sorted(module.__all__)
    assert all(hasattr(module, name) for name in module.__all__)


@pytest.mark.parametrize(
    ("module", "name"), [(module, name) for module in MODULES for name in module.__all__]
)
def test_every_public_name_is_documented(module, name):
    value = getattr(module, name)
    docstring = inspect.getdoc(value)
    parameters = inspect.signature(value).parameters
    if inspect.isfunction(value):
        arguments, rest = docstring.split("\nArgs:\n", 1)[1].split("\n\n", 1)
        assert re.findall(r"^    (\w+):", arguments, re.MULTILINE) == list(parameters)
        assert "Returns:\n" in rest
        assert "Examples:\n    >>> " in rest
        assert ("$$" in docstring or re.search(SOURCE, docstring)) != (name in WITHOUT_FORMULA)
        assert bool(re.search(SOURCE, docstring)) != (name in WITHOUT_SOURCE)
    else:
        documented = docstring.split("\nAttributes:\n", 1)[1]
        names = getattr(value, "_fields", None) or list(parameters)
        assert re.findall(r"^    (\w+):", documented, re.MULTILINE) == list(names)
    for parameter in parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty


def without_shape(annotation):
    """Whether an annotation has an array of which it does not say the shape."""
    if isinstance(annotation, list | tuple):  # the arguments of a `Callable`
        return any(map(without_shape, annotation))
    if annotation in (optax.Schedule, optax.ScalarOrSchedule):  # optax says what they are
        return False
    return annotation is jax.Array or any(map(without_shape, typing.get_args(annotation)))


@pytest.mark.parametrize(
    ("module", "name"), [(module, name) for module in MODULES for name in module.__all__]
)
def test_every_array_has_a_shape(module, name):
    annotations = inspect.get_annotations(getattr(module, name))
    assert annotations
    assert [key for key, value in annotations.items() if without_shape(value)] == []


def test_an_array_without_a_shape_would_be_noticed():
    assert without_shape(typing.Callable[[jax.Array | None], float])
    assert not without_shape(jaxtyping.Float[jax.Array, " n"] | float)


def raised(function, seen):
    """Name the errors that a function of the library, or one that it uses, may raise."""
    if function in seen:
        return set()
    seen.add(function)
    names = set()
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function)))):
        if isinstance(node, ast.Raise):
            names.add(ast.unparse(node.exc.func))
        elif isinstance(node, ast.Name):
            used = inspect.unwrap(function).__globals__.get(node.id)
            if inspect.isfunction(used) and used.__module__.startswith("seht_jax"):
                names |= raised(used, seen)
    return names


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (module, name)
        for module in MODULES
        for name in module.__all__
        if inspect.isfunction(getattr(module, name))
    ],
)
def test_every_error_is_documented(module, name):
    function = getattr(module, name)
    section = inspect.getdoc(function).partition("\nRaises:\n")[2].partition("\n\n")[0]
    documented = re.findall(r"^    (\w+):", section, re.MULTILINE)
    assert set(documented) == raised(function, set())


@pytest.mark.parametrize(
    ("module", "page"), [(seht, "seht_jax.md"), (analysis, "analysis.md")], ids=["core", "analysis"]
)
def test_the_reference_has_every_public_name(module, page):
    text = (REFERENCE / page).read_text()
    # Of a function in a module of the same name, the name alone would be the module's.
    listed = re.findall(rf"^::: {module.__name__}\.(?:(\w+)\.(?=\1$))?(\w+)$", text, re.MULTILINE)
    listed = [name for _, name in listed]
    assert sorted(listed) == sorted(module.__all__)


def test_annotations_are_checked_at_run_time():
    with pytest.raises(jaxtyping.TypeCheckError):
        draw_layers("no key", 3, 0.5)
