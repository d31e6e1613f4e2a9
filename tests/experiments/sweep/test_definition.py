"""Rows, grids, and what they may not be."""

import pytest

from experiments.config import OptimizerConfig, TrainConfig
from experiments.presets import SWEEPS
from experiments.regularizers import Dropout, SehtD, SehtH
from experiments.sweep.definition import Reported, Row, Sweep, with_epochs

PLAIN = Row("Plain", TrainConfig(method=()))
BOTH = TrainConfig(method=(SehtD(lam=7.0), SehtH(lam=8.0)))


def test_a_grid_is_all_combinations_of_its_values():
    row = Row("A", BOTH, grid={"optimizer.momentum": (0.0, 0.5), "seht-h.lam": (1.0, 2.0, 3.0)})
    points = row.points()
    assert [tuple(point.values.values()) for point in points] == [
        (0.0, 1.0),
        (0.0, 2.0),
        (0.0, 3.0),
        (0.5, 1.0),
        (0.5, 2.0),
        (0.5, 3.0),
    ]
    assert points[4].config.optimizer == OptimizerConfig(momentum=0.5)
    assert points[4].config.method == (SehtD(lam=7.0), SehtH(lam=2.0))
    assert points[4].directory == "runs/a/optimizer.momentum=0.5,seht-h.lam=2.0"


def test_a_row_without_a_grid_is_one_point():
    (point,) = PLAIN.points()
    assert point.values == {}
    assert point.config == PLAIN.config
    assert point.directory == "runs/plain"


def test_a_setting_of_the_run_itself_may_vary():
    assert [p.config.epochs for p in Row("A", BOTH, grid={"epochs": (1, 2)}).points()] == [1, 2]


@pytest.mark.parametrize(
    ("config", "grid", "message"),
    [
        (None, {"epochs": (1,)}, "has a grid, but no config"),
        (BOTH, {"seht-h.lam": ()}, "at least one"),
        (BOTH, {"seht-h.lam": (1.0, 1.0)}, "different ones"),
        (BOTH, {"seht-h.curvature": "hessian"}, "must be a sequence"),
        (BOTH, {"seht-h.lamb": (1.0,)}, "no setting 'seht-h.lamb'; 'lamb' is none of lam, "),
        (BOTH, {"optimizer.lam": (1.0,)}, "no setting 'optimizer.lam'; 'lam' is none of algor"),
        (BOTH, {"lam": (1.0,)}, "no setting 'lam'; 'lam' is none of name, data"),
        (BOTH, {"sam.rho": (1.0,)}, r"none of the row's regularizers \(seht-d, seht-h\)"),
        (BOTH, {"epochs.lam": (1.0,)}, "'epochs' is no part of the configuration"),
        (BOTH, {"seed": (1, 2)}, "seed can not be in a grid"),
        (BOTH, {"seht-d.p": (0.1, 1.5)}, "p"),
    ],
)
def test_a_grid_that_can_not_be_run_is_refused(config, grid, message):
    with pytest.raises(ValueError, match=message):
        Row("A", config, grid=grid)


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ((PLAIN, PLAIN), {}, "two rows have the same label"),
        ((PLAIN, Row("plain!", PLAIN.config)), {}, "would share the directory runs/plain"),
        ((Row("MM", None, paper={"test_accuracy": Reported(95.33)}),), {}, "no row that is run"),
        ((PLAIN,), {"baseline": "SGD"}, "'SGD' is no row that is run; those are Plain"),
        ((PLAIN, Row("MM", None)), {"convergence": ("MM",)}, "'MM' is no row that is run"),
        ((PLAIN,), {"selected_by": "test_accuracy"}, "must be a validation figure"),
        ((PLAIN,), {"selected_by": "train_loss"}, "whether more is better"),
    ],
)
def test_a_sweep_that_can_not_be_reported_is_refused(rows, settings, message):
    with pytest.raises(ValueError, match=message):
        Sweep("a", "A", rows, **settings)


@pytest.mark.parametrize("name", SWEEPS)
def test_every_sweep_has_its_name_and_a_plain_row_first(name):
    sweep = SWEEPS[name]
    assert sweep.name == name
    # All rows of a language model have dropout.
    assert {type(part) for part in sweep.points()[0].config.method} <= {Dropout}
    assert {point.config.name for point in sweep.points()} == {name}


def test_a_grid_that_varies_the_epochs_keeps_them():
    sweep = Sweep("s", "S", (Row("A", BOTH, grid={"epochs": (1, 2)}),))
    with pytest.raises(ValueError, match="the grid of row 'A' varies the epochs itself"):
        with_epochs(sweep, 3)


def test_a_first_look_says_that_it_is_one():
    sweep = Sweep("s", "S", (Row("A", BOTH),), note="Small.")
    shorter = with_epochs(sweep, 1)
    assert shorter.rows[0].config.epochs == 1
    assert shorter.note.startswith(f"Small. A first look: 1 epoch in place of {BOTH.epochs}.")
    assert with_epochs(sweep, BOTH.epochs) == sweep
