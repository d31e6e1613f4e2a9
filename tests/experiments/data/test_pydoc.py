"""Python's own reference as text."""

import numpy as np
import pytest

from experiments.data.pydoc import load_pydoc


def test_tokens_are_characters():
    text = load_pydoc(1000, 500)
    assert (len(text.train), len(text.validation)) == (1000, 500)
    assert text.train.max() < len(text.vocabulary)
    words = "".join(text.vocabulary[token] for token in load_pydoc(50_000, 1).train)
    assert "statement" in words


def test_both_parts_are_the_same_whatever_their_sizes():
    short, long = load_pydoc(100, 100), load_pydoc(200, 200)
    np.testing.assert_array_equal(short.train, long.train[:100])
    np.testing.assert_array_equal(short.validation, long.validation[100:])


def test_more_text_than_there_is_is_an_error():
    with pytest.raises(ValueError, match="less than train_size"):
        load_pydoc(10**9, 1)
