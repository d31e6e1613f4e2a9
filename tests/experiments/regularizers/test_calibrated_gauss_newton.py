"""The strength that fits the network."""

import jax
import jax.numpy as jnp
import pytest

import seht_jax as seht
from experiments.errors import ExperimentError
from experiments.regularizers import CalibratedGaussNewton, InitialNetwork, Outputs, SehtD, SehtH

PARAMS = {"layer": {"w": jnp.array([1.0, 2.0])}}


def loss_fn(params):
    # A Gauss-Newton matrix with 2 * (2 w)^2 on its diagonal: trace 40.
    loss = jnp.sum(seht.outputs(params["layer"]["w"] ** 2) ** 2)
    return loss, Outputs(network_state={}, metrics={"loss": loss})


def initial():
    return InitialNetwork(loss_fn, PARAMS, jax.random.key(0), num_steps=50)


@pytest.mark.parametrize("num_probes", [1, 3])
def test_the_penalty_before_the_first_step_is_the_one_asked_for(num_probes):
    method = CalibratedGaussNewton(initial_penalty=0.1, num_probes=num_probes).at_start(initial)
    assert isinstance(method, SehtH)
    assert method.lam * 40 == pytest.approx(0.1)
    assert (method.curvature, method.num_probes) == ("gauss_newton", num_probes)


def test_with_drawn_layers_it_is_so_in_the_mean():
    method = CalibratedGaussNewton(initial_penalty=0.1, p=0.05).at_start(initial)
    assert isinstance(method, SehtD)
    assert method.lam * 40 == pytest.approx(0.1)
    assert (method.curvature, method.p, method.rescale) == ("gauss_newton", 0.05, True)


def test_a_network_without_curvature_is_an_error():
    flat = initial()._replace(params={"layer": {"w": jnp.zeros(2)}})
    with pytest.raises(ExperimentError, match=r"before the first step is 0\.0"):
        CalibratedGaussNewton().at_start(lambda: flat)


@pytest.mark.parametrize(("rise", "steps"), [(0.0, 0), (0.5, 25), (1.0, 50)])
def test_lambda_rises_over_a_share_of_the_steps(rise, steps):
    assert CalibratedGaussNewton(rise=rise).at_start(initial).warmup_steps == steps


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"initial_penalty": 0.0}, "initial_penalty must be finite and above 0"),
        ({"initial_penalty": float("inf")}, "initial_penalty must be finite and above 0"),
        ({"rise": 1.5}, "rise must be in"),
        ({"num_probes": 0}, "num_probes must be at least 1"),
        ({"p": 0.7}, "p_"),
    ],
)
def test_it_checks_its_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        CalibratedGaussNewton(**settings)
