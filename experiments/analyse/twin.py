"""The plain twin of a run: the same network, data, optimizer and seed, without the method."""

import dataclasses
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from experiments.analyse.trained import FinishedRun
from experiments.config import (
    TextConfig,
    TrainConfig,
    complete_settings,
    deciding_settings,
    to_json,
)
from experiments.errors import DamagedFileError, SettingError, option
from experiments.presets import PRESETS
from experiments.regularizers import describe_method
from experiments.sweep.plan import PLAN, read_plan
from experiments.training.run_directory import read_result, read_settings

PLAIN_METHOD = describe_method(())

# What a twin may differ in besides: the method, and what has no influence on the weights.
_MAY_DIFFER = {
    "method",
    "name",
    "checkpoint_every",
    "on_divergence",
    "trace_examples",
    "trace_probes",
}
# As deep as the runs of a sweep are in its output directory: runs/POINT/seedN.
_DEPTH_IN_SWEEP = 3


def find_plain_twin(run: FinishedRun) -> Path | None:
    """Look for the plain twin beside a run, and in the sweep that the run belongs to.

    Args:
        run: The run.

    Returns:
        The directory of a finished run; `None` if there is none. Directories whose files are
        damaged are passed by.
    """
    for directory in _candidates(run.directory, run.config.seed):
        try:
            settings = read_settings(directory)
            if settings is None or settings["method"] != PLAIN_METHOD:
                continue
            alike = not twin_differences(run.settings, complete_settings(settings))
            if alike and read_result(directory) is not None:
                return directory
        except (DamagedFileError, OSError):
            continue
    return None


def check_plain_twin(run: FinishedRun, plain: FinishedRun) -> list[str]:
    """Check that two networks can stand beside one another.

    Args:
        run: The run.
        plain: What is to be its plain twin.

    Returns:
        In what else than the method their trainings differ, a line for each setting.

    Raises:
        SettingError: If the twin is not plain, or has another network or other data.
    """
    if plain.config.method:
        raise SettingError(
            f"--plain must name a run without a method, and {plain.directory} was trained with "
            f"{plain.method}."
        )
    differences = twin_differences(run.settings, plain.settings)
    apart = [
        line for name, line in differences.items() if name.partition(".")[0] in {"model", "data"}
    ]
    if apart:
        raise SettingError(
            f"{plain.directory} is no twin of {run.directory}, whose network or data are others:\n"
            + "\n".join(f"  {line}" for line in apart)
        )
    return list(differences.values())


def twin_differences(settings: Mapping[str, Any], plain: Mapping[str, Any]) -> dict[str, str]:
    """Compare the settings of two runs, but for the method and what changes no weights.

    Args:
        settings: Those of a run.
        plain: Those of its twin.

    Returns:
        By the name of each setting that differs, a line that says how.
    """
    nothing = "(not set)"
    settings, plain = deciding_settings(settings), deciding_settings(plain)
    return {
        name: f"{name}: {settings.get(name, nothing)}, plain {plain.get(name, nothing)}"
        for name in sorted(settings.keys() | plain.keys())
        if name not in _MAY_DIFFER and settings.get(name, nothing) != plain.get(name, nothing)
    }


def plain_twin_command(run: FinishedRun) -> str:
    """Write the command that trains the plain twin, where `find_plain_twin` finds it.

    Args:
        run: The run.

    Returns:
        A line for a shell.
    """
    config = dataclasses.replace(run.config, method=())
    preset = _nearest_preset(config)
    base, wanted = to_json(PRESETS[preset]), to_json(config)
    words = ["python", "-m", "experiments", "train", preset, "--method", *PLAIN_METHOD]
    for name, value in wanted.items():
        if name not in {"name", "method"} and base[name] != value:
            words += _words(name, value)
    place = run.directory.parent / f"plain-seed{config.seed}"
    default = dataclasses.replace(config, name=preset).resolved_run_dir
    if place != default:
        words += ["--run-dir", str(place)]
    if config.data.data_dir is not None:
        words += ["--data-dir", str(config.data.data_dir)]
    return shlex.join(words)


def _nearest_preset(config: TrainConfig) -> str:
    if config.name in PRESETS and type(PRESETS[config.name].data) is type(config.data):
        return config.name
    return "pydoc" if isinstance(config.data, TextConfig) else "digits"


def _words(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [option(name if value else f"no_{name}")]
    return [option(name), str(value)]


def _candidates(directory: Path, seed: int) -> Iterator[Path]:
    """List where a twin may be: beside the run, and among the runs of its sweep."""
    try:
        yield from sorted(path for path in directory.parent.iterdir() if path.is_dir())
    except OSError:
        return
    for output_dir in directory.parents[:_DEPTH_IN_SWEEP]:
        if not (output_dir / PLAN).is_file():
            continue
        try:
            plan = read_plan(output_dir)
        except DamagedFileError:
            continue
        for row in [] if plan is None else plan["rows"]:
            for point in row["points"]:
                yield output_dir / point["directory"] / f"seed{seed}"
