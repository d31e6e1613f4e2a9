"""Misspelt words of a command line, found before it is parsed: said in two lines, with the nearest.

The parser knows them too. It then shows the options of all commands that look alike, with their
help.
"""

import dataclasses
import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_type_hints

from experiments.errors import UsageError, option

_OF_THE_PARSER = ("--help", "--tyro-")


def check_spelling(
    program: str, arguments: Sequence[str], words: Mapping[str, Any], kinds: Mapping[str, str]
) -> None:
    """Check the words that choose a command, and the names of options, not their values.

    Args:
        program: How the program is called.
        arguments: What was typed after that.
        words: What may come first, and behind each of them again a mapping of what may come next,
            or the configuration whose fields are options: a dataclass, or an instance of one.
        kinds: What the words behind a word are, and, at "", the first ones.

    Raises:
        UsageError: If a word or an option is none of them.
    """
    place = program
    kind = kinds[""]
    config: Any = words
    remaining = list(arguments)
    while isinstance(config, Mapping):
        if not remaining or remaining[0].startswith("-"):
            return  # the parser says what is missing, or helps
        typed = remaining.pop(0)
        word = typed.replace("_", "-")  # which are the same for the parser
        if word not in config:
            raise UsageError(
                f"unknown {kind} {typed!r}{_nearest(word, config)}\n"
                f"There are {', '.join(config)}: {place} --help"
            )
        place, kind, config = f"{place} {word}", kinds.get(word, kind), config[word]
    options = [*_options(config), "--help"]
    for argument in remaining:
        name = argument.partition("=")[0].replace("_", "-")
        if not name.startswith("--") or name == "--" or name.startswith(_OF_THE_PARSER):
            continue
        if name not in options:
            raise UsageError(
                f"unknown option {argument.partition('=')[0]}{_nearest(name, options)}\n"
                f"All options: {place} --help"
            )


def _options(config: Any) -> Iterable[str]:
    """List the options of a configuration, those of its parts included."""
    kinds = get_type_hints(config if isinstance(config, type) else type(config))
    for field in dataclasses.fields(config):
        kind = kinds[field.name]
        part = kind if isinstance(config, type) else getattr(config, field.name)
        if dataclasses.is_dataclass(part):
            yield from _options(part)
            continue
        yield option(field.name)
        if kind is bool:
            yield option(f"no_{field.name}")


def _nearest(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]}?" if near else "."
