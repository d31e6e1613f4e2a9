"""Text that comes with Python: the reference that `help("topics")` shows, by characters."""

from pydoc_data import topics
from typing import NamedTuple

import numpy as np

from experiments.data.corpus import Corpus, make_corpus

EVALUATION_SHARE = 0.1


class Text(NamedTuple):
    """A text as tokens.

    Attributes:
        train: Tokens ``(length,)``, int32.
        validation: Tokens of the end of the text, which is not trained on.
        vocabulary: The characters, in the order of their tokens.
    """

    train: np.ndarray
    validation: np.ndarray
    vocabulary: str


def load_pydoc(train_size: int, validation_size: int) -> Text:
    """Load the beginning and the end of the text.

    The text is that of the Python that runs this, and differs a little from version to version.

    Args:
        train_size: Characters to train on.
        validation_size: Characters to validate on.

    Returns:
        Both parts.

    Raises:
        ValueError: If the text is shorter than both together.
    """
    text = _whole_text()
    if train_size + validation_size > len(text):
        raise ValueError(
            f"the text has {len(text)} characters, less than train_size + validation_size = "
            f"{train_size + validation_size}"
        )
    vocabulary = "".join(sorted(set(text)))
    tokens = np.array([vocabulary.index(character) for character in text], np.int32)
    return Text(tokens[:train_size], tokens[-validation_size:], vocabulary)


def load_pydoc_corpus(train_tokens: int | None, evaluation_tokens: int | None) -> Corpus:
    """Load the whole text in three parts: the last two tenths are for validation and test.

    Args:
        train_tokens: See `make_corpus`; tokens are characters.
        evaluation_tokens: See `make_corpus`.

    Returns:
        The text.

    Raises:
        SettingError: If a part is shorter than what is to be kept of it.
    """
    text = _whole_text()
    size = round(EVALUATION_SHARE * len(text))
    parts = text[: -2 * size], text[-2 * size : -size], text[-size:]
    return make_corpus(*parts, train_tokens=train_tokens, evaluation_tokens=evaluation_tokens)


def _whole_text() -> str:
    return "\n\n".join(topics.topics[name] for name in sorted(topics.topics))
