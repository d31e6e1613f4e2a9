"""The command `python -m experiments analyse`."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from experiments.analyse.figures import draw_figures
from experiments.analyse.measure import MeasureConfig, Measurement, measurer, total_work
from experiments.analyse.stability import step_stability
from experiments.analyse.tables import Analysed, layer_table, summary_table, terminal_table
from experiments.analyse.trained import (
    FinishedRun,
    TrainedNetwork,
    load_network,
    load_run_data,
    read_finished_run,
)
from experiments.analyse.twin import check_plain_twin, find_plain_twin, plain_twin_command
from experiments.config import LanguageModelConfig
from experiments.environment import describe_environment
from experiments.errors import ConfigMismatchError, ExperimentError
from experiments.json_file import check_fields, read_json
from experiments.report.page import render_page
from experiments.safe_files import output_inside, replace_file
from experiments.tasks.build import build_task
from experiments.training.run_directory import write_json

PAGE, NUMBERS = "analysis.html", "analysis.json"


@dataclasses.dataclass(frozen=True)
class AnalyseConfig:
    """Which network to look at, and how closely."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Directory of a finished run; `python -m experiments train` makes one."""
    plain: Path | None = None
    """Directory of its plain twin: the same network and data, trained without a method. By default
    it is looked for beside RUN, and among the runs of the sweep that RUN is one of."""
    output_dir: Path | None = None
    """Where analysis.html and analysis.json go; by default to the subdirectory analysis of RUN."""
    data_dir: Path | None = None
    """Where the data are, for those that do not come with a package."""
    measure: MeasureConfig = dataclasses.field(default_factory=MeasureConfig)


def run_analyse(config: AnalyseConfig, console: Console) -> Path:
    """Measure a trained network and its plain twin, and write the page.

    Args:
        config: Which network, and how closely it is looked at.
        console: Where progress and the table are shown.

    Returns:
        The path of the page.

    Raises:
        ConfigMismatchError: If there is a page of other settings.
        ExperimentError: If a run is not finished, or has no weights or no finite loss.
        SettingError: If the twin is none.
    """
    runs = [read_finished_run(_named(config.run), config.data_dir)]
    differences = []
    directory = config.plain
    if directory is None and runs[0].config.method:
        directory = find_plain_twin(runs[0])
    if directory is not None:
        runs.append(read_finished_run(_named(directory), config.data_dir))
        differences = check_plain_twin(*runs)
    output_dir = config.output_dir or output_inside(runs[0].directory, "analysis", "analysis")
    _check_existing(output_dir, config.measure, runs)
    networks = _measure(config.measure, runs, console)

    table = summary_table(config.measure, networks)
    pictures = draw_figures(config.measure, networks)
    parts = [table, *pictures, layer_table(networks)]
    environment = describe_environment()
    closing = [", ".join(f"{name} {value}" for name, value in environment.items() if value)]
    page = output_dir / PAGE
    text = render_page(_title(runs), _opening(networks, differences), parts, closing)
    output_dir.mkdir(parents=True, exist_ok=True)
    write_json(output_dir / NUMBERS, _numbers(config.measure, networks, environment))
    replace_file(page, text.encode())
    console.print(terminal_table(table))
    if len(runs) == 1 and runs[0].config.method:
        console.print(_how_to_make_a_twin(runs[0]), highlight=False, soft_wrap=True)
    console.print(f"Page: {page}   All numbers: {NUMBERS}", highlight=False, soft_wrap=True)
    return page


def _measure(config: MeasureConfig, runs: Sequence[FinishedRun], console: Console) -> list[Any]:
    """Measure the networks one after the other.

    Raises:
        ExperimentError: If the loss of one is not finite.
    """
    run = runs[0]
    with console.status("Reading the networks"):
        data = load_run_data(run)
        task = build_task(run.config, data)
        trained = [load_network(each, data, console.print) for each in runs]
    with _progress(console) as progress:
        bar = progress.add_task("", total=None)

        def advance(what: str, work: int) -> None:
            progress.update(bar, description=what, advance=work)

        measure = measurer(task, config, advance)
        work = total_work(config, _num_params(trained[0]))
        progress.update(bar, total=work * len(runs))
        found = [measure(each) for each in trained]
    for each, measured in zip(runs, found, strict=True):
        if not np.isfinite([measured.loss, measured.hessian.total.mean]).all():
            raise ExperimentError(
                f"The loss of the network in {each.directory} is {measured.loss} and its tr(H) "
                f"{measured.hessian.total.mean}: there is no curvature to look at."
            )
    return [
        Analysed(each.method, each, measured, step_stability(each.config, measured))
        for each, measured in zip(runs, found, strict=True)
    ]


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:<12}"),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("left"),
        console=console,
    )


def _num_params(network: TrainedNetwork) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(network.params))


def _named(directory: Path) -> Path:
    """Give a directory a name, by which what is beside it can be found: ``.`` has none."""
    return directory if directory.name and ".." not in directory.parts else directory.resolve()


def _check_existing(output_dir: Path, config: MeasureConfig, runs: Sequence[FinishedRun]) -> None:
    """Check that a page that is there is of the same settings, or of one network less.

    Raises:
        ConfigMismatchError: If it is not.
        DamagedFileError: If the file beside the page holds something else.
    """
    path = output_dir / NUMBERS
    existing = read_json(path, _check_numbers, "Move it away, or pass another --output-dir.")
    fix = "Pass another --output-dir, or delete that one."
    if existing is None:
        if (output_dir / PAGE).exists():
            raise ConfigMismatchError(
                f"{output_dir} holds an {PAGE} without its {NUMBERS}, so nobody knows of what it "
                f"is. {fix}"
            )
        return
    wanted = {"measure": dataclasses.asdict(config)} | _settings(runs)
    found = {name: existing[name] for name in wanted}
    if found["plain"] is None:  # a page that had no twin yet
        found["plain"] = wanted["plain"]
    lines = [
        f"  {name}: there {there}, asked for {asked}"
        for part in wanted
        for name, there, asked in _differences(part, found[part], wanted[part])
    ]
    if lines:
        raise ConfigMismatchError(
            f"{output_dir} holds an analysis of other settings:\n" + "\n".join(lines) + f"\n{fix}"
        )


def _check_numbers(value: Any) -> dict[str, Any]:
    fields = {"measure": dict[str, Any], "run": dict[str, Any], "plain": dict[str, Any] | None}
    return check_fields(value, fields, "the analysis")


def _differences(part: str, there: Any, asked: Any) -> list[tuple[str, Any, Any]]:
    if there is None or asked is None:
        place = {} if asked is None else asked
        return [] if there == asked else [(part, "a network", place.get("directory", "none"))]
    nothing = "(not set)"
    return [
        (f"{part}.{name}", there.get(name, nothing), asked[name])
        for name in asked
        if name != "directory" and there.get(name, nothing) != asked[name]
    ]


def _settings(runs: Sequence[FinishedRun]) -> dict[str, Any]:
    described = [run.settings | {"directory": str(run.directory)} for run in runs]
    return {"run": described[0], "plain": described[1] if len(described) > 1 else None}


def _numbers(
    config: MeasureConfig, networks: Sequence[Analysed], environment: Mapping[str, Any]
) -> dict[str, Any]:
    """Collect all numbers, as JSON values."""
    runs = [each.run for each in networks]
    return {
        "measure": dataclasses.asdict(config),
        **_settings(runs),
        "environment": dict(environment),
        "slice_positions": config.slice_positions.tolist(),
        "measured": {
            name: _to_json(each) for name, each in zip(("run", "plain"), networks, strict=False)
        },
    }


def _to_json(network: Analysed) -> dict[str, Any]:
    measured: Measurement = network.measured
    return {
        "method": network.label,
        "result": network.run.result,
        "parameters": measured.num_params,
        "examples": measured.num_examples,
        "loss": measured.loss,
        "largest_eigenvalues": [pair._asdict() for pair in measured.largest],
        "smallest_eigenvalues": [pair._asdict() for pair in measured.smallest],
        "spectrum": {
            "nodes": np.asarray(measured.quadrature.nodes).tolist(),
            "weights": np.asarray(measured.quadrature.weights).tolist(),
        },
        "traces": {
            name: {
                "total": traces.total._asdict(),
                "by_layer": {k: each._asdict() for k, each in traces.by_layer.items()},
            }
            for name, traces in (
                ("hessian", measured.hessian),
                ("gauss_newton", measured.gauss_newton),
            )
        },
        "layer_sizes": measured.layer_sizes,
        "slices": measured.slices.tolist(),
        "stability": network.stability._asdict(),
    }


def _title(runs: Sequence[FinishedRun]) -> str:
    return f"Curvature of {runs[0].config.name}: " + " and ".join(run.method for run in runs)


def _opening(networks: Sequence[Analysed], differences: Sequence[str]) -> str:
    """Say which networks and which loss the page is about."""
    run, *twins = (each.run for each in networks)
    number = networks[0].measured.num_examples
    network, dataset = run.config.model.network, run.config.data.dataset
    weights = (
        f"after the best epoch, {run.result['best_epoch']} of {run.config.epochs}"
        if "best_epoch" in run.result
        else f"after the last epoch, {run.config.epochs}"
    )
    trained = f"{network} trained on {dataset} with {run.method}, seed {run.config.seed}"
    sentences = [f"{run.directory}: {trained}, {weights}."]
    sentences += [f"Beside it its plain twin, {twin.directory}." for twin in twins]
    if differences:
        sentences.append(f"In more than the method they differ by {'; '.join(differences)}.")
    sentences.append(
        f"H is the Hessian, and G the Gauss-Newton matrix, of the mean cross-entropy over the "
        f"first {number:,} training {_unit(run)}, with the network as it is used: "
        + (
            "nothing is dropped, and every window begins in state 0."
            if isinstance(run.config.model, LanguageModelConfig)
            else "BatchNorm has its running statistics (evaluation mode), nothing is dropped, and "
            "images are not augmented. A training step, and the traces in the run's result, see "
            "the statistics of the batch instead, so that their traces are others."
        )
    )
    if not twins and run.config.method:
        sentences.append(_how_to_make_a_twin(run))
    return " ".join(sentences)


def _how_to_make_a_twin(run: FinishedRun) -> str:
    return (
        f"No plain twin was found beside {run.directory}. This makes one, and the same analysis "
        f"then shows both: {plain_twin_command(run)}"
    )


def _unit(run: FinishedRun) -> str:
    return "windows of text" if isinstance(run.config.model, LanguageModelConfig) else "images"
