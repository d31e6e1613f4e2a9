"""Where a run went wrong, and what is advised against it."""

import dataclasses

import numpy as np
import pytest

from experiments.config import OptimizerConfig
from experiments.regularizers import Cutout, GaussNewton, SehtD
from experiments.training.divergence import find_bad_steps, remedies

FINE = {"loss": np.array(1.0), "gradient_norm": np.array(2.0)}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_bad_steps_are_found_with_what_is_wrong(value):
    found = find_bad_steps([FINE, FINE | {"loss": np.array(value)}, FINE], first_step=5)
    assert [each.step for each in found] == [6]
    assert str(found[0]) == f"step 6 (loss = {value})"


@pytest.mark.parametrize(
    ("method", "clip_norm", "expected"),
    [
        ((), 1.0, "a smaller --learning-rate or a smaller --clip-norm"),
        (
            (SehtD(),),
            1.0,
            (
                "a smaller --learning-rate or a smaller lam or more warmup_steps or a smaller "
                "--clip-norm"
            ),
        ),
        (
            (GaussNewton(), Cutout()),
            0.0,
            "a smaller --learning-rate or a smaller strength or a --clip-norm above 0",
        ),
    ],
)
def test_what_is_advised_applies_to_the_run(plain, method, clip_norm, expected):
    config = dataclasses.replace(
        plain, method=method, optimizer=OptimizerConfig(clip_norm=clip_norm)
    )
    assert remedies(config) == f"Try {expected}."
