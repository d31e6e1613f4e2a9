"""What SECURITY.md says of the sources."""

import ast
import subprocess

import pytest

PACKAGES = ("seht_jax", "experiments")
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib", "yaml"}
NAMES = {"eval", "exec", "compile", "__import__", "literal_eval"}
ATTRIBUTES = {
    ("os", "system"),
    ("os", "popen"),
    ("yaml", "load"),
    ("subprocess", "getoutput"),
    ("subprocess", "getstatusoutput"),
    ("ast", "literal_eval"),
}


def offences(source):
    """List what runs, or may run, what a file says."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            names = []
        for name in names:
            if name.partition(".")[0] in MODULES or tuple(name.rsplit(".", 1)) in ATTRIBUTES:
                yield f"line {node.lineno}: import {name}"
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        keywords = {each.arg: ast.unparse(each.value) for each in node.keywords}
        if called in NAMES or tuple(called.rsplit(".", 1)) in ATTRIBUTES:
            yield f"line {node.lineno}: {called}"
        if keywords.get("shell", "False") != "False":
            yield f"line {node.lineno}: shell"
        loads = called.rpartition(".")[2] in {"load", "read_array"} and called.partition(".")[
            0
        ] in {
            "np",
            "numpy",
            "jnp",
        }
        if keywords.get("allow_pickle", "False") != "False" or (
            loads and "allow_pickle" not in keywords
        ):
            yield f"line {node.lineno}: {called} with pickles"


@pytest.mark.parametrize("package", PACKAGES)
def test_nothing_that_is_read_is_run(checkout, package):
    paths = sorted((checkout / package).rglob("*.py"))
    assert len(paths) > 10
    found = [f"{path}, {each}" for path in paths for each in offences(path.read_text())]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import joblib.numpy_pickle",
        "import yaml",
        "eval(text)",
        "exec(text)",
        "from ast import literal_eval",
        "ast.literal_eval(text)",
        "os.system(text)",
        "subprocess.run(text, shell=True)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "open_file(path, allow_pickle=True)",
    ],
)
def test_each_of_them_would_be_found(source):
    assert list(offences(source))


@pytest.mark.parametrize(
    "source",
    [
        "model.eval()",
        "re.compile(text)",
        "subprocess.run(command)",
        "np.load(p, allow_pickle=False)",
    ],
)
def test_what_is_harmless_is_not(source):
    assert not list(offences(source))


def test_every_test_that_the_policy_names_is_there(checkout):
    policy = checkout / "SECURITY.md"
    named = {part for part in policy.read_text().split("`") if part.startswith("tests/")}
    assert len(named) > 5
    for name in named:
        assert (checkout / name).is_file(), name


def test_git_is_asked_without_a_shell(monkeypatch):
    from experiments import environment

    calls = []

    def run(command, **options):
        calls.append((command, options))
        return subprocess.CompletedProcess(command, 0, stdout="abc\n")

    monkeypatch.setattr(environment.subprocess, "run", run)
    assert environment.git_commit() == "abc-dirty"
    assert len(calls) == 2
    for command, options in calls:
        assert isinstance(command, list)
        assert not options.get("shell")
