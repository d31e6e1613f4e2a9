"""What the table and the figure say of fine-tunings whose figures are known."""

import itertools
import json
from pathlib import Path

import pytest

from experiments.pruning.report import COMPARED, CRITERIA, STYLES, draw_figure, markdown

DOCS = Path(__file__).parents[3] / "docs"
ORIGINAL = {"weights": 8000, "test_accuracy": 0.98, "test_loss": 0.07}


def fine_tuning(seed, keep, criterion):
    """Implants gain one, two and three points of accuracy on magnitude, and cost no loss."""
    gain = 0.01 * (seed + 1) if criterion == "hessian + implant" else 0.0
    figures = {"test_accuracy": 0.9 + gain, "test_loss": 0.2 / keep}
    return {
        "seed": seed,
        "keep": keep,
        "criterion": criterion,
        "weights": int(8000 * keep) - seed,
        "before": {name: value / 2 for name, value in figures.items()},
        "after": figures,
    }


FINE_TUNINGS = [
    fine_tuning(*each) for each in itertools.product(range(3), (0.2, 0.5), reversed(CRITERIA))
]


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.fixture
def tables():
    first, _, second = markdown(ORIGINAL, FINE_TUNINGS).split("\n\n")
    return [[cells(line) for line in table.splitlines()[2:]] for table in (first, second)]


def test_the_network_that_is_not_pruned_comes_first(tables):
    assert tables[0][0] == ["all", "not pruned", "1", "8,000", "", "98.00 %", "", "0.0700"]


def test_means_have_their_standard_error(tables):
    rows = {tuple(row[:2]): row[2:] for row in tables[0]}
    assert len(rows) == len(tables[0]) == 1 + 2 * len(CRITERIA)
    # Accuracies 91, 92 and 93: their standard deviation is 1, the standard error 1 / √3.
    assert rows["20 %", "hessian + implant"] == [
        "3",
        "1,599 ± 1",
        "46.00 ± 0.29 %",
        "92.00 ± 0.58 %",
        "0.5000 ± 0.0000",
        "1.0000 ± 0.0000",
    ]


def test_differences_are_paired_and_have_an_interval(tables):
    rows = {tuple(row[:3]): row[3:] for row in tables[1]}
    assert len(rows) == len(tables[1]) == 2 * len(COMPARED)
    # Student's quantile of 2 degrees of freedom is 4.30.
    for other in ("magnitude", "hessian"):
        found = rows["50 %", "hessian + implant", other]
        assert found == ["3", "+2.00 ± 2.48", "+0.0000 ± 0.0000"]


def test_the_figure_has_a_marker_for_each_network():
    for axis in draw_figure(ORIGINAL, FINE_TUNINGS).axes:
        points = sum(len(line.get_xdata()) for line in axis.lines if line.get_marker() != "None")
        assert points == len(FINE_TUNINGS)


def test_every_criterion_is_told_from_the_others_without_colour():
    assert len({marker for _, marker in STYLES.values()}) == len(CRITERIA) == len(STYLES)


def test_the_tables_in_the_documents_are_those_of_the_numbers():
    numbers = json.loads((DOCS / "evidence" / "pruning" / "pruning.json").read_text())
    page = (DOCS / "related.md").read_text(encoding="utf-8")
    first, heading, second = markdown(numbers["original"], numbers["fine_tunings"]).split("\n\n")
    assert first in page
    assert f"{heading}\n\n{second}" in page
