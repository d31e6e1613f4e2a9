"""The dtype in which sums are taken."""

import jax.numpy as jnp
import numpy as np


def accumulation_dtype(dtype: np.dtype) -> np.dtype:
    """Return the dtype for sums over the parameters: the loss's, and at least float32.

    Args:
        dtype: The dtype of the loss.

    Returns:
        The dtype of the sums.
    """
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)
