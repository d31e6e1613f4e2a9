"""JSON files that anyone may have written or damaged: nothing in them is believed unchecked."""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from typeguard import CollectionCheckStrategy, TypeCheckError, check_type

from experiments.errors import DamagedFileError

Scalar: TypeAlias = str | int | float | bool | None

# Sums of squares of it are still finite. What is larger is read as infinite, as 1e999 is.
LARGEST_NUMBER = 1e100

# Control characters except tab and new line, which messages have, and surrogates.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")

T = TypeVar("T")


def read_json(path: Path, check: Callable[[Any], T], fix: str) -> T | None:
    """Read a file, and check what it holds.

    Args:
        path: The file, which need not exist.
        check: Takes what the file holds, and returns it if it is what it should be; raises
            `ValueError` if not.
        fix: What to do about a damaged file, a sentence.

    Returns:
        What ``check`` returned; `None` if there is no such file.

    Raises:
        DamagedFileError: If the file can not be read as JSON, or ``check`` refuses it.
    """
    if not path.exists():
        return None
    if not path.is_file():  # a pipe would be waited for
        raise DamagedFileError(f"{path} is in the way, and no file. {fix}")
    content = path.read_bytes()
    try:
        return check(parse_json(content))
    except ValueError as error:
        message = f"{path} is damaged, or of another program: {error}. {fix}"
        raise DamagedFileError(message) from error


def parse_json(text: bytes) -> Any:
    """Decode JSON in UTF-8; ``NaN`` and ``Infinity``, which Python writes too, are read.

    Args:
        text: The bytes of a file, or of a line.

    Returns:
        The value.

    Raises:
        ValueError: If it is no JSON, nested too deeply, or has an integer of more than 64 bits or a
            string with a character that would command a terminal, or that is half of a pair.
    """
    try:
        value = json.loads(text.decode(), parse_int=_parse_int, parse_float=_parse_float)
        for string in _strings(value):
            if (found := _UNPRINTABLE.search(string)) is not None:
                raise ValueError(f"it has a string with the character {found[0]!r}")
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return value


def check_kind(value: Any, kind: Any, what: str) -> Any:
    """Check the type of a value.

    Args:
        value: A JSON value.
        kind: A type, such as ``dict[str, int]``.
        what: What the value is, for the message.

    Returns:
        The value.

    Raises:
        ValueError: If it is of another type.
    """
    try:
        check_type(value, kind, collection_check_strategy=CollectionCheckStrategy.ALL_ITEMS)
    except TypeCheckError as error:
        raise ValueError(f"{what}: {error}") from error
    return value


def check_fields(value: Any, fields: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Check that a JSON object has some fields; it may have others.

    Args:
        value: A JSON value.
        fields: The type of each field.
        what: What the value is, for the message.

    Returns:
        The value.

    Raises:
        ValueError: If it is no object, or lacks a field, or has one of another type.
    """
    check_kind(value, dict, what)
    for name, kind in fields.items():
        if name not in value:
            raise ValueError(f"{what} has no {name!r}")
        check_kind(value[name], kind, f"{name!r} of {what}")
    return value


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from value
        for each in value.values():
            yield from _strings(each)
    elif isinstance(value, list):
        for each in value:
            yield from _strings(each)


def _parse_int(text: str) -> int:
    """Read an integer.

    Raises:
        ValueError: If it is too large for a 64-bit one.
    """
    if len(text) > 20 or not -(2**63) <= (value := int(text)) < 2**63:
        raise ValueError(f"the number {text[:20]}... is too large")
    return value


def _parse_float(text: str) -> float:
    value = float(text)
    return value if abs(value) <= LARGEST_NUMBER else math.copysign(math.inf, value)
