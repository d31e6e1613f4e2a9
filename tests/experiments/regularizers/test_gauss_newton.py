"""The strength that does not depend on the trace's scale."""

import jax
import jax.numpy as jnp
import pytest

from experiments.regularizers import GaussNewton, InitialNetwork, Outputs, SehtH


def loss_fn(params):
    return jnp.sum(params), Outputs(network_state={}, metrics={})


def initial():
    return InitialNetwork(loss_fn, jnp.ones(2), jax.random.key(0), num_steps=50)


@pytest.mark.parametrize(("rise", "steps"), [(0.0, 0), (0.5, 25), (1.0, 50)])
def test_it_is_scale_free_and_rises_over_a_share_of_the_steps(rise, steps):
    method = GaussNewton(strength=0.2, rise=rise, num_probes=3, every=4).at_start(initial)
    assert method == SehtH(
        lam=0.2,
        warmup_steps=steps,
        warmup_power=2,
        num_probes=3,
        curvature="gauss_newton",
        scale_free=True,
        every=4,
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strength": 0.0}, "strength must be finite and above 0"),
        ({"strength": float("inf")}, "strength must be finite and above 0"),
        ({"rise": 1.5}, "rise must be in"),
        ({"every": 0}, "every must be at least 1"),
        ({"num_probes": 0}, "num_probes must be at least 1"),
        ({"num_probes": 7}, "scale_free needs all probes at once"),
    ],
)
def test_it_checks_its_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        GaussNewton(**settings)
