"""All runs of a sweep, and the file that says what they are."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.config import (
    TrainConfig,
    check_settings,
    complete_settings,
    deciding_settings,
    to_json,
)
from experiments.errors import ConfigMismatchError
from experiments.json_file import Scalar, check_fields, check_kind, read_json
from experiments.safe_files import path_inside
from experiments.sweep.definition import Column, Point, Reported, Sweep, more_is_better
from experiments.training.run_directory import write_json

PLAN = "sweep.json"
MOST_SEEDS = 10_000

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


def compare_settings(
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
    wanted = {place: deciding_settings(each) for place, each in settings_of(sweep).items()}
    differences = [
        line
        for directory, settings in existing.items()
        for line in _differences(
            directory, deciding_settings(_complete(settings)), wanted.get(directory)
        )
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
        DamagedFileError: If the file that is there holds something else.
    """
    existing = read_plan(output_dir)
    fix = "Pass another --output-dir, or take back the changes to go on with what is there."
    if existing is not None:
        points = {
            point["directory"]: point["settings"]
            for row in existing["rows"]
            for point in row["points"]
        }
        if existing["name"] != sweep.name:
            raise ConfigMismatchError(f"{output_dir} holds the sweep {existing['name']!r}. {fix}")
        compare_settings(points, sweep, str(output_dir), fix)
        num_seeds = max(num_seeds, existing["seeds"])
    output_dir.mkdir(parents=True, exist_ok=True)
    write_json(output_dir / PLAN, _to_json(sweep, num_seeds))


def read_plan(output_dir: Path) -> dict[str, Any] | None:
    """Read what `write_plan` wrote.

    Args:
        output_dir: Where it was written.

    Returns:
        JSON values, their types checked, and directories of runs that are within the output
        directory; `None` if there is no such file.

    Raises:
        DamagedFileError: If it holds something else.
    """
    fix = "Restore it, or move it away: the command that began the sweep writes it anew."
    return read_json(output_dir / PLAN, functools.partial(_check_plan, output_dir), fix)


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


_PLAN_FIELDS = {
    "name": str,
    "title": str,
    "seeds": int,
    "columns": list[dict[str, str | float]],
    "selected_by": str,
    "baseline": str,
    "convergence": list[str],
    "rows": list[dict[str, Any]],
}
_ROW_FIELDS = {
    "label": str,
    "paper": dict[str, dict[str, float | None]],
    "note": str,
    "points": list[dict[str, Any]],
}
_POINT_FIELDS = {"values": dict[str, Scalar], "directory": str, "settings": dict[str, Any]}


def _check_plan(output_dir: Path, value: Any) -> dict[str, Any]:
    """Check what a report and a sweep read of a plan.

    Raises:
        ValueError: If it is no plan, or names a directory outside of its own.
    """
    plan = check_fields(value, _PLAN_FIELDS, "the plan")
    check_kind(plan.get("note", ""), str, "'note' of the plan")
    if not 1 <= plan["seeds"] <= MOST_SEEDS:
        raise ValueError(f"'seeds' is {plan['seeds']}, and not from 1 to {MOST_SEEDS}")
    more_is_better(plan["selected_by"])
    for column in plan["columns"]:
        fields = {"metric": str, "heading": str, "factor": float}
        _check_no_others(check_fields(column, fields, "a column"), Column._fields)
    for row in plan["rows"]:
        check_fields(row, _ROW_FIELDS, "a row")
        for figure in row["paper"].values():
            _check_no_others(check_fields(figure, {"mean": float}, "a figure"), Reported._fields)
        for point in row["points"]:
            check_fields(point, _POINT_FIELDS, f"a point of row {row['label']!r}")
            check_settings(point["settings"])
            path_inside(output_dir, point["directory"])
    return plan


def _check_no_others(value: Mapping[str, Any], fields: Sequence[str]) -> None:
    """Check that a JSON object has no other fields.

    Raises:
        ValueError: If it has.
    """
    others = sorted(value.keys() - set(fields))
    if others:
        raise ValueError(f"{others[0]!r} is none of {', '.join(fields)}")
