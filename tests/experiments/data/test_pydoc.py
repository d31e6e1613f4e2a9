"""Python's own reference as text."""

import numpy as np
import pytest

from experiments.data.pydoc import load_pydoc, load_pydoc_corpus
from experiments.errors import SettingError


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


def test_the_whole_text_has_three_parts():
    corpus = load_pydoc_corpus(None, None)
    sizes = [len(split.tokens) for split in (corpus.train, corpus.validation, corpus.test)]
    assert sizes[1] == sizes[2] == round(sum(sizes) / 10)
    ends = np.asarray(corpus.test.tokens[-500:])
    text = load_pydoc(1, 500)
    assert "".join(corpus.vocabulary[token] for token in ends) == "".join(
        text.vocabulary[token] for token in text.validation
    )


def test_a_part_has_no_more_than_it_has():
    with pytest.raises(SettingError, match="--evaluation-tokens must be at most"):
        load_pydoc_corpus(100, 10**9)
