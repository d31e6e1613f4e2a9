"""Handwritten digits: 1,797 real images of 8x8 pixels that come with scikit-learn."""

from typing import Any

import numpy as np

from experiments.data.dataset import Dataset, make_dataset, stratified_holdout

TEST_SIZE = 597
VALIDATION_SIZE = 200
_SPLIT_SEED = 0


def load_digits() -> Dataset:
    """Load the digits in a fixed stratified split: 1,000 training, 200 validation, 597 test.

    Returns:
        The data set; pixels are integers from 0 to 16, images ``(8, 8, 1)``.
    """
    # Where it is used: at the top it would add seconds to the start of every command.
    from sklearn import datasets  # noqa: PLC0415

    bunch: Any = datasets.load_digits()
    images = bunch.images.astype(np.uint8)[..., np.newaxis]
    labels = bunch.target
    rest, test = stratified_holdout(labels, TEST_SIZE, _SPLIT_SEED)
    train, validation = stratified_holdout(labels[rest], VALIDATION_SIZE, _SPLIT_SEED)
    return make_dataset(
        train=(images[rest[train]], labels[rest[train]]),
        validation=(images[rest[validation]], labels[rest[validation]]),
        test=(images[test], labels[test]),
        num_classes=10,
    )
