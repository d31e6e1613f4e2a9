"""A sweep of language models, of whose figures less is better."""

import dataclasses

import pytest
from known_sweep import FINISHED

from experiments.presets.table3 import SMALL_CONFIG
from experiments.regularizers import LabelSmoothing
from experiments.report.read import read_sweep
from experiments.report.summary import summarise
from experiments.report.tables import grid_table, result_table
from experiments.sweep.definition import Column, Row, Sweep
from experiments.sweep.plan import plan_runs, write_plan
from experiments.training.run_directory import write_result

SWEEP = Sweep(
    "text",
    "Text",
    (
        Row(
            "Label smoothing",
            dataclasses.replace(SMALL_CONFIG, method=(LabelSmoothing(),)),
            {"label-smoothing.weight": (0.1, 0.2)},
        ),
    ),
    (Column("test_perplexity", "test ppl", factor=1.0),),
    selected_by="validation_perplexity",
)
# By weight: validation and test perplexity by seed.
PERPLEXITIES = {0.1: [(200.0, 190.0), (202.0, 194.0)], 0.2: [(210.0, 100.0), (210.0, 100.0)]}
SIZES = {"train_tokens": 100_000, "validation_tokens": 50_000, "test_tokens": 50_000}


@pytest.fixture
def read(tmp_path):
    write_plan(SWEEP, 2, tmp_path)
    for run in plan_runs(SWEEP, 2, tmp_path):
        directory = tmp_path / run.key
        directory.mkdir(parents=True)
        figures = PERPLEXITIES[run.values["label-smoothing.weight"]][run.config.seed]
        names = ("validation_perplexity", "test_perplexity")
        measured = dict(zip(names, figures, strict=True))
        write_result(directory, FINISHED | measured | SIZES)
    sweep = read_sweep(tmp_path)
    return sweep, summarise(sweep)


def test_the_smallest_perplexity_is_chosen(read):
    (line,) = result_table(*read).lines
    assert line[:2] == ["Label smoothing", "192.00 ± 2.00"]
    assert "label-smoothing.weight = 0.1" in line
    chosen = {cells[1]: cells[-1] for cells in grid_table(*read).lines}
    assert chosen == {"label-smoothing.weight = 0.1": "chosen", "label-smoothing.weight = 0.2": ""}


def test_the_remarks_are_those_of_text(read):
    remarks = " ".join(result_table(*read).remarks)
    assert "the smallest mean validation perplexity is chosen" in remarks
    assert "at each run's best epoch on validation data, of 8;" in remarks
    assert "100,000 training, 50,000 validation and 50,000 test tokens." in remarks
