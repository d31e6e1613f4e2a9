"""What a text is here: three parts, as tokens that stay on the device."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from experiments.errors import SettingError, option

UNKNOWN = "<unk>"


def make_corpus(
    train: Sequence[str],
    validation: Sequence[str],
    test: Sequence[str],
    *,
    train_tokens: int | None = None,
    evaluation_tokens: int | None = None,
) -> "Corpus":
    """Number the words of a text, and put it on the device.

    Args:
        train: The words of the training text, in their order.
        validation: Those of the validation text.
        test: Those of the test text.
        train_tokens: How many of the training text's to keep, from the beginning; `None` is all.
            The vocabulary of a beginning is that of its words, and of `UNKNOWN`, which all others
            become; that of a whole text is that of all three texts.
        evaluation_tokens: How many of the validation and of the test text's to keep.

    Returns:
        The text.

    Raises:
        SettingError: If a text has fewer tokens than are to be kept.
    """
    kept = {
        "train": _beginning("train_tokens", train, train_tokens),
        "validation": _beginning("evaluation_tokens", validation, evaluation_tokens),
        "test": _beginning("evaluation_tokens", test, evaluation_tokens),
    }
    if train_tokens is None:
        words = dict.fromkeys(word for part in (train, validation, test) for word in part)
    else:
        words = dict.fromkeys([*kept["train"], UNKNOWN])
        kept = {
            name: [word if word in words else UNKNOWN for word in part]
            for name, part in kept.items()
        }
    number = {word: i for i, word in enumerate(words)}
    tokens = {
        name: jnp.asarray(np.fromiter((number[word] for word in part), np.int32))
        for name, part in kept.items()
    }
    return Corpus(**{name: Tokens(part) for name, part in tokens.items()}, vocabulary=tuple(words))


def _beginning(name: str, words: Sequence[str], size: int | None) -> Sequence[str]:
    if size is not None and size > len(words):
        raise SettingError(
            f"{option(name)} must be at most {len(words)}, the length of the text, not {size}"
        )
    return words[:size]


class Tokens(NamedTuple):
    """A text.

    Attributes:
        tokens: The numbers of its words, ``(length,)``.
    """

    tokens: Int[Array, " length"]


class Corpus(NamedTuple):
    """Three texts.

    Attributes:
        train: What the weights are fitted to.
        validation: For choosing settings, the learning rate and the epoch.
        test: For the figure that is reported.
        vocabulary: The words, in the order of their numbers.
    """

    train: Tokens
    validation: Tokens
    test: Tokens
    vocabulary: tuple[str, ...]
