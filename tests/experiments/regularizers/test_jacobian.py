"""Jacobian regularization."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.regularizers import Jacobian, Outputs
from experiments.regularizers.jacobian import EXACT, mean_squared_norm

BATCH, CLASSES, SAMPLES = 3, 4, 2000
IMAGES = jax.random.normal(jax.random.key(0), (BATCH, 2, 2, 1))
PARAMS = {
    "w1": jax.random.normal(jax.random.key(1), (4, 5)),
    "w2": jax.random.normal(jax.random.key(2), (5, CLASSES)),
}


def network(params, images):
    return jnp.tanh(images.reshape(len(images), -1) @ params["w1"]) @ params["w2"], {}


def centred_network(params, images):
    """Return logits that depend on the other images of the batch, as with BatchNorm."""
    return network(params, images - jnp.mean(images, axis=0))


def jacobians(params, function=network):
    """Return the derivative of each sample's logits by the whole batch."""
    dense = jax.jacobian(lambda images: function(params, images)[0])(IMAGES)
    return dense.reshape(BATCH, CLASSES, BATCH * 4)


def exact(params):
    return jnp.sum(jnp.square(jacobians(params))) / BATCH


def loss_fn(params):
    loss = jnp.sum(params["w1"])
    return loss, Outputs(network_state={}, metrics={"loss": loss})


def samples(function, n_proj):
    estimate = partial(mean_squared_norm, lambda images: function(PARAMS, images)[0], IMAGES)
    keys = jax.random.split(jax.random.key(3), SAMPLES)
    return np.asarray(jax.jit(jax.vmap(lambda key: estimate(key, n_proj)))(keys))


def test_the_exact_penalty_and_its_gradient_are_those_of_the_frobenius_norm(inputs_of):
    penalised = Jacobian(lam=0.1, n_proj=EXACT).objective(
        loss_fn, inputs_of(images=IMAGES, network=network)
    )
    (value, outputs), gradient = jax.jit(jax.value_and_grad(penalised, has_aux=True))(PARAMS)
    expected, expected_gradient = jax.jit(
        jax.value_and_grad(lambda params: loss_fn(params)[0] + 0.05 * exact(params))
    )(PARAMS)
    assert float(value) == pytest.approx(float(expected), rel=1e-5)
    for found, wanted in zip(
        jax.tree.leaves(gradient), jax.tree.leaves(expected_gradient), strict=True
    ):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    norm = outputs.metrics["jacobian_norm_squared"]
    assert float(norm) == pytest.approx(float(exact(PARAMS)), rel=1e-5)
    assert "loss" in outputs.metrics


@pytest.mark.parametrize("n_proj", [1, 3])
def test_random_projections_are_unbiased_with_the_variance_of_the_sphere(n_proj):
    variance = 0.0
    for jacobian in np.asarray(jacobians(PARAMS)):
        gram = jacobian @ jacobian.T
        spread = np.trace(gram @ gram) - np.trace(gram) ** 2 / CLASSES
        variance += 2 * CLASSES / (CLASSES + 2) * spread / (BATCH**2 * n_proj)
    found = samples(network, n_proj)
    assert abs(found.mean() - float(exact(PARAMS))) < 4 * (variance / SAMPLES) ** 0.5
    assert found.var() == pytest.approx(variance, rel=0.2)


def test_what_samples_owe_to_one_another_counts():
    found = samples(centred_network, 1)
    expected = float(jnp.sum(jnp.square(jacobians(PARAMS, centred_network)))) / BATCH
    assert abs(found.mean() - expected) < 4 * found.std() / SAMPLES**0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lam": -1.0}, "lam must be at least 0 and finite, not -1"),
        ({"n_proj": 0}, "n_proj must be at least 1, or -1 for exact, not 0"),
    ],
)
def test_a_setting_out_of_range_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Jacobian(**settings)
