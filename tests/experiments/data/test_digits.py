"""The digits."""

import numpy as np
from sklearn.datasets import load_digits as load_original


def rows(split):
    return {np.asarray(image).tobytes() for image in split.images}


def test_sizes(digits):
    assert [len(split.labels) for split in digits[:3]] == [1000, 200, 597]


def test_splits_are_disjoint_and_together_the_whole(digits):
    everything = {image.astype(np.uint8).tobytes() for image in load_original().images}
    train, validation, test = (rows(split) for split in digits[:3])
    assert train | validation | test == everything
    assert not (train & validation)
    assert not (train & test)
    assert not (validation & test)


def test_every_split_has_every_digit_in_its_share(digits):
    for split in digits[:3]:
        shares = np.bincount(split.labels, minlength=10) / len(split.labels)
        assert np.all(np.abs(shares - 0.1) < 0.01)


def test_pixels_are_small_integers(digits):
    assert digits.train.images.dtype == np.uint8
    assert digits.train.images.shape[1:] == (8, 8, 1)
    assert int(digits.train.images.max()) == 16
