"""What a step hands to a method."""

import jax
import jax.numpy as jnp
import pytest

from experiments.regularizers import Batch, StepInputs


@pytest.fixture(scope="session")
def inputs_of():
    """Return a function that makes the inputs of a step."""

    def inputs_of(step=0, seed=0, images=None, network=None, loss_of_part=None):
        images = jnp.zeros((1, 1, 1, 1)) if images is None else images
        batch = Batch(images, jnp.ones((len(images), 1)))
        number = jnp.asarray(step, jnp.int32)
        return StepInputs(jax.random.key(seed), number, batch, network, loss_of_part)

    return inputs_of
