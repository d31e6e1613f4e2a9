"""Sums are taken in enough digits."""

import jax.numpy as jnp
import pytest

from seht_jax.precision import accumulation_dtype


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("float16", "float32"),
        ("bfloat16", "float32"),
        ("float32", "float32"),
        ("float64", "float64"),
    ],
)
def test_sums_are_at_least_float32(dtype, expected):
    assert accumulation_dtype(jnp.dtype(dtype)) == expected
