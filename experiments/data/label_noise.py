"""Training labels that are wrong."""

import jax.numpy as jnp
import numpy as np

from experiments.data.dataset import Dataset

_SEED = 0


def with_label_noise(data: Dataset, share: float) -> Dataset:
    """Replace a share of the training labels by another class, drawn uniformly (symmetric noise).

    Which labels, and by what, depends on the data and the share alone, so that runs with different
    seeds, and all methods, learn from the same labels. The labels that a smaller share replaces are
    among those of a larger one.

    Args:
        data: The data set.
        share: From 0 to 1; of n labels the nearest whole number to ``share * n`` is replaced.

    Returns:
        The data set; validation and test labels stay.
    """
    labels = np.asarray(data.train.labels)
    random = np.random.default_rng(_SEED)
    order = random.permutation(len(labels))
    shifts = random.integers(1, data.num_classes, len(labels))
    chosen = order[: round(share * len(labels))]
    noisy = labels.copy()
    noisy[chosen] = (labels[chosen] + shifts[chosen]) % data.num_classes
    return data._replace(train=data.train._replace(labels=jnp.asarray(noisy, jnp.int32)))
