"""Methods as text, for the command line and the configuration file of a run.

A method is a sequence of words, one for each regularizer: ``seht-d:lam=1e-4,p=0.05``. The word
``plain`` stands for none.
"""

import dataclasses
import difflib
import math
from collections.abc import Callable, Sequence
from types import NoneType
from typing import Any, get_args, get_type_hints

from experiments.regularizers.base import Regularizer
from experiments.regularizers.calibrated_gauss_newton import CalibratedGaussNewton
from experiments.regularizers.confidence_penalty import ConfidencePenalty
from experiments.regularizers.cutout import Cutout
from experiments.regularizers.dropblock import DropBlock
from experiments.regularizers.dropout import Dropout
from experiments.regularizers.gauss_newton import GaussNewton
from experiments.regularizers.jacobian import Jacobian
from experiments.regularizers.label_smoothing import LabelSmoothing
from experiments.regularizers.linbreg import AdaBreg, LinBreg
from experiments.regularizers.lookahead import Lookahead
from experiments.regularizers.mixup import Mixup
from experiments.regularizers.nso import NSO
from experiments.regularizers.sam import SAM
from experiments.regularizers.sankar import SankarFull, SankarMiddle
from experiments.regularizers.seht import SehtD, SehtH, SehtShare

PLAIN = "plain"
REGULARIZERS: dict[str, type[Regularizer]] = {
    cls.name: cls
    for cls in (
        Dropout,
        DropBlock,
        Jacobian,
        ConfidencePenalty,
        LabelSmoothing,
        Cutout,
        Mixup,
        Lookahead,
        SAM,
        NSO,
        SankarFull,
        SankarMiddle,
        LinBreg,
        AdaBreg,
        SehtD,
        SehtH,
        SehtShare,
        GaussNewton,
        CalibratedGaussNewton,
    )
}


def parse_method(words: Sequence[str]) -> tuple[Regularizer, ...]:
    """Read a method from its words.

    Args:
        words: ``["plain"]``, or one word ``NAME`` or ``NAME:FIELD=VALUE,...`` per regularizer.

    Returns:
        The regularizers, in the order given.

    Raises:
        ValueError: If a name, a field or a value is not known.
    """
    if list(words) == [PLAIN]:
        return ()
    return tuple(_parse_word(word) for word in words)


def describe_method(method: Sequence[Regularizer], *, defaults: bool = True) -> list[str]:
    """Write a method as the words that `parse_method` reads.

    Args:
        method: The regularizers.
        defaults: Whether fields that have their default value are written too.

    Returns:
        One word per regularizer, or ``["plain"]``.
    """
    return [_describe(regularizer, defaults=defaults) for regularizer in method] or [PLAIN]


def _describe(regularizer: Regularizer, *, defaults: bool) -> str:
    fields = {
        field.name: getattr(regularizer, field.name)
        for field in dataclasses.fields(regularizer)
        if defaults or getattr(regularizer, field.name) != field.default
    }
    settings = ",".join(
        f"{name}={value if isinstance(value, str) else repr(value)}"
        for name, value in fields.items()
    )
    return f"{regularizer.name}:{settings}" if settings else regularizer.name


def _parse_word(word: str) -> Regularizer:
    """Read one regularizer.

    Raises:
        ValueError: If a name, a field or a value is not known.
    """
    name, _, settings = word.partition(":")
    if name not in REGULARIZERS:
        known = [PLAIN, *REGULARIZERS]
        near = difflib.get_close_matches(name, known, n=2)
        reason = f"did you mean {' or '.join(near)}? Known" if near else "known"
        reason = f"{PLAIN} stands alone" if name == PLAIN else f"{reason} are {', '.join(known)}"
        raise ValueError(f"no regularizer {word!r}; {reason}")
    cls = REGULARIZERS[name]
    types = get_type_hints(cls)
    known = [field.name for field in dataclasses.fields(cls)]
    values = {}
    for setting in filter(None, settings.split(",")):
        field, equals, text = setting.partition("=")
        if not equals or field not in known:
            near = difflib.get_close_matches(field, known, n=1) if equals else []
            reason = f"did you mean {near[0]}? Write" if near else "write"
            raise ValueError(
                f"cannot read {setting!r} in {word!r}; {reason} FIELD=VALUE with one of the fields "
                + ", ".join(known)
            )
        values[field] = _parse_value(word, field, text, types[field])
    return cls(**values)


def _parse_value(word: str, field: str, text: str, wanted: Any) -> Any:
    """Read the value of a field.

    Raises:
        ValueError: If it is not of the field's type.
    """
    kinds = get_args(wanted) or (wanted,)
    for kind in kinds:
        try:
            return _READERS[kind](text)
        except (KeyError, ValueError):
            continue
    type_name = " or ".join(_NAMES[kind] for kind in kinds)
    raise ValueError(f"{field}={text} in {word!r} is not of type {type_name}")


def _read_float(text: str) -> float:
    """Read a finite number.

    Raises:
        ValueError: If it is none.
    """
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _read_int(text: str) -> int:
    """Read an integer with which JAX can compute.

    Raises:
        ValueError: If it is none.
    """
    value = int(text)
    if not -_LARGEST <= value <= _LARGEST:
        raise ValueError(text)
    return value


# Each type of a field is read by itself: a value is no expression of Python's.
_LARGEST = 2**31 - 1
_READERS: dict[Any, Callable[[str], Any]] = {
    bool: lambda text: {"true": True, "false": False}[text.lower()],
    int: _read_int,
    float: _read_float,
    str: str,
    NoneType: {"None": None}.__getitem__,
}
_NAMES: dict[Any, str] = {
    bool: "bool",
    int: f"int, of a size of at most {_LARGEST}",
    float: "float, and finite",
    str: "str",
    NoneType: "None",
}
