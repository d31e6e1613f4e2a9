"""The presets against the paper's Tables 3 and 4 and the settings of its section 4.2.1."""

import dataclasses

import pytest

from experiments.presets import SWEEPS
from experiments.presets.table3 import TABLE
from experiments.regularizers import Dropout

# As printed: validation and test perplexity.
FIGURES = {
    "table3": {
        "Baseline": ((101.82, 0.16), (95.65, 0.10)),
        "Confidence penalty": ((101.39, 0.16), (95.57, 0.06)),
        "Label smoothing": ((99.58, 0.06), (95.03, 0.30)),
        "SEHT-D": ((100.69, 0.27), (94.86, 0.26)),
    },
    "table4": {
        "Baseline": ((119.04, 2.38), (111.64, 1.87)),
        "Confidence penalty": ((116.40, 0.08), (109.27, 0.03)),
        "Label smoothing": ((117.47, 0.24), (110.46, 0.45)),
        "SEHT-D": ((116.21, 0.31), (109.03, 0.15)),
    },
}
# The settings that the text gives, by row and by the regularizer's own names.
SETTINGS = {
    "table3": {
        "Confidence penalty": {"weight": 0.01},
        "Label smoothing": {"weight": 0.01},
        "SEHT-D": {"lam": 0.01, "p": 0.05, "num_probes": 1},
    },
    "table4": {
        "Confidence penalty": {"weight": 0.005},
        "Label smoothing": {"weight": 0.05},
        "SEHT-D": {"lam": 0.001, "p": 0.01, "num_probes": 1},
    },
}
DROPOUT = {"table3": 0.5, "table4": 0.3}
NETWORK = {"table3": "lstm", "table4": "gru"}
_WEIGHTS = (0.001, 0.005, 0.01, 0.05, 0.1)
GRIDS = {
    "Baseline": {"dropout.rate": (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)},
    "Baseline, by learning rate": {
        "optimizer.learning_rate": (0.001, 0.01, 0.1, 0.5, 1.0, 10.0, 20.0, 40.0)
    },
    "Confidence penalty": {"confidence-penalty.weight": _WEIGHTS},
    "Label smoothing": {"label-smoothing.weight": _WEIGHTS},
}
TRIED_P = {"table3": (0.01, 0.05), "table4": (0.01,)}

TABLES = pytest.mark.parametrize("name", ["table3", "table4"])


def rows(name):
    return {row.label: row for row in SWEEPS[name].rows}


@pytest.mark.parametrize("kind", ["", "-grid", "-small", "-grid-small"])
@TABLES
def test_the_papers_figures_stand_beside(name, kind):
    figures = {
        label: (tuple(row.paper["validation_perplexity"]), tuple(row.paper["test_perplexity"]))
        for label, row in rows(f"{name}{kind}").items()
        if row.paper
    }
    assert figures == FIGURES[name]
    headings = [column.heading for column in SWEEPS[name].columns]
    assert headings == ["valid ppl", "test ppl"]


@TABLES
def test_every_method_has_the_papers_settings_and_dropout(name):
    found = rows(name)
    assert all(row.config.method[0] == Dropout(DROPOUT[name]) for row in found.values())
    for label, settings in SETTINGS[name].items():
        _, method = found[label].config.method
        assert {field: getattr(method, field) for field in settings} == settings
    assert not rows(name)["SEHT-D"].config.method[1].rescale  # nor does Algorithm 2


@TABLES
def test_rows_that_the_paper_does_not_have_come_last(name):
    ours = ["SEHT-H", "Gauss-Newton SEHT-D", "Gauss-Newton SEHT-H"]
    assert list(rows(name)) == [*FIGURES[name], *ours]


@TABLES
def test_the_tables_are_trained_as_the_paper_says(name):
    config = rows(name)["Baseline"].config
    assert dataclasses.asdict(config.data) == {
        "dataset": "wikitext2",
        "data_dir": None,
        "train_tokens": None,
        "evaluation_tokens": None,
        "length": 35,
    }
    model = config.model
    assert (model.network, model.width, model.num_layers) == (NETWORK[name], 512, 2)
    assert (model.tied_embeddings, model.initialisation) == (False, None)  # which is "uniform"
    assert (config.epochs, config.batch_size, config.reported) == (40, 20, "best")
    assert dataclasses.asdict(config.optimizer) == {
        "algorithm": "sgd",
        "learning_rate": 20.0,
        "schedule": "plateau",
        "momentum": 0.0,
        "weight_decay": 0.0,
        "clip_norm": 0.25,
        "accumulate": 1,
    }
    assert SWEEPS[name].seeds == 5


@TABLES
def test_all_rows_are_trained_like_the_baseline_but_for_the_method(name):
    baseline, *others = (row.config for row in SWEEPS[name].rows)
    for config in others:
        assert config == dataclasses.replace(baseline, method=config.method)


@TABLES
def test_grids_are_the_papers(name):
    grids = {label: row.grid for label, row in rows(f"{name}-grid").items() if row.grid}
    seht_h = grids.pop("SEHT-H")["seht-h.lam"]  # which the paper does not have
    seht_d = {"seht-d.lam": _WEIGHTS, "seht-d.p": TRIED_P[name]}
    assert grids == GRIDS | {"SEHT-D": seht_d}
    assert rows(name)["SEHT-H"].config.method[1].lam in seht_h
    assert len(seht_h) == len(_WEIGHTS)


@pytest.mark.parametrize("kind", ["", "-grid"])
@TABLES
def test_the_small_twin_differs_in_numbers_alone(name, kind):
    ours, theirs = rows(f"{name}{kind}-small"), rows(f"{name}{kind}")
    assert list(ours) == list(theirs)
    for label, row in ours.items():
        small, full = row.config, theirs[label].config
        data = dataclasses.replace(
            full.data,
            train_tokens=small.data.train_tokens,
            evaluation_tokens=small.data.evaluation_tokens,
        )
        model = dataclasses.replace(full.model, width=small.model.width)
        sizes = ("epochs", "trace_probes", "log_every")
        expected = {size: getattr(small, size) for size in sizes}
        assert small == dataclasses.replace(full, data=data, model=model, **expected)
        assert small.model.width < full.model.width
        assert small.epochs < full.epochs
        assert row.grid == theirs[label].grid
        assert row.note == theirs[label].note


def test_seht_h_weighs_the_trace_as_seht_d_does_in_the_mean():
    assert rows("table3")["SEHT-H"].config.method[1].lam == pytest.approx(0.01 * 0.05 * 0.1)
    assert TABLE.mean_weight(TABLE.lam) == pytest.approx(5e-5)
