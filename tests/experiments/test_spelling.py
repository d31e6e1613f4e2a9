"""Misspelt words of a command line."""

import re

import pytest

from experiments import __main__ as command_line
from experiments.spelling import check_spelling


@pytest.mark.parametrize(
    ("line", "first", "second"),
    [
        ("trian digits", "unknown command 'trian'; did you mean train?", "demo, prune, "),
        ("train digit", "unknown preset 'digit'; did you mean digits?", "cifar10-small, pydoc"),
        ("train nonsense", "unknown preset 'nonsense'.", "There are digits, .* train --help$"),
        ("sweep table5", "unknown sweep 'table5'; did you mean table4?", "figure1, cost, "),
        ("data prepar", "unknown command 'prepar'; did you mean prepare?", "data --help$"),
        ("train digits --epoch=3", "unknown option --epoch; did you mean --epochs?", "ts --help$"),
        ("train pydoc --num_layer 3", "unknown .* --num_layer; .* --num-layers?", "pydoc --help$"),
        ("train pydoc --no-remate", "unknown .* --no-remate; .* --no-remat?", "pydoc --help$"),
        (
            "analyse x --trace-probe 3",
            "unknown .*; did you mean --trace-probes?",
            "analyse --help$",
        ),
        ("demo --zzzz", "unknown option --zzzz.", "demo --help$"),
    ],
)
def test_a_misspelt_word_is_answered_in_two_lines_with_the_nearest(capsys, line, first, second):
    assert command_line.main(line.split()) == 2
    captured = capsys.readouterr()
    error, more = captured.err.splitlines()
    assert not captured.out
    assert re.search(f"^error: {first}$".replace("?", r"\?"), error)
    assert re.search(second, more)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["train"],
        ["train", "--help"],
        ["train", "cifar10_small", "--batch_size", "3", "--no-remat", "--seed=-1"],
        ["sweep", "--seeds", "1", "digits-small"],
        ["demo", "-h"],
        ["--tyro-print-completion", "bash"],
        ["train", "digits", "--tyro-print-completion"],
    ],
    ids=" ".join,
)
def test_what_the_parser_may_understand_is_left_to_it(arguments):
    check_spelling("program", arguments, command_line.WORDS, command_line.KINDS)
