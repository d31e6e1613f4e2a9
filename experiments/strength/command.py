"""The command `python -m experiments strength`."""

import dataclasses
from pathlib import Path
from typing import Literal

from rich.console import Console

from experiments.strength.forms import RECOMMENDED
from experiments.strength.report import compare, markdown, overview, verdict
from experiments.strength.studies import JUDGED_STRENGTH, STUDIES, run_study


@dataclasses.dataclass(frozen=True)
class StrengthConfig:
    """Which study to run."""

    study: Literal["forms", "lambdas", "calibrated", "scale-free", "stress"] = "forms"
    """forms: the forms of the penalty on digits. lambdas, calibrated: whether one lambda, or one
    lambda times the trace at the start, serves four networks at two widths. scale-free: the same
    for the form whose lambda does not depend on the trace's scale. stress: three learning rates,
    and strengths over decades."""
    output_dir: Path = Path("runs/strength")
    """Where the runs and the table go, in a directory for each study."""


def run_strength(config: StrengthConfig, console: Console) -> Path:
    """Run a study, and write its table.

    Args:
        config: Which study.
        console: Where progress is shown.

    Returns:
        The path of the table.
    """
    directory = config.output_dir / config.study
    rows = run_study(STUDIES[config.study], directory, console)
    comparisons = compare(rows)
    summary = overview(comparisons) + verdict(comparisons, RECOMMENDED, JUDGED_STRENGTH)
    path = directory / "table.md"
    path.write_text(f"{summary}\n{markdown(comparisons)}", encoding="utf-8")
    console.print(summary, highlight=False, soft_wrap=True)
    console.print(f"Table: {path}   All runs: {directory}/*.json", highlight=False, soft_wrap=True)
    return path
