"""Learning rates beside curvature, against the steps themselves."""

import dataclasses

import numpy as np
import pytest
from analysed_runs import PLAIN

from experiments.analyse.measure import Eigenvalue
from experiments.analyse.stability import multipliers, step_stability
from experiments.config import OptimizerConfig


def stability_at(measured, largest, **optimizer):
    config = dataclasses.replace(PLAIN, optimizer=OptimizerConfig(**optimizer))
    return step_stability(config, measured._replace(largest=[Eigenvalue(largest, 0.0)]))


def ends_at_0(eigenvalue, learning_rate, momentum):
    """Whether descent with heavy-ball momentum on eigenvalue x² / 2 comes to rest."""
    step = np.array([[1 + momentum - learning_rate * eigenvalue, -momentum], [1, 0]])
    return bool(np.max(np.abs(np.linalg.eigvals(step))) < 1)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_the_limits_are_those_of_the_steps(analysis, momentum):
    found = stability_at(analysis.measured, 8.0, learning_rate=0.1, momentum=momentum)
    assert found.sharpness == pytest.approx(0.8)
    assert found.max_learning_rate == pytest.approx(0.25)
    for share, stays in ((0.99, True), (1.01, False)):
        assert ends_at_0(8.0, share * found.limit / 8, 0.0) == stays
        assert ends_at_0(8.0, share * found.momentum_limit / 8, momentum) == stays


def test_adam_has_no_limit_with_momentum(analysis):
    assert stability_at(analysis.measured, 8.0, algorithm="adam").momentum_limit is None


def test_where_no_eigenvalue_is_positive_nothing_contracts(analysis):
    assert stability_at(analysis.measured, -1.0).max_learning_rate == 0.0


def test_the_multiplier_is_that_of_a_step():
    rates = np.array([0.1, 0.25, 1.0])
    np.testing.assert_allclose(multipliers(4.0, rates), [0.6, 0.0, 3.0], atol=1e-6)
