"""The command `python -m experiments sweep`."""

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import tyro
from rich.console import Console

from experiments.errors import SettingError, option
from experiments.file_lock import file_lock
from experiments.presets import SWEEPS
from experiments.sweep.compiled import keep_compiled_programs
from experiments.sweep.definition import Sweep, with_epochs
from experiments.sweep.outcome import RunFunction, read_outcome
from experiments.sweep.plan import MOST_SEEDS, plan_runs, write_plan
from experiments.sweep.queue import Progress, RunQueue
from experiments.sweep.storage_url import parse_storage_url, sqlite_url
from experiments.sweep.worker import work
from experiments.training.loop import train_next

if TYPE_CHECKING:
    SweepName = str
else:
    SweepName = tyro.extras.literal_type_from_choices(SWEEPS)


@dataclasses.dataclass(frozen=True)
class SweepConfig:
    """Which sweep, and where its runs and its queue are."""

    sweep: tyro.conf.Positional[SweepName]
    """Which sweep. table1: ResNet-18 on CIFAR-10. table2: WRN-28-10 on CIFAR-100; table2-tenth:
    with the other strengths that the paper states. -grid: with the values that the paper tried.
    figure1: convergence, and accuracy by probes and p. cost: one epoch of each row. table3: LSTM on
    WikiText-2. table4: GRU. -small: the same rows at the size of two CPU cores. digits-small: a
    trial that needs no download."""
    seeds: int | None = None
    """Runs of each point; the seeds are 0, 1, ... More may be added later. By default as many as
    the sweep says: 5 for the paper's tables."""
    epochs: int | None = None
    """Epochs of every run, for a first look; by default what the sweep says."""
    rows: tuple[str, ...] | None = None
    """Labels of the rows to run now, as the table prints them; by default all. The others stay
    part of the sweep, for this command without the option or with their labels."""
    storage: str | None = dataclasses.field(default=None, repr=False)
    """The queue: sqlite:///FILE, by default sweep.db in the output directory, for workers on one
    machine; postgresql://USER:PASSWORD@HOST/DATABASE for workers on any number of machines, which
    should share the output directory. The password may be left out, and be in PGPASSWORD or
    ~/.pgpass, where other users of the machine do not see it."""
    study: str | None = None
    """Name of the study in the storage; by default that of the sweep."""
    output_dir: Path | None = None
    """Where the runs go; by default runs/sweeps/SWEEP."""
    data_dir: Path | None = None
    """Where data sets are that do not come with a package: TFDS's data directory, and that of
    WikiText-2."""

    def __post_init__(self) -> None:
        """Check the numbers and the storage.

        Raises:
            SettingError: If there is no seed, too many, or no epoch.
            StorageError: If the storage is of no kind that workers can share.
        """
        for name in ("seeds", "epochs"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise SettingError(f"{option(name)} must be at least 1, not {number}")
        if self.seeds is not None and self.seeds > MOST_SEEDS:
            raise SettingError(f"--seeds must be at most {MOST_SEEDS}, not {self.seeds}")
        if self.storage is not None:
            parse_storage_url(self.storage)  # before anything is written

    @property
    def resolved_output_dir(self) -> Path:
        """The output directory, the default one filled in."""
        return self.output_dir or Path("runs/sweeps") / self.sweep


def run_sweep(config: SweepConfig, console: Console, run: RunFunction = train_next) -> Progress:
    """Work on a sweep until all of its runs are done; the same command goes on.

    Args:
        config: Which sweep.
        console: Where progress is shown.
        run: Carries out one run.

    Returns:
        How many runs were finished, and how many diverged.

    Raises:
        ConfigMismatchError: If output directory or study hold runs with other settings.
        ExperimentError: If a run can not be carried out, or the storage can not be used.
        SettingError: If a row is none of the sweep's that are run.
    """
    sweep = SWEEPS[config.sweep]
    labels = _chosen_rows(sweep, config.rows)
    if config.epochs is not None:
        sweep = with_epochs(sweep, config.epochs)
    num_seeds = sweep.seeds if config.seeds is None else config.seeds
    output_dir = config.resolved_output_dir
    keep_compiled_programs(output_dir)
    with file_lock(output_dir / "sweep.lock"):
        write_plan(sweep, num_seeds, output_dir)
    # Plan and study are those of all rows, whichever are run now.
    planned = plan_runs(sweep, num_seeds, output_dir, config.data_dir)
    runs = [run for run in planned if run.label in labels]
    queue = RunQueue(
        config.storage or sqlite_url(output_dir / "sweep.db"),
        config.study or sweep.name,
        sweep,
        runs,
    )
    progress = work(queue, sweep.selected_by, run, console)
    console.print(
        f"{progress.finished} runs finished, {progress.diverged} diverged"
        f"{'' if config.rows is None else ', of the rows that were chosen'}. The table: "
        f"python -m experiments report {output_dir}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    missing = sum(read_outcome(run.config.resolved_run_dir) is None for run in runs)
    if missing:
        console.print(
            f"{missing} of these runs are not in {output_dir}: they were carried out with another "
            "output directory, or deleted since. Pass that directory, or another --study to run "
            "them again.",
            style="yellow",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    return progress


def _chosen_rows(sweep: Sweep, chosen: Sequence[str] | None) -> set[str]:
    """Tell which rows are run now, by their labels.

    Raises:
        SettingError: If one is none of the sweep's that are run.
    """
    labels = [row.label for row in sweep.rows if row.config is not None]
    if chosen is None:
        return set(labels)
    unknown = [label for label in chosen if label not in labels]
    if unknown or not chosen:
        raise SettingError(
            f"--rows must name rows that {sweep.name} runs, not "
            f"{shlex.join(unknown) if unknown else 'none'}; these are\n  "
            + "\n  ".join(map(shlex.quote, labels))
        )
    return set(chosen)
