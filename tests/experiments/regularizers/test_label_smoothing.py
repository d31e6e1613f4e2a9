"""Label smoothing."""

import jax
import jax.numpy as jnp
import optax
import pytest

from experiments.regularizers import LabelSmoothing

LOGITS = jax.random.normal(jax.random.key(0), (4, 5))


@pytest.mark.parametrize("weight", [0.0, 0.01, 1.5])
@pytest.mark.parametrize(
    "labels", [jnp.eye(5)[:4], jnp.full((4, 5), 0.2)], ids=["one-hot", "mixed"]
)
def test_it_is_the_smoothed_cross_entropy_times_one_plus_w(weight, labels):
    method = LabelSmoothing(weight=weight)
    cross_entropy = optax.softmax_cross_entropy(LOGITS, labels).mean()
    found = cross_entropy + method.loss(LOGITS, labels)
    smoothed = optax.smooth_labels(labels, method.epsilon)
    expected = (1 + weight) * optax.softmax_cross_entropy(LOGITS, smoothed).mean()
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_epsilon_of_a_weight():
    assert LabelSmoothing(weight=0.25).epsilon == pytest.approx(0.2)


def test_a_weight_out_of_range_is_named():
    with pytest.raises(ValueError, match="weight must be at least 0 and finite, not -1"):
        LabelSmoothing(weight=-1)
