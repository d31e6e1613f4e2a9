"""Words as numbers."""

import numpy as np
import pytest

from experiments.data.corpus import make_corpus
from experiments.errors import SettingError

TRAIN, VALIDATION, TEST = ["a", "b", "a", "c"], ["b", "d"], ["d", "e", "e"]


def words(corpus, split):
    return [corpus.vocabulary[token] for token in np.asarray(getattr(corpus, split).tokens)]


def test_the_vocabulary_of_a_whole_text_is_that_of_all_three():
    corpus = make_corpus(TRAIN, VALIDATION, TEST)
    assert corpus.vocabulary == ("a", "b", "c", "d", "e")
    for split, expected in (("train", TRAIN), ("validation", VALIDATION), ("test", TEST)):
        assert words(corpus, split) == expected
        assert getattr(corpus, split).tokens.dtype == np.int32


def test_the_vocabulary_of_a_beginning_is_its_own():
    corpus = make_corpus(TRAIN, VALIDATION, TEST, train_tokens=3, evaluation_tokens=2)
    assert corpus.vocabulary == ("a", "b", "<unk>")
    assert words(corpus, "train") == ["a", "b", "a"]
    assert words(corpus, "validation") == ["b", "<unk>"]
    assert words(corpus, "test") == ["<unk>", "<unk>"]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"train_tokens": 5}, "--train-tokens must be at most 4, the length of the text, not 5"),
        ({"evaluation_tokens": 3}, "--evaluation-tokens must be at most 2, .*, not 3"),
    ],
)
def test_more_than_there_is_is_an_error(sizes, message):
    with pytest.raises(SettingError, match=message):
        make_corpus(TRAIN, VALIDATION, TEST, **sizes)
