"""What one training step costs: the penalty, and its alternatives, against the plain step."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from benchmarks.measure import PLAIN, AnyRow, ComputedRow, measure, with_hasty_compilation
from benchmarks.models import QUICK_SIZES, SIZES, BenchmarkModel, build_benchmark_model
from benchmarks.report import (
    describe,
    describe_device,
    environment,
    make_progress,
    measurements_table,
    new_report_path,
    write_report,
)
from benchmarks.variants import step_time_rows

ModelName = Literal["resnet18", "wrn-16-4", "lstm", "transformer", "mlp"]

QUICK_MODELS = ("mlp", "resnet18")  # the others take too long to compile


class NoSuchRowError(ValueError):
    """No row has the name that was asked for."""


@dataclasses.dataclass(frozen=True)
class StepTimeConfig:
    """What to measure."""

    models: tuple[ModelName, ...] = ("resnet18",)
    """The networks, one after the other."""
    rows: tuple[str, ...] = ()
    """Measure only rows whose names contain one of these, and what they are compared with."""
    rounds: int = 5
    """How often every row is timed."""
    quick: bool = False
    """Test the benchmark in 2 minutes: tiny networks, few probes, 2 rounds; no result."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: If there are no rounds.
        """
        if self.rounds < 1:
            raise ValueError(f"rounds must be at least 1, not {self.rounds}")


@dataclasses.dataclass(frozen=True)
class Scope:
    """How much is measured of a network.

    Attributes:
        num_probes: The numbers of probes of SEHT-H.
        sparse_num_probes: The numbers of probes of SEHT-D.
        rounds: How often every row is timed.
    """

    num_probes: tuple[int, ...]
    sparse_num_probes: tuple[int, ...]
    rounds: int


FULL = Scope(num_probes=(1, 5, 10), sparse_num_probes=(1, 10), rounds=5)
QUICK = Scope(num_probes=(1, 5), sparse_num_probes=(1,), rounds=2)


def run_step_time(config: StepTimeConfig, console: Console) -> list[Path]:
    """Measure, show a table for each network, and write a JSON file for each.

    Args:
        config: What to measure.
        console: Where progress and tables are shown.

    Returns:
        The paths of the files.
    """
    if config.quick:
        with with_hasty_compilation():
            return [
                measure_model(
                    build_benchmark_model(name, QUICK_SIZES[name]), QUICK, config.rows, console
                )
                for name in QUICK_MODELS
            ]
    scope = dataclasses.replace(FULL, rounds=config.rounds)
    return [
        measure_model(build_benchmark_model(name, SIZES[name]), scope, config.rows, console)
        for name in config.models
    ]


def measure_model(
    model: BenchmarkModel, scope: Scope, parts: Sequence[str], console: Console
) -> Path:
    """Measure one network, show a table, and write the measurements down as they come.

    Args:
        model: The network.
        scope: How much to measure.
        parts: Parts of the names of the rows to measure; none for all rows.
        console: Where progress and table are shown.

    Returns:
        The path of the JSON file.

    Raises:
        NoSuchRowError: If no row has a part in its name.
    """
    all_rows = step_time_rows(
        model, num_probes=scope.num_probes, sparse_num_probes=scope.sparse_num_probes
    )
    rows = select(all_rows, parts)
    console.print(f"Measuring {describe(model)}.", highlight=False)
    path = new_report_path("step_time", model.name)
    report: dict[str, Any] = {
        "benchmark": "step_time",
        "model": {"name": model.name, "size": model.size, "num_params": model.num_params},
        "rounds": scope.rounds,
        "quick": scope is QUICK,
        "finished": False,
        "environment": environment(),
    }
    with make_progress(console) as progress:
        measurements = measure(
            rows, scope.rounds, progress, lambda rows: write_report(path, report | {"rows": rows})
        )
    write_report(path, report | {"finished": True, "rows": measurements})
    title = f"{describe(model)}\n{describe_device()}"
    if scope is QUICK:
        title = f"Test of the benchmark, no result\n{title}"
    console.print(measurements_table(title, measurements))
    console.print(f"All numbers: {path}", highlight=False, soft_wrap=True)
    return path


def select(rows: Sequence[AnyRow], parts: Sequence[str]) -> list[AnyRow]:
    """Select rows by parts of their names, upper and lower case being the same.

    Args:
        rows: All rows.
        parts: Parts of names; none for all rows.

    Returns:
        The rows, together with those that they are divided by or computed from, in order.

    Raises:
        NoSuchRowError: If a part is in no name.
    """
    if not parts:
        return list(rows)
    wanted = {PLAIN}
    for part in parts:
        matching = [row for row in rows if part.lower() in row.name.lower()]
        if not matching:
            known = "\n  ".join(row.name for row in rows)
            raise NoSuchRowError(f"no row has {part!r} in its name; there are\n  {known}")
        for row in matching:
            wanted |= {row.name, row.baseline}
            wanted |= set(row.weights) if isinstance(row, ComputedRow) else set()
    return [row for row in rows if row.name in wanted]
