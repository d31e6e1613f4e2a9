"""Curves from a log."""

import numpy as np

from experiments.report.curves import read_curves


def test_an_epochs_loss_is_the_mean_of_its_steps(finished):
    curves = read_curves(finished / "runs/plain/seed0", "validation_accuracy")
    np.testing.assert_array_equal(curves.epochs, [1, 2])
    np.testing.assert_allclose(curves.train_loss, [(3 * 4 + 8) / 4, (2 * 1 + 2 * 2) / 4])
    np.testing.assert_allclose(curves.validation, [0.4, 0.8])
