"""What the documents show, runs."""

import doctest
import shlex
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from benchmarks import __main__ as benchmarks
from experiments import __main__ as experiments
from experiments.regularizers import GaussNewton

ROOT = Path(__file__).parents[1]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
TEXT = ""  # the language of a block that nobody runs, such as a list of files
BLOCKS = [
    pytest.param(path, block, id=f"{path.relative_to(ROOT)}:{block.map[0] + 1}")
    for path in DOCUMENTS
    for block in MarkdownIt().parse(path.read_text(encoding="utf-8"))
    if block.type in {"fence", "code_block"}
]


def blocks_in(language):
    return [param for param in BLOCKS if param.values[1].info == language]


def commands_in(block):
    """Split a block of shell commands, some of which take several lines, into words."""
    lines = block.content.replace("\\\n", "").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


PYTHON = blocks_in("python")
COMMANDS = [
    pytest.param(words[2], words[3:], id=" ".join(words[2:]))
    for param in blocks_in("sh")
    for words in commands_in(param.values[1])
    if words[0] == "python"
]


@pytest.mark.parametrize(("path", "block"), BLOCKS)
def test_a_block_is_python_or_shell_or_text(path, block):
    assert block.type == "fence"
    assert block.info in {"python", "sh", TEXT}


@pytest.mark.parametrize(("path", "block"), PYTHON)
def test_all_python_is_run_by_doctest(path, block, pytestconfig):
    collected = [ROOT / name for name in pytestconfig.getini("testpaths")]
    assert any(path.is_relative_to(directory) for directory in collected)
    for part in doctest.DocTestParser().parse(block.content):
        if isinstance(part, doctest.Example):
            assert doctest.SKIP not in part.options
        else:
            assert not part.strip()


@pytest.fixture
def done(monkeypatch):
    """The functions that the commands call, by name; they do nothing."""
    names = []
    for module in (benchmarks, experiments):
        works = [name for name in vars(module) if name.startswith("run_")]
        if module is experiments:
            works += ["join_processes", "summary_table", "train_network", "write_report"]
        for name in works:
            monkeypatch.setattr(module, name, lambda *_, name=name: names.append(name))
    return names


@pytest.mark.parametrize(("module", "arguments"), COMMANDS)
def test_a_command_is_understood(done, module, arguments):
    main = {"benchmarks": benchmarks.main, "experiments": experiments.main}[module]
    if arguments == ["--help"]:
        with pytest.raises(SystemExit, match="0"):
            main(arguments)
    else:
        assert main(arguments) == 0
        assert done


def test_there_is_something_to_check():
    assert len(PYTHON) > 30
    assert len(COMMANDS) > 20


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "docs/forms.md",
        "docs/training.md",
        "docs/adapters.md",
        "docs/tutorials/nnx_loop.py",
        "seht_jax/regularize.py",
        "seht_jax/transform.py",
    ],
)
def test_the_strength_to_begin_with_is_that_of_the_trainer(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert f"{GaussNewton().strength} * (step / " in text
