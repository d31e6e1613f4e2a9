"""Methods as words that nobody meant."""

import dataclasses
import math

import pytest
from mutation import check_cases, many, mutated_text, refusal

from experiments.regularizers import describe_method, parse_method
from experiments.regularizers.registry import REGULARIZERS

WORDS = [describe_method([regularizer()])[0] for regularizer in REGULARIZERS.values()]


@many(short=500, long=4000)
def test_a_word_is_refused_by_an_error_that_shows_it_or_is_a_method(record_property, num_cases):
    def read(random):
        word = mutated_text(random, random.choice(WORDS))
        error = refusal(ValueError, lambda: parse_method([word]))
        if error is not None:
            named = word[:20] in str(error) or repr(word)[1:20] in str(error)
            assert named or " must " in str(error)
            return True
        for part in parse_method([word]):
            assert parse_method(describe_method([part])) == (part,)
            values = [getattr(part, field.name) for field in dataclasses.fields(part)]
            assert all(math.isfinite(value) for value in values if isinstance(value, float))
        return False

    check_cases("words of a method", num_cases, record_property, read)


@pytest.mark.parametrize(
    "value",
    ["[].append(1)", "1+1", "{[]:1}", "-" * 100_000, "(" * 1000, "9" * 5000, "1\0", "'1'", "nan"],
)
def test_a_value_is_no_expression(value):
    with pytest.raises(ValueError, match="is not of type float, and finite"):
        parse_method([f"seht-h:lam={value}"])
