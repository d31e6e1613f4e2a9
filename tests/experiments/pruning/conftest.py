"""A small residual network."""

import jax
import jax.numpy as jnp
import pytest

from experiments.models.resnet import digits_resnet


@pytest.fixture(scope="package")
def model():
    return digits_resnet(10, width=4)


@pytest.fixture(scope="package")
def variables(model):
    """Initial weights, but for normalisations, whose parameters all differ from 0."""

    def init(key):
        variables = model.init(key, jnp.zeros((1, 8, 8, 1)), train=False)
        params = jax.tree.map(
            lambda leaf: leaf + 0.1 if leaf.ndim == 1 else leaf, variables["params"]
        )
        return variables | {"params": params}

    return jax.jit(init)(jax.random.key(0))


@pytest.fixture
def params(variables):
    return variables["params"]
