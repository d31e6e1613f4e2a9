"""The confidence penalty."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.regularizers import ConfidencePenalty

LOGITS = np.array([[1.0, -2.0, 0.5], [0.0, 3.0, 0.1]])
LABELS = jnp.eye(3)[:2]


def test_gradient_is_the_formula_of_the_source():
    p = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)
    entropy = -(p * np.log(p)).sum(-1, keepdims=True)
    gradient = jax.grad(ConfidencePenalty(weight=0.3).loss)(jnp.asarray(LOGITS), LABELS)
    expected = -0.3 / len(LOGITS) * p * (-np.log(p) - entropy)
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_certainty_costs_more_than_doubt():
    penalty = ConfidencePenalty(weight=0.3)
    doubt = penalty.loss(jnp.zeros((2, 3)), LABELS)
    certainty = penalty.loss(jnp.array([[1e3, 0, 0], [0, 1e3, 0]]), LABELS)
    assert float(doubt) == pytest.approx(-0.3 * np.log(3))
    assert float(certainty) == pytest.approx(0)


@pytest.mark.parametrize("weight", [-0.1, float("inf"), float("nan")])
def test_a_weight_out_of_range_is_named(weight):
    with pytest.raises(ValueError, match=f"weight must be at least 0 and finite, not {weight}"):
        ConfidencePenalty(weight=weight)
