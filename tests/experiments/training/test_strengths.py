"""One program for all strengths, which does what the programs of each strength do."""

import dataclasses

import chex
import pytest

from experiments.config import OptimizerConfig
from experiments.regularizers import (
    NSO,
    SAM,
    ConfidencePenalty,
    Cutout,
    LabelSmoothing,
    Mixup,
    SehtD,
    SehtH,
)
from experiments.training.loop import build_experiment
from experiments.training.state import build_optimizer
from experiments.training.step import make_train_step
from experiments.training.strengths import OPTIMIZER, strengths_of, with_strengths

OF_THE_OPTIMIZER = {(OPTIMIZER, "learning_rate"): 0.25, (OPTIMIZER, "weight_decay"): 0.5}


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ((), {}),
        ((Cutout(size=4), SehtH(lam=0.5)), {(0, "size"): 4, (1, "lam"): 0.5}),
        ((SehtD(lam=0.0), Mixup(alpha=0.25)), {(0, "lam"): 0.0, (1, "alpha"): 0.25}),
        ((Mixup(alpha=0.0),), {}),
    ],
)
def test_what_may_be_an_argument_is_found(method, expected):
    found = strengths_of(OptimizerConfig(learning_rate=0.25, weight_decay=0.5), method)
    assert found == OF_THE_OPTIMIZER | expected
    dtypes = {name: "int32" if name[1] == "size" else "float32" for name in found}
    assert {name: value.dtype.name for name, value in found.items()} == dtypes


def test_settings_get_what_is_given_and_keep_the_rest():
    optimizer, method = OptimizerConfig(), (SAM(0.1), SehtH(lam=0.1, num_probes=2))
    numbers = {(OPTIMIZER, "learning_rate"): 3.0, (1, "lam"): 4.0}
    changed = with_strengths(optimizer, method, numbers)
    expected = dataclasses.replace(optimizer, learning_rate=3.0), [SAM(0.1), SehtH(4.0, 2)]
    assert changed == expected
    assert method[1].lam == 0.1


def start(plain, tiny_digits, *method, learning_rate=0.1):
    optimizer = OptimizerConfig(learning_rate=learning_rate)
    config = dataclasses.replace(plain, method=method, batch_size=20, optimizer=optimizer)
    experiment = build_experiment(config, tiny_digits)
    state = experiment.init(0)
    order = experiment.task.epoch_order(state.key, 0)
    return experiment, (state, experiment.task.train_data, order)


@pytest.mark.parametrize(
    ("built", "wanted"),
    [
        (SAM(0.3), SAM(0.1)),
        (Mixup(1.0), Mixup(0.3)),
        (SehtH(lam=1.0), SehtH(lam=1e-3)),
        pytest.param(NSO(0.1), NSO(0.03), marks=pytest.mark.long),
        pytest.param(Cutout(1), Cutout(3), marks=pytest.mark.long),
        pytest.param(LabelSmoothing(0.5), LabelSmoothing(0.1), marks=pytest.mark.long),
        pytest.param(ConfidencePenalty(0.5), ConfidencePenalty(0.1), marks=pytest.mark.long),
        pytest.param(SehtD(lam=1.0, p=0.5), SehtD(lam=1e-3, p=0.5), marks=pytest.mark.long),
    ],
    ids=lambda method: method.name,
)
def test_a_step_is_that_of_a_program_with_the_numbers_in_it(built, wanted, plain, tiny_digits):
    experiment, arguments = start(plain, tiny_digits, built, learning_rate=1.0)
    optimizer = OptimizerConfig(learning_rate=0.1, weight_decay=0.3)
    tx = build_optimizer(optimizer, experiment.num_steps, (wanted,))
    expected = make_train_step(experiment.task, tx, (wanted,))(*arguments)
    strengths = strengths_of(optimizer, (wanted,))
    found = experiment.train_step.func(*arguments, strengths=strengths)
    without_keys = [(state._replace(key=()), metrics) for state, metrics in (found, expected)]
    chex.assert_trees_all_close(*without_keys, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("methods", "same"),
    [
        ((SehtH(lam=1e-3), SehtH(lam=1e-2)), True),
        ((SAM(0.1), SAM(1)), True),
        ((SAM(0.1), SehtH(lam=1e-3)), False),
    ],
)
def test_runs_that_differ_in_strengths_alone_have_one_program(methods, same, plain, tiny_digits):
    programs = []
    for method, learning_rate in zip(methods, (0.1, 0.2), strict=True):
        experiment, arguments = start(plain, tiny_digits, method, learning_rate=learning_rate)
        step = experiment.train_step
        programs.append(step.func.lower(*arguments, **step.keywords).as_text())
    assert (programs[0] == programs[1]) is same
