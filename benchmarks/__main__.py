"""The command line: `python -m benchmarks --help`."""

import tyro
from rich.console import Console

from benchmarks.step_time import StepTimeConfig, measure_step_times, step_time_table


def main(config: StepTimeConfig) -> None:
    """Time penalised training steps against the plain one, in one process.

    Args:
        config: What to measure.
    """
    console = Console()
    with console.status("Compiling") as status:
        measurements = measure_step_times(config, status.update)
    console.print(step_time_table(config, measurements))


if __name__ == "__main__":
    main(tyro.cli(StepTimeConfig))
