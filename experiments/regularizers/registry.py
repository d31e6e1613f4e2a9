"""Methods as text, for the command line and the configuration file of a run.

A method is a sequence of words, one for each regularizer: ``seht-d:lam=1e-4,p=0.05``. The word
``plain`` stands for none.
"""

import ast
import dataclasses
from collections.abc import Sequence
from typing import Any, get_type_hints

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
        known = ", ".join([PLAIN, *REGULARIZERS])
        reason = f"{PLAIN} stands alone" if name == PLAIN else f"known are {known}"
        raise ValueError(f"no regularizer {word!r}; {reason}")
    cls = REGULARIZERS[name]
    types = get_type_hints(cls)
    known = [field.name for field in dataclasses.fields(cls)]
    values = {}
    for setting in filter(None, settings.split(",")):
        field, equals, text = setting.partition("=")
        if not equals or field not in known:
            raise ValueError(
                f"cannot read {setting!r} in {word!r}; write FIELD=VALUE with one of the fields "
                + ", ".join(known)
            )
        values[field] = _parse_value(word, field, text, types[field])
    return cls(**values)


def _parse_value(word: str, field: str, text: str, wanted: Any) -> Any:
    """Read the value of a field.

    Raises:
        ValueError: If it is not of the field's type.
    """
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        value = text
    if isinstance(value, int) and not isinstance(value, bool) and wanted in {float, float | None}:
        value = float(value)
    # bool is a subclass of int, and `lam=True` is a mistake.
    if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
        type_name = getattr(wanted, "__name__", str(wanted))
        raise ValueError(f"{field}={text} in {word!r} is not of type {type_name}")
    return value
