"""What is shown and written: progress, tables, JSON."""

import dataclasses
import datetime as dt
import importlib.metadata
import itertools
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import psutil
from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from benchmarks.measure import Measurement
from benchmarks.models import BenchmarkModel
from experiments.environment import git_commit

DIRECTORY = Path("runs/benchmarks")
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "matfree", "torch", "pyhessian")
NONE = "–"


def make_progress(console: Console) -> Progress:
    """Build the progress bar: what is going on, for how long, and how long it will take.

    Args:
        console: Where it is shown.

    Returns:
        The bar, a context manager.
    """
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TimeElapsedColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("left"),
        console=console,
    )


def environment() -> dict[str, Any]:
    """Describe the machine and the versions.

    Returns:
        JSON values by name; packages that are not installed are `None`.
    """
    return {
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "cpu": _cpu_model(),
        "cpu_count": os.cpu_count(),
        "physical_cpu_count": psutil.cpu_count(logical=False),
        "memory_bytes": psutil.virtual_memory().total,
        "device": jax.devices()[0].device_kind,
        "device_platform": jax.devices()[0].platform,
        "device_count": jax.device_count(),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS"),
        "git_commit": git_commit(),
        "versions": {name: _version(name) for name in PACKAGES},
    }


def num_threads() -> int:
    """Count the cores that this process may use, which XLA takes too."""
    # Not everywhere does the system tell which of them.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def new_report_path(kind: str, model: str) -> Path:
    """Choose a path that is not taken.

    Args:
        kind: The name of the benchmark.
        model: The name of the model.

    Returns:
        A path in `runs/benchmarks`.
    """
    now = dt.datetime.now(dt.UTC).strftime("%Y%m%d-%H%M%S")
    stem = f"{kind}-{model}-{now}"
    names = itertools.chain([stem], (f"{stem}-{i}" for i in itertools.count(2)))
    paths = (DIRECTORY / f"{name}.json" for name in names)
    return next(path for path in paths if not path.exists())


def write_report(path: Path, report: dict[str, Any]) -> None:
    """Write a JSON file in one piece: a kill leaves the old file or the new one.

    Args:
        path: Where to.
        report: JSON values by name; dataclasses are allowed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report, indent=2, default=dataclasses.asdict)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(path)


def describe(model: BenchmarkModel) -> str:
    """Describe a model in one line.

    Args:
        model: The model.
    """
    size = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in model.size.items())
    return f"{model.name} ({size}; {model.num_params:,} parameters)"


def describe_device() -> str:
    """Describe the device and the version of JAX in a few words, for the title of a table."""
    return f"{jax.devices()[0].device_kind}, jax {jax.__version__}"


def measurements_table(title: str, measurements: Sequence[Measurement]) -> Table:
    """Lay measurements out, one in a row.

    Args:
        title: The heading.
        measurements: The measurements; the first is the baseline of most.

    Returns:
        A table for a rich console, with a legend below.
    """
    table = Table(
        title=title,
        caption=_legend(measurements),
        caption_justify="left",
        box=box.SIMPLE_HEAD,  # leaves room for the names on a narrow terminal
    )
    table.add_column("value and gradient of")
    for heading in ("ms", "ratio", "MiB", "ratio", "GFLOP", "compile s"):
        table.add_column(heading, justify="right")
    for measurement in measurements:
        if measurement.error is not None:
            table.add_row(Text(f"{measurement.name}\n  {measurement.error}", style="red"))
            continue
        mark = " ¹" if measurement.computed_from else ""
        table.add_row(
            measurement.name + mark,
            _number(measurement.seconds, 1e3, ".4g"),
            _number(measurement.ratio, 1, ".2f") + ("x" if measurement.ratio else ""),
            _number(measurement.temporary_bytes, 2**-20, ".3g"),
            _number(measurement.memory_ratio, 1, ".2f") + ("x" if measurement.memory_ratio else ""),
            _number(measurement.flops, 1e-9, ".3g") + (" ²" if measurement.flops_note else ""),
            _number(measurement.compile_seconds, 1, ".1f"),
        )
    return table


def grid_table(
    title: str,
    heading: str,
    columns: Sequence[str],
    cells: Sequence[tuple[str, Sequence[str | Text]]],
) -> Table:
    """Lay one quantity of several settings out.

    Args:
        title: The heading of the table.
        heading: The heading of the first column.
        columns: The headings of the others.
        cells: For each row its name and its cells.

    Returns:
        A table for a rich console.
    """
    table = Table(title=title)
    table.add_column(heading)
    for column in columns:
        table.add_column(column, justify="right")
    for name, row in cells:
        table.add_row(name, *row)
    return table


def ratio_text(ratio: float | None) -> str:
    """Write a ratio.

    Args:
        ratio: The ratio, if it is known.
    """
    return NONE if ratio is None else f"{ratio:.2f}x"


def _legend(measurements: Sequence[Measurement]) -> str:
    lines = [
        "ms: median over the rounds; SEHT-D: the expectation over its draws.",
        "Ratio: median of those to the plain step in the same round (PyTorch's to PyTorch's).",
        "MiB: temporary buffers, by the compiler's figures. PyTorch: by create_graph=True.",
    ]
    if any(measurement.computed_from for measurement in measurements):
        lines.append("¹ computed from the times of other rows.")
    notes = sorted({m.flops_note for m in measurements if m.flops_note})
    if notes:
        lines.append(f"² counts only {'; or only '.join(notes)}.")
    return "\n".join(lines)


def _number(value: float | None, scale: float, form: str) -> str:
    return NONE if value is None else format(value * scale, form)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
