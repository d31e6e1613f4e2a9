"""Mixup."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.regularizers import Batch, Mixup

KEYS = jax.random.split(jax.random.key(0), 2000)


def batch_of(size):
    """Return a batch whose i-th image and label are the i-th basis vector."""
    return Batch(jnp.eye(size).reshape(size, size, 1, 1), jnp.eye(size))


def mix(alpha, size, key=KEYS[0]):
    return jax.jit(Mixup(alpha=alpha).augment)(key, batch_of(size))


def test_labels_are_mixed_as_images_are_with_a_partner_each():
    mixed = mix(1.0, 6)
    np.testing.assert_array_equal(mixed.inputs[:, :, 0, 0], mixed.labels)
    np.testing.assert_allclose(mixed.labels.sum(0), 1, rtol=1e-6)
    np.testing.assert_allclose(mixed.labels.sum(1), 1, rtol=1e-6)
    shares = np.unique(np.asarray(mixed.labels[mixed.labels != 0]).round(5))
    assert 0 < shares[0] < 1
    assert len(shares) <= 3  # the share, the rest, and 1 for an image that is its own partner


@pytest.mark.parametrize(("alpha", "variance"), [(1.0, 1 / 12), (0.2, 1 / (4 * 1.4))])
def test_the_share_is_beta_distributed(alpha, variance):
    method = Mixup(alpha=alpha)
    labels = jax.jit(jax.vmap(lambda key: method.augment(key, batch_of(2)).labels))(KEYS)
    shares = np.asarray(labels[:, 0, 0])
    shares = shares[shares < 1]  # where the two images are not their own partners
    assert len(shares) > 800
    assert abs(shares.mean() - 0.5) < 4 * (variance / len(shares)) ** 0.5
    assert shares.var() == pytest.approx(variance, rel=0.15)


def test_towards_alpha_0_the_batch_comes_back_in_orders_that_differ():
    method = Mixup(alpha=1e-4)
    mixed = jax.jit(jax.vmap(lambda key: method.augment(key, batch_of(6)).labels))(KEYS[:20])
    np.testing.assert_allclose(mixed.max(-1), 1, atol=1e-6)
    orders = {tuple(order) for order in np.asarray(mixed.argmax(-1)).tolist()}
    assert all(sorted(order) == list(range(6)) for order in orders)
    assert len(orders) > 3


def test_at_alpha_0_the_batch_comes_back():
    batch = batch_of(4)
    assert Mixup(alpha=0.0).augment(KEYS[0], batch) is batch


def test_an_alpha_out_of_range_is_named():
    with pytest.raises(ValueError, match="alpha must be at least 0 and finite, not -1"):
        Mixup(alpha=-1)
