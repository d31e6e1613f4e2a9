"""All runs of a sweep, and the file that says what they are."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.config import TrainConfig, complete_settings, to_json
from experiments.errors import ConfigMismatchError
from experiments.sweep.definition import Point, Sweep
from experiments.training.run_directory import write_json

PLAN = "sweep.json"

_OF_THE_RUN = "seed"


class PlannedRun(NamedTuple):
    """One run of a sweep.

    Attributes:
        key: Its directory, relative to the output directory; tells the sweep's runs apart.
        label: Label of its row.
        values: Values of the settings that the row's grid varies.
        config: Its configuration, seed and run directory included.
    """

    key: str
    label: str
    values: dict[str, Any]
    config: TrainConfig


def plan_runs(
    sweep: Sweep, num_seeds: int, output_dir: Path, data_dir: Path | None = None
) -> list[PlannedRun]:
    """List the runs, seed by seed: a sweep that is stopped has all rows at the seeds that it has.

    Args:
        sweep: The sweep.
        num_seeds: The seeds are 0, 1, ...
        output_dir: Where the run directories are.
        data_dir: Where the data are, if not where the rows say.

    Returns:
        The runs, in the order in which they are carried out.
    """
    return [
        _plan_run(point, seed, output_dir, data_dir)
        for seed in range(num_seeds)
        for point in sweep.points()
    ]


def settings_of(sweep: Sweep) -> dict[str, dict[str, Any]]:
    """Write down what the results depend on.

    Args:
        sweep: The sweep.

    Returns:
        The settings of each point, apart from the seed, by its directory.
    """
    return {point.directory: _settings(point) for point in sweep.points()}


def check_settings(
    existing: Mapping[str, Mapping[str, Any]], sweep: Sweep, place: str, fix: str
) -> None:
    """Check that earlier runs are runs of this sweep; it may have grown by points.

    Args:
        existing: What `settings_of` returned for the earlier runs.
        sweep: The sweep.
        place: Where the earlier runs are, for the message.
        fix: What to do where they differ.

    Raises:
        ConfigMismatchError: If a point has other settings, or is no longer there.
    """
    wanted = settings_of(sweep)
    differences = [
        line
        for directory, settings in existing.items()
        for line in _differences(directory, _complete(settings), wanted.get(directory))
    ]
    if differences:
        raise ConfigMismatchError(
            f"{place} holds runs of {sweep.name!r} with other settings:\n"
            + "\n".join(differences)
            + f"\n{fix}"
        )


def write_plan(sweep: Sweep, num_seeds: int, output_dir: Path) -> None:
    """Write down all that a report needs beside the runs.

    Args:
        sweep: The sweep.
        num_seeds: Seeds of each point; where the file that is there has more, they stay.
        output_dir: Where to.

    Raises:
        ConfigMismatchError: If the directory belongs to a sweep with other settings.
    """
    path = output_dir / PLAN
    fix = "Pass another --output-dir, or take back the changes to go on with what is there."
    if path.exists():
        existing = json.loads(path.read_text(encoding="utf-8"))
        points = {
            point["directory"]: point["settings"]
            for row in existing["rows"]
            for point in row["points"]
        }
        if existing["name"] != sweep.name:
            raise ConfigMismatchError(f"{output_dir} holds the sweep {existing['name']!r}. {fix}")
        check_settings(points, sweep, str(output_dir), fix)
        num_seeds = max(num_seeds, existing["seeds"])
    output_dir.mkdir(parents=True, exist_ok=True)
    write_json(path, _to_json(sweep, num_seeds))


def _plan_run(point: Point, seed: int, output_dir: Path, data_dir: Path | None) -> PlannedRun:
    key = f"{point.directory}/seed{seed}"
    config = dataclasses.replace(point.config, seed=seed, run_dir=output_dir / key)
    if data_dir is not None:
        config = dataclasses.replace(
            config, data=dataclasses.replace(config.data, data_dir=data_dir)
        )
    return PlannedRun(key, point.label, point.values, config)


def _settings(point: Point) -> dict[str, Any]:
    settings = to_json(point.config)
    del settings[_OF_THE_RUN]
    return settings


def _complete(stored: Mapping[str, Any]) -> dict[str, Any]:
    settings = complete_settings(stored)
    settings.pop(_OF_THE_RUN, None)
    return settings


def _to_json(sweep: Sweep, num_seeds: int) -> dict[str, Any]:
    points = sweep.points()
    run = [row.label for row in sweep.rows if row.config is not None]
    return {
        "name": sweep.name,
        "title": sweep.title,
        "seeds": num_seeds,
        "columns": [column._asdict() for column in sweep.columns],
        "selected_by": sweep.selected_by,
        "baseline": sweep.baseline or run[0],
        "convergence": list(sweep.convergence or run),
        "note": sweep.note,
        "rows": [
            {
                "label": row.label,
                "paper": {name: figure._asdict() for name, figure in row.paper.items()},
                "note": row.note,
                "points": [
                    {
                        "values": point.values,
                        "directory": point.directory,
                        "settings": _settings(point),
                    }
                    for point in points
                    if point.label == row.label
                ],
            }
            for row in sweep.rows
        ],
    }


def _differences(
    directory: str, existing: Mapping[str, Any], wanted: Mapping[str, Any] | None
) -> Sequence[str]:
    if wanted is None:
        return [f"  {directory}: there, but no longer part of the sweep"]
    nothing = "(not set)"
    return [
        f"  {directory}: {name} is {existing.get(name, nothing)} there, and "
        f"{wanted.get(name, nothing)} in the sweep"
        for name in sorted({**existing, **wanted})
        if existing.get(name, nothing) != wanted.get(name, nothing)
    ]
