"""The command line: `python -m benchmarks --help`."""

import sys
from typing import Annotated

import tyro
from rich.console import Console

from benchmarks.cluster import ClusterConfig, run_cluster
from benchmarks.communication import CommunicationConfig, run_communication
from benchmarks.exact_trace import ExactTraceConfig, NoSuchLayerError, run_exact_trace
from benchmarks.language_curve import LanguageCurveConfig, run_language_curve
from benchmarks.precision import PrecisionConfig, run_precision
from benchmarks.pyhessian_peer import PyHessianConfig, run_pyhessian
from benchmarks.scaling import ScalingConfig, run_scaling
from benchmarks.soak import SoakConfig, run_soak
from benchmarks.step_time import NoSuchRowError, StepTimeConfig, run_step_time
from benchmarks.trainer import TrainerConfig, run_trainer
from experiments.errors import ExperimentError

STEP_TIME, SCALING = StepTimeConfig(), ScalingConfig()
EXACT_TRACE, TRAINER = ExactTraceConfig(), TrainerConfig()
LANGUAGE_CURVE, PRECISION = LanguageCurveConfig(), PrecisionConfig()
COMMUNICATION, CLUSTER = CommunicationConfig(), ClusterConfig()
SOAK, PYHESSIAN = SoakConfig(), PyHessianConfig()


def step_time(config: Annotated[StepTimeConfig, tyro.conf.arg(name="")] = STEP_TIME) -> None:
    """Time one step of SEHT-H, SEHT-D, SAM, matfree and PyTorch against the plain step."""
    run_step_time(config, Console())


def scaling(config: Annotated[ScalingConfig, tyro.conf.arg(name="")] = SCALING) -> None:
    """Time SEHT-H at several numbers of probes, batch sizes, widths and depths."""
    run_scaling(config, Console())


def exact_trace(
    config: Annotated[ExactTraceConfig, tyro.conf.arg(name="")] = EXACT_TRACE,
) -> None:
    """Time the exact trace of single layers, and extrapolate to the network."""
    run_exact_trace(config, Console())


def trainer(config: Annotated[TrainerConfig, tyro.conf.arg(name="")] = TRAINER) -> None:
    """Time the training loop of the experiments against the bare step."""
    run_trainer(config, Console())


def language_curve(
    config: Annotated[LanguageCurveConfig, tyro.conf.arg(name="")] = LANGUAGE_CURVE,
) -> None:
    """Train a language model beside PyTorch's for a few hundred steps, and compare the losses."""
    run_language_curve(config, Console())


def precision(config: Annotated[PrecisionConfig, tyro.conf.arg(name="")] = PRECISION) -> None:
    """Compare loss, estimate and gradients in float32 and bfloat16 with float64."""
    run_precision(config, Console())


def communication(
    config: Annotated[CommunicationConfig, tyro.conf.arg(name="")] = COMMUNICATION,
) -> None:
    """Count what a step communicates on eight devices, by its compiled program."""
    run_communication(config, Console())


def cluster(config: Annotated[ClusterConfig, tyro.conf.arg(name="")] = CLUSTER) -> None:
    """Predict the time of a step on up to thousands of accelerators, by a model."""
    run_cluster(config, Console())


def soak(config: Annotated[SoakConfig, tyro.conf.arg(name="")] = SOAK) -> None:
    """Train for an hour, and watch memory and compilations."""
    run_soak(config, Console())


def pyhessian(config: Annotated[PyHessianConfig, tyro.conf.arg(name="")] = PYHESSIAN) -> None:
    """Compare eigenvalue, trace and spectral density of a trained network with PyHessian's."""
    run_pyhessian(config, Console())


def main(arguments: list[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: What was typed after the program's name; `None` is `sys.argv`'s.

    Returns:
        The exit status: 0, 1 for an error that is explained, 130 after Ctrl-C.
    """
    console = Console(stderr=True)
    try:
        tyro.extras.subcommand_cli_from_dict(
            {
                "step_time": step_time,
                "scaling": scaling,
                "exact_trace": exact_trace,
                "trainer": trainer,
                "language_curve": language_curve,
                "precision": precision,
                "soak": soak,
                "communication": communication,
                "cluster": cluster,
                "pyhessian": pyhessian,
            },
            args=arguments,
            prog="python -m benchmarks",
            description="What the penalty costs. Results are also written to runs/benchmarks.",
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
        )
    except (NoSuchRowError, NoSuchLayerError, ExperimentError) as error:
        console.print(f"[bold red]error:[/] {error}", highlight=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print("Stopped. What was measured is in runs/benchmarks.")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
