"""Every mistake gets an error that says what is wrong, where it is made."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import config

from seht_jax import analysis
from seht_jax.analysis import SpectralQuadrature, smoothed_density

KEY = jax.random.key(0)
ESTIMATES = [
    analysis.extreme_eigenpairs,
    analysis.spectral_quadrature,
    analysis.xtrace,
    analysis.hutch_plus_plus,
]


@pytest.fixture(autouse=True)
def no_runtime_type_checks():
    """Leave the library alone with its own checks, as it is for its users."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


def loss_fn(params):
    return jnp.sum(params**2)


@pytest.mark.parametrize("estimate", ESTIMATES)
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"loss_fn": 3}, TypeError, "loss_fn must be"),
        ({"key": 3}, TypeError, "key must be"),
        ({"curvature": "fisher"}, ValueError, "curvature must be.*fisher"),
        ({"progress": 3}, TypeError, "progress must be a function without arguments.*got 3"),
        ({"has_aux": 1}, TypeError, "has_aux must be True or False, got 1"),
    ],
)
def test_a_wrong_argument_is_named_where_it_is_given(estimate, options, error, message):
    with pytest.raises(error, match=message):
        estimate(**{"loss_fn": loss_fn, "key": KEY, **options})


@pytest.mark.parametrize(
    ("estimate", "name"),
    [
        (analysis.extreme_eigenpairs, "num_pairs"),
        (analysis.extreme_eigenpairs, "num_products"),
        (analysis.spectral_quadrature, "num_probes"),
        (analysis.spectral_quadrature, "num_products"),
        (analysis.xtrace, "num_probes"),
        (analysis.hutch_plus_plus, "num_probes"),
    ],
)
def test_numbers_are_whole_and_positive(estimate, name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        estimate(loss_fn, KEY, **{name: 0})
    with pytest.raises(TypeError, match=f"{name} must be a whole Python number, got 2.5"):
        estimate(loss_fn, KEY, **{name: 2.5})


@pytest.mark.parametrize("estimate", ESTIMATES)
def test_the_gauss_newton_matrix_needs_marked_outputs(estimate):
    with pytest.raises(ValueError, match=r"seht\.outputs"):
        estimate(loss_fn, KEY, curvature="gauss_newton")(jnp.ones(200))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_pairs": 5, "num_products": 4}, "at most the number of products, 4 .*got 5"),
        ({"num_pairs": 7}, r"products, 6 \(num_products = 64, 6 parameters\), got 7"),
    ],
)
def test_there_are_no_more_pairs_than_products(options, message):
    with pytest.raises(ValueError, match=message):
        analysis.extreme_eigenpairs(loss_fn, KEY, **options)(jnp.zeros(6))


@pytest.mark.parametrize(
    ("estimate", "size", "products"), [(analysis.xtrace, 8, 2), (analysis.hutch_plus_plus, 12, 3)]
)
def test_a_precise_trace_does_not_cost_what_the_exact_one_does(estimate, size, products):
    message = f"num_probes = 4 takes {products} products each.*{size} rows.*exact_trace"
    with pytest.raises(ValueError, match=message):
        estimate(loss_fn, KEY, num_probes=4)(jnp.zeros(size))


@pytest.mark.parametrize("width", [0, -1.0, np.nan])
def test_a_density_needs_a_positive_width(width):
    quadrature = SpectralQuadrature(jnp.zeros((1, 1)), jnp.ones((1, 1)))
    with pytest.raises(ValueError, match=re.escape(f"width must be positive, got {width}")):
        smoothed_density(quadrature, jnp.zeros(1), width)
