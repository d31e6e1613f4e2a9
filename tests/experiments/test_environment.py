"""Where runs are made."""

import json
import re

import jax

from experiments import environment
from experiments.environment import describe_environment, git_commit


def test_an_environment_names_versions_and_device():
    described = describe_environment()
    assert described["jax"] == jax.__version__
    assert described["device"] == "cpu"
    assert json.loads(json.dumps(described)) == described


def test_the_commit_is_that_of_the_checkout(checkout):
    commit = git_commit()
    if (checkout / ".git").exists():
        assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", commit)
    else:
        assert commit is None


def test_without_git_there_is_no_commit(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_commit() is None


def test_outside_of_a_checkout_there_is_no_commit(monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "environment.py"))
    assert git_commit() is None
