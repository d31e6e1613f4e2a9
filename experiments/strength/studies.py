"""Grids of runs over networks, forms, learning rates and strengths: what is run, and kept."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from experiments.errors import ConfigMismatchError
from experiments.json_file import check_fields, read_json
from experiments.strength.cells import Cell, Run, grid, train_cells
from experiments.strength.forms import RECOMMENDED
from experiments.strength.tasks import WIDTHS, build_task
from experiments.training.run_directory import write_json

DECADES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
FINE = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
CALIBRATED = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
CALIBRATED_DECADES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
SCALE_FREE = (2e-2, 6e-2, 2e-1, 6e-1)
SCALE_FREE_DECADES = (1e-4, 1e-3, 1e-2, 1e-1, 2e-1, 1.0)
JUDGED_STRENGTH = 2e-1
"""That of the recommended form for which the command says in words whether it does harm: the one
that both grids have."""
RISING = (3e-3, 1e-2, 3e-2, 1e-1)
ALL_NETWORKS = tuple((name, width) for name, widths in WIDTHS.items() for width in widths)


@dataclasses.dataclass(frozen=True)
class Study:
    """A grid of runs.

    Attributes:
        networks: Names and widths of the networks.
        strengths: By the form of the penalty, its strengths; 0, plain training, is added.
        learning_rates: Learning rates, as multiples of the network's own.
        num_seeds: Runs of each cell.
        num_steps: Steps of each run.
    """

    networks: tuple[tuple[str, int], ...]
    strengths: Mapping[str, tuple[float, ...]]
    learning_rates: tuple[float, ...]
    num_seeds: int
    num_steps: int


STUDIES: dict[str, Study] = {
    "lambdas": Study(
        networks=ALL_NETWORKS,
        strengths={"gauss-newton": FINE},
        learning_rates=(1.0,),
        num_seeds=3,
        num_steps=600,
    ),
    "calibrated": Study(
        networks=ALL_NETWORKS,
        strengths={
            "gauss-newton, calibrated": CALIBRATED,
            "gauss-newton, calibrated, rising": RISING,
        },
        learning_rates=(1.0,),
        num_seeds=3,
        num_steps=600,
    ),
    "scale-free": Study(
        networks=ALL_NETWORKS,
        strengths={RECOMMENDED: SCALE_FREE},
        learning_rates=(1.0,),
        num_seeds=3,
        num_steps=600,
    ),
    "stress": Study(
        networks=tuple((name, widths[0]) for name, widths in WIDTHS.items()),
        strengths={
            "gauss-newton": DECADES,
            "hessian": DECADES,
            "gauss-newton, calibrated": CALIBRATED_DECADES,
            "gauss-newton, calibrated, rising": CALIBRATED_DECADES,
            RECOMMENDED: SCALE_FREE_DECADES,
        },
        learning_rates=(1 / 3, 1.0, 3.0),
        num_seeds=3,
        num_steps=150,
    ),
    "forms": Study(
        networks=(("resnet", 8),),
        strengths={
            "hessian": (1e-5, 1e-4, 1e-3, 1e-2),
            "gauss-newton": (1e-5, 1e-4, 1e-3, 1e-2),
            "gauss-newton, calibrated, rising": (1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
            RECOMMENDED: SCALE_FREE,
            "hessian, SEHT-D": (1e-5, 1e-4, 1e-3, 1e-2),
            "gauss-newton, SEHT-D, calibrated, rising": (1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
            "hessian, share": (0.03, 0.1, 0.3),
            "gauss-newton, share": (0.03, 0.1, 0.3),
            "hessian, bound": (1e-4, 1e-3, 1e-2),
            "hessian, positive part": (1e-4, 1e-3, 1e-2),
            "hessian, running statistics": (1e-4, 1e-3, 1e-2),
        },
        learning_rates=(1.0,),
        num_seeds=10,
        num_steps=450,
    ),
}


def run_study(study: Study, directory: Path, console: Console) -> list[dict[str, Any]]:
    """Run what is not yet there, and write it down group by group.

    Args:
        study: The study.
        directory: Where one JSON file for each network and form goes; those that are there are
            kept, so that the same call goes on with an interrupted study.
        console: Where progress is shown.

    Returns:
        One row for each run: its settings, and the fields of `Run`.

    Raises:
        ConfigMismatchError: If a file holds runs with other settings.
        DamagedFileError: If a file holds something else.
    """
    directory.mkdir(parents=True, exist_ok=True)
    rows = []
    groups = [(network, form) for network in study.networks for form in study.strengths]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        bar = progress.add_task("", total=len(groups))
        for (name, width), form in groups:
            progress.update(bar, description=f"{name} of width {width}, {form}")
            path = directory / f"{name}-{width}-{form.replace(', ', '-').replace(' ', '-')}.json"
            rows += _run_group(study, name, width, form, path)
            progress.advance(bar)
    return rows


def _run_group(study: Study, name: str, width: int, form: str, path: Path) -> list[dict[str, Any]]:
    task = build_task(name, width)
    settings = {
        "learning_rates": [task.learning_rate * factor for factor in study.learning_rates],
        "strengths": [0.0, *study.strengths[form]],
        "num_seeds": study.num_seeds,
    }
    settings_and_steps = settings | {"num_steps": study.num_steps}
    cells = grid(**settings)
    places = [_place(name, width, form, cell) for cell in cells]
    content = read_json(
        path,
        functools.partial(_check_group, settings_and_steps, places),
        "Restore it, or move it away: the same command makes its runs again.",
    )
    if content is not None:
        if content["settings"] != settings_and_steps:
            raise ConfigMismatchError(
                f"{path} holds runs with other settings: {content['settings']} instead of "
                f"{settings_and_steps}. Pass another --output-dir"
            )
        return content["rows"]
    runs = train_cells(task, form, cells, study.num_steps)
    rows = [_row(name, width, form, cell, run) for cell, run in zip(cells, runs, strict=True)]
    write_json(path, {"settings": settings_and_steps, "rows": rows})
    return rows


def _row(name: str, width: int, form: str, cell: Cell, run: Run) -> dict[str, Any]:
    return _place(name, width, form, cell) | run._asdict()


def _place(name: str, width: int, form: str, cell: Cell) -> dict[str, Any]:
    return {"network": name, "width": width, "form": form, **cell._asdict()}


def _check_group(
    settings: Mapping[str, Any], places: Sequence[Mapping[str, Any]], value: Any
) -> dict[str, Any]:
    """Check what a table is made from, if it is of these settings.

    Raises:
        ValueError: If it is not there, or runs are not those that belong in these places.
    """
    fields = {"settings": dict[str, Any], "rows": list[dict[str, Any]]}
    content = check_fields(value, fields, "the group")
    if content["settings"] != settings:
        return content
    if len(content["rows"]) != len(places):
        raise ValueError(f"it has {len(content['rows'])} runs, not {len(places)}")
    for number, (row, place) in enumerate(zip(content["rows"], places, strict=True), start=1):
        check_fields(row, dict.fromkeys(Run._fields, float), f"run {number}")
        if row != row | place:
            raise ValueError(f"run {number} is not that of {place}")
        if row["validation_loss"] <= 0:
            raise ValueError(f"'validation_loss' of run {number} is not above 0")
    return content
