"""Wrong training labels."""

import numpy as np
import pytest

from experiments.config import DataConfig, TrainConfig, complete_settings, to_json
from experiments.data.label_noise import with_label_noise
from experiments.data.load import load_dataset
from experiments.errors import SettingError


@pytest.mark.parametrize("share", [0.2, 0.4, 1.0])
def test_a_share_of_the_training_labels_is_wrong_and_no_other(digits, share):
    noisy = load_dataset(DataConfig(label_noise=share))
    wrong = np.asarray(noisy.train.labels != digits.train.labels)
    assert wrong.sum() == share * 1000
    assert set(np.unique(noisy.train.labels)) == set(range(10))
    np.testing.assert_array_equal(noisy.train.images, digits.train.images)
    for split in ("validation", "test"):
        np.testing.assert_array_equal(getattr(noisy, split).labels, getattr(digits, split).labels)


def test_every_other_class_is_as_likely(digits):
    noisy = with_label_noise(digits, 1.0)
    shifts = np.asarray(noisy.train.labels - digits.train.labels) % 10
    counts = np.bincount(shifts, minlength=10)
    assert counts[0] == 0
    # Nine classes of 1000 / 9: a standard deviation of 10.
    assert np.all(np.abs(counts[1:] - 1000 / 9) < 40)


def test_more_noise_leaves_no_wrong_label_as_it_was(digits):
    less, more = (with_label_noise(digits, share).train.labels for share in (0.2, 0.4))
    changed = less != digits.train.labels
    np.testing.assert_array_equal(less[changed], more[changed])


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_that_is_none_is_named(share):
    with pytest.raises(SettingError, match=f"--label-noise must be in .*, not {share}"):
        DataConfig(label_noise=share)


def test_runs_of_an_earlier_version_had_no_noise():
    stored = to_json(TrainConfig())
    earlier = {name: value for name, value in stored.items() if name != "data.label_noise"}
    assert complete_settings(earlier) == stored
    assert stored["data.label_noise"] == 0
