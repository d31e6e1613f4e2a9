"""The presets against the paper's Tables 1 and 2 and the settings of its section 4.1."""

import dataclasses
import re
from pathlib import Path

import pytest

from experiments import presets
from experiments.presets import SWEEPS
from experiments.regularizers import AdaBreg, ConfidencePenalty, Dropout, LabelSmoothing, SehtD
from experiments.sweep.definition import TIME_RATIO

# As printed. What the table calls Dropout is DropBlock in the text.
TABLE1 = {
    "Baseline with weight decay": (94.00, 0.24),
    "Jacobian": (89.23, 0.52),
    "Dropout": (89.23, 0.22),
    "DropBlock": (89.23, 0.22),
    "Confidence penalty": (94.40, 0.02),
    "Label smoothing": (94.40, 0.07),
    "Cutout": (94.02, 0.22),
    "Mixup": (95.39, 0.13),
    "Vanilla (Bungert et al., 2021)": (93.6, None),
    "Middle network method (Sankar et al., 2021)": (88.13, 0.12),
    "MM + FRL (Zheng et al., 2020)": (95.33, 0.12),
    "Lookahead": (95.23, 0.19),
    "SEHT-D (maxIter=1, prob=0.01)": (95.37, 0.09),
    "SEHT-D (maxIter=10, prob=0.01)": (95.42, 0.11),
    "SEHT-D (maxIter=10, prob=0.05)": (95.49, 0.06),
    "SEHT-H (maxIter=5)": (95.59, 0.06),
}
TABLE2 = {
    "Baseline": ((74.61, 0.52), (92.48, 0.40)),
    "Confidence penalty": ((77.15, 1.54), (93.97, 0.66)),
    "Label smoothing": ((79.38, 0.26), (94.39, 0.33)),
    "SEHT-D (maxIter=1, prob=0.01)": ((79.53, 0.72), (95.00, 0.24)),
    "SEHT-D (maxIter=1, prob=0.05)": ((80.31, 0.33), (94.96, 0.05)),
    "Dropout": ((73.13, 1.00), (91.89, 0.52)),
    "Confidence penalty + dropout": ((77.69, 0.16), (94.32, 0.46)),
    "Label smoothing + dropout": ((78.55, 1.10), (94.23, 0.34)),
    "SEHT-D (maxIter=1, prob=0.01) + dropout": ((77.75, 0.37), (94.38, 0.09)),
    "Cutout": ((76.70, 0.79), (93.72, 0.40)),
    "Mixup": ((78.38, 0.31), (94.37, 0.31)),
}
# The settings that the text gives, by row and by the regularizer's own names.
SETTINGS1 = {
    "Jacobian": {"n_proj": 1, "lam": 0.01},
    "DropBlock": {"block_size": 7, "keep_prob": 0.9},
    "Confidence penalty": {"weight": 0.001},
    "Label smoothing": {"weight": 0.01},
    "Cutout": {"size": 16},
    "Mixup": {"alpha": 1.0},
    "SEHT-D (maxIter=1, prob=0.01)": {"lam": 0.001, "num_probes": 1, "p": 0.01},
    "SEHT-D (maxIter=5, prob=0.01)": {"lam": 0.001, "num_probes": 5, "p": 0.01},
    "SEHT-D (maxIter=10, prob=0.01)": {"lam": 0.001, "num_probes": 10, "p": 0.01},
    "SEHT-D (maxIter=1, prob=0.05)": {"lam": 0.001, "num_probes": 1, "p": 0.05},
    "SEHT-D (maxIter=5, prob=0.05)": {"lam": 0.001, "num_probes": 5, "p": 0.05},
    "SEHT-D (maxIter=10, prob=0.05)": {"lam": 0.001, "num_probes": 10, "p": 0.05},
    "SEHT-H (maxIter=5)": {"lam": 0.001, "num_probes": 5},
}
SETTINGS2 = {
    "Confidence penalty": {"weight": 0.001},
    "Label smoothing": {"weight": 0.0001},
    "SEHT-D (maxIter=1, prob=0.01)": {"lam": 0.001, "num_probes": 1, "p": 0.01},
    "SEHT-D (maxIter=1, prob=0.05)": {"lam": 0.001, "num_probes": 1, "p": 0.05},
    "Dropout": {"rate": 0.3},
    "Confidence penalty + dropout": {"weight": 0.0001},
    "Label smoothing + dropout": {"weight": 0.001},
    "SEHT-D (maxIter=1, prob=0.01) + dropout": {"lam": 0.01, "num_probes": 1, "p": 0.01},
    "Cutout": {"size": 8},
    "Mixup": {"alpha": 1.0},
}

TEXT = ("table3", "table4")  # test_language_tables.py has these


SEHT_D = [f"SEHT-D (maxIter={n}, prob={p})" for n in (1, 5, 10) for p in (0.01, 0.05)]


def rows(name):
    return {row.label: row for row in SWEEPS[name].rows}


def test_table_1_has_every_row_of_the_paper_and_the_rivals_that_it_lacks():
    assert sorted(rows("table1")) == sorted(
        [
            *TABLE1,
            *SEHT_D[1:4],  # the paper's figures are in TABLE1 for the others
            "SEHT-H (maxIter=1)",
            "Full network method (Sankar et al., 2021)",
            "LinBreg",
            "AdaBreg",
            *(f"Gauss-Newton {label}" for label in SEHT_D),
            *(f"Gauss-Newton SEHT-H (maxIter={n})" for n in (1, 5)),
            "SEHT-H (maxIter=5) of the Gauss-Newton matrix",
            "Gauss-Newton SEHT-H, share of the gradient",
            "SAM",
            "NSO",
        ]
    )


@pytest.mark.parametrize("name", [name for name in SWEEPS if not name.startswith(TEXT)])
def test_only_the_row_whose_formulas_are_not_at_hand_is_quoted(name):
    quoted = [label for label, row in rows(name).items() if row.config is None]
    assert quoted == [label for label in rows(name) if label.startswith("MM + FRL")]


@pytest.mark.parametrize("name", [name for name in SWEEPS if name.startswith("table2")])
def test_table_2_has_top_1_and_top_5(name):
    metrics = [column.metric for column in SWEEPS[name].columns]
    assert metrics == ["test_accuracy", "test_top5_accuracy"]


@pytest.mark.parametrize("name", SWEEPS)
def test_the_title_names_what_is_trained(name):
    sweep = SWEEPS[name]
    data = sweep.rows[0].config.data.dataset
    names = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "wikitext2": "WikiText-2"}
    assert re.search(rf"{names.get(data, data)}(?!\d)", sweep.title, re.IGNORECASE)


@pytest.mark.parametrize("name", SWEEPS)
def test_the_docstring_of_a_preset_gives_the_command(name):
    texts = [path.read_text() for path in Path(presets.__file__).parent.glob("*.py")]
    assert any(f"python -m experiments sweep {name} " in text for text in texts)


@pytest.mark.parametrize("name", ["table1", "table1-grid", "table1-small", "figure1"])
def test_the_papers_figures_stand_beside_table_1(name):
    figures = {
        label: tuple(row.paper["test_accuracy"])
        for label, row in rows(name).items()
        if "test_accuracy" in row.paper
    }
    assert figures == {label: TABLE1[label] for label in TABLE1 if label in rows(name)}


def test_no_figure_of_the_paper_stands_beside_accuracies_after_one_epoch():
    assert all(set(row.paper) <= {TIME_RATIO} for row in rows("cost").values())
    assert "accuracies mean nothing" in SWEEPS["cost"].note


@pytest.mark.parametrize("name", ["table2", "table2-grid", "table2-tenth", "table2-small"])
@pytest.mark.parametrize(("label", "figures"), TABLE2.items())
def test_the_papers_figures_stand_beside_table_2(name, label, figures):
    paper = rows(name)[label].paper
    assert (tuple(paper["test_accuracy"]), tuple(paper["test_top5_accuracy"])) == figures


@pytest.mark.parametrize("name", ["table1", "table2"])
def test_no_other_row_claims_a_figure_of_the_paper(name):
    table = {"table1": TABLE1, "table2": TABLE2}[name]
    assert {label for label, row in rows(name).items() if row.paper.keys() - {TIME_RATIO}} == set(
        table
    )


@pytest.mark.parametrize(
    ("name", "label", "settings"),
    [("table1", *item) for item in SETTINGS1.items()]
    + [("table2", *item) for item in SETTINGS2.items()],
)
def test_every_method_has_the_papers_settings(name, label, settings):
    first = rows(name)[label].config.method[0]
    assert {field: getattr(first, field) for field in settings} == settings
    # Algorithms 1 and 2 do not divide by the probabilities, and take the Hessian.
    assert not getattr(first, "rescale", False)
    assert getattr(first, "curvature", "hessian") == "hessian"


def test_table_1_is_trained_as_the_paper_says():
    config = rows("table1")["Baseline with weight decay"].config
    assert (config.model.network, config.model.width) == ("resnet18", 64)
    assert (config.epochs, config.batch_size, config.method) == (200, 32, ())
    assert dataclasses.asdict(config.optimizer) == {
        "algorithm": "sgd",
        "learning_rate": 0.01,
        "schedule": "cosine",
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "clip_norm": 0.0,
        "accumulate": 1,
    }


def test_table_2_is_trained_as_the_paper_says():
    config = rows("table2")["Baseline"].config
    assert (config.data.dataset, config.model.network) == ("cifar100", "wide-resnet")
    assert (config.model.depth, config.model.width) == (28, 10)
    assert (config.epochs, config.batch_size, config.method) == (200, 32, ())
    assert dataclasses.asdict(config.optimizer) == {
        "algorithm": "sgd",
        "learning_rate": 0.1,
        "schedule": "steps",
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "clip_norm": 0.0,
        "accumulate": 1,
    }


_LABEL_WEIGHTS = (0.001, 0.005, 0.01, 0.05, 0.1)
_STRENGTHS = (0.0001, 0.001, 0.01, 0.1)
GRIDS = {
    "table1-grid": {
        "Confidence penalty": {"confidence-penalty.weight": _LABEL_WEIGHTS},
        "Label smoothing": {"label-smoothing.weight": _LABEL_WEIGHTS},
        **{
            f"SEHT-D (maxIter={n}, prob={p})": {"seht-d.lam": _STRENGTHS}
            for n in (1, 5, 10)
            for p in (0.01, 0.05)
        },
        "SEHT-H (maxIter=5)": {"seht-h.lam": _STRENGTHS},
        "SEHT-H (maxIter=1)": {"seht-h.lam": _STRENGTHS},
        "SEHT-H (maxIter=5) of the Gauss-Newton matrix": {"seht-h.lam": _STRENGTHS},
    },
    "table2-grid": {
        "Confidence penalty": {"confidence-penalty.weight": _STRENGTHS},
        "Label smoothing": {"label-smoothing.weight": _STRENGTHS},
        "SEHT-D (maxIter=1, prob=0.01)": {"seht-d.lam": _STRENGTHS},
        "SEHT-D (maxIter=1, prob=0.05)": {"seht-d.lam": _STRENGTHS},
        "Confidence penalty + dropout": {"confidence-penalty.weight": _STRENGTHS},
        "Label smoothing + dropout": {"label-smoothing.weight": _STRENGTHS},
        "SEHT-D (maxIter=1, prob=0.01) + dropout": {"seht-d.lam": _STRENGTHS},
    },
}


@pytest.mark.parametrize("name", GRIDS)
def test_grids_are_the_papers(name):
    grids = {label: row.grid for label, row in rows(name).items() if row.grid}
    assert grids == GRIDS[name]


FULL = [name for name in SWEEPS if f"{name}-small" in SWEEPS and not name.startswith(TEXT)]


def test_every_table_has_a_small_twin():
    assert [
        *("table1", "table1-grid", "figure1", "cost"),
        *("table2", "table2-grid", "table2-tenth"),
    ] == FULL


@pytest.mark.parametrize("full", FULL)
def test_the_small_twin_has_the_same_rows_and_methods(full):
    ours, theirs = rows(f"{full}-small"), rows(full)
    assert list(ours) == list(theirs)
    for label, row in ours.items():
        assert row.grid == theirs[label].grid
        if row.config is not None:
            assert _like_the_twin(theirs[label].config, row.config) == row.config


def _like_the_twin(config, small):
    """Change what is smaller in a twin, and nothing else."""
    optimizer = dataclasses.replace(
        config.optimizer,
        learning_rate=small.optimizer.learning_rate,
        clip_norm=small.optimizer.clip_norm,
    )
    data = dataclasses.replace(
        config.data,
        dataset=small.data.dataset,
        train_images=small.data.train_images,
        test_images=small.data.test_images,
        validation_size=small.data.validation_size,
    )
    model = dataclasses.replace(config.model, width=small.model.width, depth=small.model.depth)
    sizes = ("epochs", "batch_size", "trace_examples", "trace_probes")
    return dataclasses.replace(
        config,
        optimizer=optimizer,
        data=data,
        model=model,
        **{name: getattr(small, name) for name in sizes},
    )


@pytest.mark.parametrize("name", ["table1", "table1-grid", "figure1", "table2", "table2-grid"])
def test_the_papers_tables_have_five_seeds(name):
    assert SWEEPS[name].seeds == 5


@pytest.mark.parametrize("name", ["table2", "table2-tenth"])
def test_rows_with_dropout_have_the_papers_rate(name):
    for label, row in rows(name).items():
        rates = [part.rate for part in row.config.method if isinstance(part, Dropout)]
        assert rates == ([0.3] if "ropout" in label else [])


def test_the_strength_that_the_text_states_is_that_of_all_three_methods():
    for label, row in rows("table2-tenth").items():
        settings = [
            getattr(part, name)
            for part in row.config.method
            if isinstance(part, ConfidencePenalty | LabelSmoothing | SehtD)
            for name in ("lam", "weight")
            if hasattr(part, name)
        ]
        methods = ("Confidence", "Label", "SEHT-D")
        assert settings == ([0.1] if label.startswith(methods) else [])


@pytest.mark.parametrize("name", ["table1", "table2"])
def test_all_rows_are_trained_like_the_baseline_but_for_the_method(name):
    baseline, *others = (row.config for row in SWEEPS[name].rows if row.config is not None)
    for config in others:
        optimizer = baseline.optimizer
        if any(isinstance(part, AdaBreg) for part in config.method):
            optimizer = dataclasses.replace(optimizer, learning_rate=0.001)
        if not config.method:  # Vanilla
            optimizer = dataclasses.replace(optimizer, weight_decay=0.0)
        expected = dataclasses.replace(baseline, method=config.method, optimizer=optimizer)
        assert config == expected


def test_figure_1_compares_the_baseline_with_the_papers_two_estimators():
    assert list(rows("figure1")) == [
        "Baseline with weight decay",
        *SEHT_D,
        "SEHT-H (maxIter=5)",
    ]


def test_cost_is_table_1_for_one_epoch():
    for label, row in rows("table1").items():
        cost = rows("cost")[label]
        if row.config is not None:
            assert cost.config == dataclasses.replace(row.config, epochs=1, trace_examples=0)


@pytest.mark.parametrize("name", ["table1", "table2"])
def test_images_are_cropped_and_flipped_and_some_are_held_out(name):
    data = SWEEPS[name].rows[0].config.data
    assert (data.augmentation, data.validation_size) == ("crop-flip", 5000)


def test_the_stated_cost_of_the_paper_is_there():
    ratios = {
        label: row.paper[TIME_RATIO].mean
        for label, row in rows("cost").items()
        if TIME_RATIO in row.paper
    }
    assert ratios == {"SEHT-D (maxIter=1, prob=0.01)": 1.2, "SEHT-D (maxIter=1, prob=0.05)": 1.3}
