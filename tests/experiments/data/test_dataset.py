"""Splits."""

import numpy as np
import pytest

from experiments.data.dataset import make_dataset, stratified_holdout

LABELS = np.repeat([0, 1, 2], [50, 30, 21])


@pytest.mark.parametrize("size", [0, 1, 10, 33, 100])
def test_holdout_parts_the_indices(size):
    rest, held_out = stratified_holdout(LABELS, size, seed=0)
    assert len(held_out) == size
    assert sorted([*rest, *held_out]) == list(range(len(LABELS)))


@pytest.mark.parametrize("size", [10, 33, 100])
def test_holdout_gives_each_class_its_share(size):
    _, held_out = stratified_holdout(LABELS, size, seed=0)
    counts = np.bincount(LABELS[held_out], minlength=3)
    assert np.all(np.abs(counts - size * np.array([50, 30, 21]) / 101) < 1)


def test_holdout_depends_on_the_seed_alone():
    first, again, other = (stratified_holdout(LABELS, 10, seed)[1] for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("size", [-1, 101, 500])
def test_holdout_that_leaves_nothing_is_refused(size):
    with pytest.raises(ValueError, match=f"cannot hold out {size} of 101 examples"):
        stratified_holdout(LABELS, size, seed=0)


def test_statistics_are_those_of_the_training_images():
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)
    labels = np.arange(5)
    dataset = make_dataset((images, labels), (images * 0, labels), (images * 0, labels), 5)
    np.testing.assert_allclose(dataset.mean, images.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(dataset.standard_deviation, images.std((0, 1, 2)), rtol=1e-6)
