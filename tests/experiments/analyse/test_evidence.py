"""The figures in the documents are those of the analysis that is kept."""

import json
from pathlib import Path

import numpy as np
from analysed_runs import METHOD, PLAIN

from experiments.analyse.measure import (
    Eigenvalue,
    Estimate,
    MeasureConfig,
    Measurement,
    Traces,
)
from experiments.analyse.stability import StepStability
from experiments.analyse.tables import Analysed, summary_table
from experiments.analyse.trained import FinishedRun
from seht_jax.analysis import SpectralQuadrature

DOCS = Path(__file__).parents[3] / "docs"


def traces(numbers):
    by_layer = {name: Estimate(**each) for name, each in numbers["by_layer"].items()}
    return Traces(Estimate(**numbers["total"]), by_layer)


def network(numbers, method):
    measured = Measurement(
        num_params=numbers["parameters"],
        num_examples=numbers["examples"],
        loss=numbers["loss"],
        largest=[Eigenvalue(**each) for each in numbers["largest_eigenvalues"]],
        smallest=[Eigenvalue(**each) for each in numbers["smallest_eigenvalues"]],
        quadrature=SpectralQuadrature(**{k: np.array(v) for k, v in numbers["spectrum"].items()}),
        hessian=traces(numbers["traces"]["hessian"]),
        gauss_newton=traces(numbers["traces"]["gauss_newton"]),
        layer_sizes=numbers["layer_sizes"],
        slices=np.array(numbers["slices"]),
    )
    config = PLAIN.__class__(**{**vars(PLAIN), "method": method})
    run = FinishedRun(Path("run"), {}, config, numbers["result"])
    return Analysed(numbers["method"], run, measured, StepStability(**numbers["stability"]))


def test_the_table_in_the_documents_is_that_of_the_numbers():
    numbers = json.loads((DOCS / "evidence" / "analysis" / "digits.json").read_text())
    networks = [
        network(numbers["measured"][name], method)
        for name, method in (("run", METHOD), ("plain", ()))
    ]
    table = summary_table(MeasureConfig(**numbers["measure"]), networks)
    # On the page of the analysis numbers do not break; Markdown has plain spaces.
    lines = {f"| {' | '.join(line)} |".replace("\N{NO-BREAK SPACE}", " ") for line in table.lines}
    page = (DOCS / "analysis.md").read_text(encoding="utf-8")
    shown = page.split("| | gauss-newton | plain |\n|---|---|---|\n")[1].split("\n\n")[0]
    assert len(shown.splitlines()) > 8
    assert set(shown.splitlines()) <= lines
