"""Text that comes with Python: the reference that `help("topics")` shows, by characters."""

from pydoc_data import topics
from typing import NamedTuple

import numpy as np


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
    text = "\n\n".join(topics.topics[name] for name in sorted(topics.topics))
    if train_size + validation_size > len(text):
        raise ValueError(
            f"the text has {len(text)} characters, less than train_size + validation_size = "
            f"{train_size + validation_size}"
        )
    vocabulary = "".join(sorted(set(text)))
    tokens = np.array([vocabulary.index(character) for character in text], np.int32)
    return Text(tokens[:train_size], tokens[-validation_size:], vocabulary)
