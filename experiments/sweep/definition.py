"""What a sweep is: a table of methods, each a configuration with a grid of its own."""

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from experiments.config import TrainConfig


class Reported(NamedTuple):
    """A figure as a paper prints it.

    Attributes:
        mean: The figure, in the unit of its column.
        standard_error: What stands behind the ±, if anything does.
    """

    mean: float
    standard_error: float | None = None


class Column(NamedTuple):
    """A column of the report's table.

    Attributes:
        metric: Name of the number in a run's result.
        heading: What stands above.
        factor: What the number is multiplied with; 100 makes a share per cent.
    """

    metric: str
    heading: str
    factor: float = 100.0


TIME_RATIO = "time_ratio"
"""Name, in `Row.paper`, of the time of a step over that of the plain row."""

_MORE_IS_BETTER = {
    "validation_accuracy": True,
    "validation_top5_accuracy": True,
    "validation_perplexity": False,
    "validation_loss": False,
}
_NOT_IN_A_GRID = {"name", "seed", "run_dir", "method", "data.data_dir"}


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the table: one method.

    Attributes:
        label: Its name, as printed.
        config: How it is trained, whatever the seed; `None` for a row that is quoted from its paper
            and never run.
        grid: Values to try, by setting; all combinations are run. A setting is named by its path in
            the configuration, ``"optimizer.weight_decay"``, or by a regularizer and its field,
            ``"seht-d.lam"``. What it sets in ``config`` itself has no effect.
        paper: The paper's figures, by metric: that of a column, or `TIME_RATIO`.
        note: A remark that the report prints below the table.
    """

    label: str
    config: TrainConfig | None
    grid: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)
    paper: Mapping[str, Reported] = dataclasses.field(default_factory=dict)
    note: str = ""

    def __post_init__(self) -> None:
        """Check the grid, by building every point of it.

        Raises:
            ValueError: If a setting is not known, has no values, or has one that is out of range,
                or if a row that is not run has a grid.
        """
        if self.config is None and self.grid:
            raise ValueError(f"row {self.label!r} has a grid, but no config that it could change")
        for setting, values in self.grid.items():
            if isinstance(values, str) or not values or len(set(values)) < len(values):
                raise ValueError(
                    f"the values of {setting} in row {self.label!r} must be a sequence of "
                    f"different ones, at least one, not {values!r}"
                )
        self.points()

    def points(self) -> list["Point"]:
        """List the points of the grid; a row that is not run has none.

        Returns:
            All combinations of the grid's values, the last setting varying fastest.
        """
        if self.config is None:
            return []
        combinations = (
            dict(zip(self.grid, values, strict=True))
            for values in itertools.product(*self.grid.values())
        )
        return [Point(self.label, values, _at(self.config, values)) for values in combinations]


class Point(NamedTuple):
    """One combination of a row's grid.

    Attributes:
        label: Label of the row.
        values: Values of the settings that the grid varies; empty for a row without a grid.
        config: The configuration, apart from seed and run directory.
    """

    label: str
    values: dict[str, Any]
    config: TrainConfig

    @property
    def directory(self) -> str:
        """Where its runs are, relative to the sweep's output directory."""
        parts = ["runs", _file_name(self.label)]
        if self.values:
            parts.append(",".join(f"{name}={value}" for name, value in self.values.items()))
        return "/".join(parts)


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A table of methods.

    Attributes:
        name: Its name on the command line.
        title: The heading of its report.
        rows: Its rows, in the order in which they are printed.
        columns: The numbers that the table prints.
        selected_by: The number by whose mean over the seeds a point of a grid is chosen, the best:
            a validation figure, since a choice by test figures flatters what is chosen.
        baseline: Label of the row whose step the others' time is compared with; by default the
            first that is run.
        convergence: Labels of the rows in the figure of convergence; by default all.
        note: A remark that the report prints below the table.
        seeds: How many runs of each point there are, if nothing else is asked for.
    """

    name: str
    title: str
    rows: tuple[Row, ...]
    columns: tuple[Column, ...] = (Column("test_accuracy", "test accuracy, %"),)
    selected_by: str = "validation_accuracy"
    baseline: str = ""
    convergence: tuple[str, ...] = ()
    note: str = ""
    seeds: int = 3

    def __post_init__(self) -> None:
        """Check that rows can be told apart, and that labels are those of rows.

        Raises:
            ValueError: If they can not, or are not.
        """
        directories: dict[str, str] = {}
        for point in self.points():
            other = directories.setdefault(point.directory.casefold(), point.label)
            if other != point.label:
                raise ValueError(
                    f"rows {other!r} and {point.label!r} would share the directory "
                    f"{point.directory}; give one of them another label"
                )
        labels = [row.label for row in self.rows]
        if len(set(labels)) < len(labels):
            raise ValueError(f"two rows have the same label: {', '.join(labels)}")
        run = [row.label for row in self.rows if row.config is not None]
        if not run:
            raise ValueError(f"sweep {self.name!r} has no row that is run")
        for label in (*self.convergence, *filter(None, [self.baseline])):
            if label not in run:
                raise ValueError(f"{label!r} is no row that is run; those are {', '.join(run)}")
        more_is_better(self.selected_by)  # refuses what it does not know

    def points(self) -> list[Point]:
        """List the points of all rows, named after the sweep.

        Returns:
            The points.
        """
        return [
            point._replace(config=dataclasses.replace(point.config, name=self.name))
            for row in self.rows
            for point in row.points()
        ]


def more_is_better(selected_by: str) -> bool:
    """Tell whether the larger of two numbers is the better one.

    Args:
        selected_by: Name of the number, one by which a sweep may choose.

    Returns:
        `True` for an accuracy, `False` for a perplexity or a loss.

    Raises:
        ValueError: If it is not known.
    """
    if selected_by not in _MORE_IS_BETTER:
        raise ValueError(
            "selected_by must be a validation figure of which it is known whether more is better, "
            f"{' or '.join(_MORE_IS_BETTER)}, not {selected_by!r}"
        )
    return _MORE_IS_BETTER[selected_by]


def with_epochs(sweep: Sweep, epochs: int) -> Sweep:
    """Give all runs of a sweep another length.

    Args:
        sweep: The sweep.
        epochs: Epochs of every run.

    Returns:
        The sweep, for a first look at its rows.

    Raises:
        ValueError: If a grid varies the epochs, or there is none.
    """
    planned = set()

    def changed(row: Row) -> Row:
        if "epochs" in row.grid:
            raise ValueError(f"the grid of row {row.label!r} varies the epochs itself")
        if row.config is None:
            return row
        planned.add(row.config.epochs)
        return dataclasses.replace(row, config=dataclasses.replace(row.config, epochs=epochs))

    rows = tuple(map(changed, sweep.rows))
    length = (
        f"A first look: {epochs} epoch{'s' if epochs > 1 else ''} in place of "
        f"{' or '.join(map(str, sorted(planned)))}. The paper's figures are no yardstick for it."
    )
    note = f"{sweep.note} {length}".strip() if planned != {epochs} else sweep.note
    return dataclasses.replace(sweep, rows=rows, note=note)


def _at(config: TrainConfig, values: Mapping[str, Any]) -> TrainConfig:
    for setting, value in values.items():
        config = _with_setting(config, setting, value)
    return config


def _with_setting(config: TrainConfig, setting: str, value: Any) -> TrainConfig:
    """Change one setting.

    Raises:
        ValueError: If there is none of that name, or if it is not the grid's business.
    """
    if setting in _NOT_IN_A_GRID:
        raise ValueError(f"{setting} can not be in a grid; the sweep sets it itself")
    place, _, field = setting.rpartition(".")
    methods = [part for part in config.method if part.name == place]
    if methods:
        _check_field(methods[0], field, setting)
        changed = dataclasses.replace(methods[0], **{field: value})
        method = tuple(changed if part is methods[0] else part for part in config.method)
        return dataclasses.replace(config, method=method)
    if not place:
        _check_field(config, field, setting)
        return dataclasses.replace(config, **{field: value})
    section = getattr(config, place, None)
    if not dataclasses.is_dataclass(section) or isinstance(section, type):
        known = [part.name for part in config.method]
        raise ValueError(
            f"no setting {setting!r}: {place!r} is no part of the configuration, and none of the "
            f"row's regularizers ({', '.join(known) or 'it has none'})"
        )
    _check_field(section, field, setting)
    return dataclasses.replace(config, **{place: dataclasses.replace(section, **{field: value})})


def _check_field(owner: Any, field: str, setting: str) -> None:
    """Look for a field.

    Raises:
        ValueError: If there is none of that name.
    """
    known = [each.name for each in dataclasses.fields(owner)]
    if field not in known:
        raise ValueError(f"no setting {setting!r}; {field!r} is none of {', '.join(known)}")


def _file_name(label: str) -> str:
    return re.sub(r"[^\w.=]+", "-", label.lower()).strip("-")
