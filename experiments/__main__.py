"""The command line: `python -m experiments --help`."""

import functools
import io
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console
from rich.text import Text

from experiments.analyse.command import AnalyseConfig, run_analyse
from experiments.config import TrainConfig
from experiments.data.command import PrepareConfig, run_prepare
from experiments.demo import DemoConfig, run_demo
from experiments.errors import ExperimentError, UsageError, explain_os_errors
from experiments.presets import DESCRIPTIONS, PRESETS, SWEEPS
from experiments.pruning.command import PruneConfig, run_prune
from experiments.report.command import ReportConfig, write_report
from experiments.spelling import check_spelling
from experiments.stability import StabilityConfig, run_stability
from experiments.strength.command import StrengthConfig, run_strength
from experiments.study.command import StudyConfig, run_study
from experiments.sweep.command import SweepConfig, run_sweep
from experiments.sweep.storage_url import hide_in_argument
from experiments.training.devices import is_first_process, join_processes
from experiments.training.heap import keep_free_memory
from experiments.training.loop import train as train_network
from experiments.training.preemption import EXIT_STATUS, Terminated
from experiments.training.summary import summary_table

PROGRAM = "python -m experiments"

DESCRIPTION = """Experiments with Hessian-trace regularization.

To begin with, none of which needs a download:

    python -m experiments train digits                  (the recommended form)
    python -m experiments train digits --method plain   (the same without it)
    python -m experiments train digits --help           (all settings)
    python -m experiments sweep digits-small            (three methods, by seeds)
    python -m experiments report runs/sweeps/digits-small
"""

# The words that may begin a command line, and what the last of them has options for.
WORDS: dict[str, Any] = {
    "analyse": AnalyseConfig,
    "data": {"prepare": PrepareConfig},
    "demo": DemoConfig,
    "prune": PruneConfig,
    "report": ReportConfig,
    "stability": StabilityConfig,
    "strength": StrengthConfig,
    "study": StudyConfig,
    "sweep": dict.fromkeys(SWEEPS, SweepConfig),
    "train": PRESETS,
}
KINDS = {"": "command", "sweep": "sweep", "train": "preset"}

DEMO = DemoConfig()
STABILITY = StabilityConfig()
STRENGTH = StrengthConfig()
STUDY = StudyConfig()

if TYPE_CHECKING:
    Preset = TrainConfig
else:
    Preset = tyro.extras.subcommand_type_from_defaults(PRESETS, DESCRIPTIONS, prefix_names=False)


def analyse(config: Annotated[AnalyseConfig, tyro.conf.arg(name="")]) -> None:
    """Show the curvature of a trained network beside that of its plain twin, on one page.

    Eigenvalues, their density, traces by layer, slices of the loss, and the stability of steps.
    """
    with explain_os_errors("analyse", config.run, "--output-dir", "the page"):
        run_analyse(config, _console())


def _later(command: Callable[..., None]) -> Callable[..., Callable[[], None]]:
    """Make a command that only says what is to be done, so that arguments may be parsed twice."""

    @functools.wraps(command)
    def said(*arguments: Any, **options: Any) -> Callable[[], None]:
        return functools.partial(command, *arguments, **options)

    return said


def prepare(config: Annotated[PrepareConfig, tyro.conf.arg(name="")]) -> None:
    """Download a data set and write it as the experiments read it; needs no TensorFlow.

    After an interruption the same command goes on. What is there already is not touched.
    """
    run_prepare(config, _console())


# A choice of one command, which needs a second part, that is not shown, to be a choice.
DataCommand = (
    Annotated[Any, tyro.conf.subcommand(name="prepare", constructor=_later(prepare))]
    | Annotated[None, tyro.conf.Suppress]
)


def data(command: Annotated[DataCommand, tyro.conf.arg(name="")]) -> None:
    """Prepare data sets that do not come with a package."""
    if command is not None:
        command()


def demo(config: Annotated[DemoConfig, tyro.conf.arg(name="")] = DEMO) -> None:
    """Train a small network plainly, with SEHT-D and in the recommended form, and compare them."""
    with explain_os_errors("run the demo", config.output_dir, "--output-dir", "its results"):
        run_demo(config, _console())


def prune(config: Annotated[PruneConfig, tyro.conf.arg(name="")]) -> None:
    """Prune channels of a trained network by the trace of their Hessian, and fine-tune it.

    Beside it, at equal size, the same with implants, by magnitude and at random. The same command
    goes on.
    """
    with explain_os_errors("prune", config.run, "--output-dir", "the results"):
        run_prune(config, _console())


def report(config: Annotated[ReportConfig, tyro.conf.arg(name="")]) -> None:
    """Write tables, figures and one page about a sweep, from the logs of its runs."""
    with explain_os_errors("write the report", config.directory, "DIRECTORY", "its figures"):
        write_report(config, _console())


def stability(config: Annotated[StabilityConfig, tyro.conf.arg(name="")] = STABILITY) -> None:
    """Show in two parameters how the penalty leaves a sharp minimum for a flat one."""
    with explain_os_errors(
        "show the stability of minima", config.output_dir, "--output-dir", "its figures"
    ):
        run_stability(config, _console())


def strength(config: Annotated[StrengthConfig, tyro.conf.arg(name="")] = STRENGTH) -> None:
    """Try forms and strengths of the penalty on small networks; the same command goes on.

    A study takes between half an hour and two hours on one core; docs/evidence has the tables.
    """
    with explain_os_errors(
        f"run the study {config.study}", config.output_dir, "--output-dir", "its runs"
    ):
        run_strength(config, _console())


def study(config: Annotated[StudyConfig, tyro.conf.arg(name="")] = STUDY) -> None:
    """Run the study of whether penalising curvature helps, and what it costs.

    It goes on from the runs that are recorded. Given several times, one command a core, it shares
    the work.
    """
    with explain_os_errors("run the study", config.output_dir, "--output-dir", "its runs"):
        run_study(config, _console())


def sweep(config: Annotated[SweepConfig, tyro.conf.arg(name="")]) -> None:
    """Run a table of methods, each with its grid, at several seeds.

    The same command goes on with what was interrupted; given several times, also on other machines
    with one --storage, it shares the work.
    """
    with explain_os_errors(
        f"run the sweep {config.sweep}",
        config.resolved_output_dir,
        "--output-dir",
        "the checkpoints of its runs",
    ):
        run_sweep(config, _console())


def train(preset: Annotated[Preset, tyro.conf.arg(name="")]) -> None:
    """Train one network from a preset, any of whose settings may be changed.

    The same command goes on with a run that was interrupted.
    """
    join_processes(preset.devices)
    console = _console(quiet=not is_first_process())
    with explain_os_errors("train", preset.resolved_run_dir, "--run-dir", "its checkpoints"):
        console.print(summary_table(train_network(preset, console)))


def main(arguments: list[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: What was typed after the program's name; `None` is `sys.argv`'s.

    Returns:
        The exit status: 0, 1 for an error that is explained, 2 for a command line that is not
        understood, 130 after Ctrl-C, 143 after SIGTERM.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A path need not be text, and a terminal need not know every character.
            stream.reconfigure(errors="backslashreplace")
    keep_free_memory()
    typed = sys.argv[1:] if arguments is None else arguments
    hidden = list(map(hide_in_argument, typed))
    console = _console(stderr=True)
    try:
        check_spelling(PROGRAM, hidden, WORDS, KINDS)
        run = _parse(hidden)  # what can not be understood is shown as it is given to the parser
        if hidden != typed:
            run = _parse(typed)
        run()
    except ExperimentError as error:
        message = Text.assemble(("error:", "bold red"), f" {error}")
        console.print(message, highlight=False, soft_wrap=True)
        return 2 if isinstance(error, UsageError) else 1
    except Terminated as end:
        console.print(f"{end} The same command goes on from there.")
        return EXIT_STATUS
    except KeyboardInterrupt:
        console.print("Stopped. The same command goes on from the last checkpoint.")
        return 130
    return 0


def _parse(arguments: list[str]) -> Callable[[], None]:
    """Find out what is to be done; ends the program if that can not be understood."""
    commands = (analyse, data, demo, prune, report, stability, strength, study, sweep, train)
    return tyro.extras.subcommand_cli_from_dict(
        {command.__name__: _later(command) for command in commands},
        args=arguments,
        prog=PROGRAM,
        description=DESCRIPTION,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
    )


def _console(*, stderr: bool = False, quiet: bool = False) -> Console:
    """Make a console that shows text as it is: paths and labels may have square brackets."""
    return Console(stderr=stderr, quiet=quiet, markup=False, emoji=False)


if __name__ == "__main__":
    sys.exit(main())
