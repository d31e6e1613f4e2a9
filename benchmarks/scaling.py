"""How the cost of SEHT-H grows with probes, batch size, width and depth.

Every cell is measured against a plain step of its own, of the same network and batch.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import Progress
from rich.text import Text

from benchmarks.measure import (
    PLAIN,
    Measurement,
    Row,
    compile_step,
    measure,
    with_hasty_compilation,
)
from benchmarks.models import QUICK_SIZES, SIZES, Size, build_benchmark_model
from benchmarks.report import (
    describe_device,
    environment,
    grid_table,
    make_progress,
    new_report_path,
    ratio_text,
    write_report,
)
from benchmarks.variants import ONE_KEY, dense_name, penalised_step, plain_step

TableName = Literal["probes", "batch", "width", "depth"]


@dataclasses.dataclass(frozen=True)
class ScalingConfig:
    """What to measure."""

    tables: tuple[TableName, ...] = ("probes", "batch", "width", "depth")
    """What to vary: one table each."""
    width: int = 16
    """Channels of the ResNet-18 of the tables of probes and batch sizes."""
    rounds: int = 5
    """How often every step is timed."""
    quick: bool = False
    """Test the benchmark: tiny networks, two cells to a table, 1 round; no result."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: If there are no rounds, or no channels.
        """
        for name in ("width", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One setting.

    Attributes:
        label: What is varied, and its value.
        model: The name of the network.
        size: Its size.
        num_probes: The number of probes.
    """

    label: str
    model: str
    size: Size
    num_probes: int = 1


@dataclasses.dataclass(frozen=True)
class Grid:
    """One table.

    Attributes:
        title: What is fixed.
        heading: What is varied.
        cells: The settings.
    """

    title: str
    heading: str
    cells: Sequence[Cell]


def run_scaling(config: ScalingConfig, console: Console) -> Path:
    """Measure, show one table for each thing that is varied, and write a JSON file.

    Args:
        config: What to measure.
        console: Where progress and tables are shown.

    Returns:
        The path of the file.
    """
    if config.quick:
        with with_hasty_compilation():
            return _run(config, 1, console)
    return _run(config, config.rounds, console)


def _run(config: ScalingConfig, rounds: int, console: Console) -> Path:
    path = new_report_path("scaling", "seht-h")
    report: dict[str, Any] = {
        "benchmark": "scaling",
        "rounds": rounds,
        "finished": False,
        "environment": environment(),
        "cells": [],
    }
    for table in config.tables:
        grid = _GRIDS[table](config)
        results = []
        for cell in grid.cells:
            console.print(f"{grid.title}: {grid.heading} {cell.label}", highlight=False)
            with make_progress(console) as progress:
                plain, penalised = _measure_cell(cell, rounds, progress)
            results.append((cell.label, _cells(plain, penalised)))
            report["cells"].append(
                {
                    "table": table,
                    **dataclasses.asdict(cell),
                    "plain": plain,
                    "penalised": penalised,
                }
            )
            write_report(path, report)
        console.print(
            grid_table(f"{grid.title}\n{describe_device()}", grid.heading, _COLUMNS, results)
        )
    write_report(path, report | {"finished": True})
    console.print(f"All numbers: {path}", highlight=False, soft_wrap=True)
    return path


_COLUMNS = ("plain ms", "SEHT-H ms", "time", "memory", "compile s")


def _cells(plain: Measurement, penalised: Measurement) -> list[str | Text]:
    if plain.error is not None or penalised.error is not None:
        return [Text(plain.error or penalised.error or "", style="red")]
    return [
        *(f"{1e3 * (each.seconds or 0):.1f}" for each in (plain, penalised)),
        ratio_text(penalised.ratio),
        ratio_text(penalised.memory_ratio),
        f"{penalised.compile_seconds or 0:.1f}",
    ]


def _measure_cell(cell: Cell, rounds: int, progress: Progress) -> list[Measurement]:
    model = build_benchmark_model(cell.model, cell.size)

    def row(name: str, step: Callable[..., Any]) -> Row:
        return Row(name, lambda: compile_step(step, model, ONE_KEY))

    rows = [
        row(PLAIN, plain_step(model)),
        row(dense_name(cell.num_probes), penalised_step(model, None, cell.num_probes)),
    ]
    return measure(rows, rounds, progress)


def _by_probes(config: ScalingConfig) -> Grid:
    size = _resnet_size(config)
    return Grid(
        f"ResNet-18, width {size['width']}, batch {size['batch_size']}",
        "probes",
        [Cell(str(n), "resnet18", size, n) for n in _chosen(config, (1, 2, 5, 10))],
    )


def _by_batch_size(config: ScalingConfig) -> Grid:
    size = _resnet_size(config)
    return Grid(
        f"ResNet-18, width {size['width']}, 1 probe",
        "batch size",
        [
            Cell(str(n), "resnet18", {**size, "batch_size": n})
            for n in _chosen(config, (8, 16, 32, 64))
        ],
    )


def _by_width(config: ScalingConfig) -> Grid:
    size = _resnet_size(config)
    widths = (2, 4) if config.quick else (16, 32, 64)
    return Grid(
        f"ResNet-18, batch {size['batch_size']}, 1 probe",
        "width",
        [Cell(str(width), "resnet18", {**size, "width": width}) for width in widths],
    )


def _by_depth(config: ScalingConfig) -> Grid:
    size = QUICK_SIZES["wrn-16-4"] if config.quick else {**SIZES["wrn-16-4"], "widen_factor": 1}
    return Grid(
        f"WRN-d-{size['widen_factor']}, batch {size['batch_size']}, 1 probe",
        "depth d",
        [
            Cell(str(depth), "wrn-16-4", {**size, "depth": depth})
            for depth in _chosen(config, (10, 16, 22))
        ],
    )


def _resnet_size(config: ScalingConfig) -> Size:
    if config.quick:
        return QUICK_SIZES["resnet18"]
    return {**SIZES["resnet18"], "width": config.width}


def _chosen(config: ScalingConfig, values: Sequence[int]) -> Sequence[int]:
    return values[:2] if config.quick else values


_GRIDS: Mapping[str, Callable[[ScalingConfig], Grid]] = {
    "probes": _by_probes,
    "batch": _by_batch_size,
    "width": _by_width,
    "depth": _by_depth,
}
