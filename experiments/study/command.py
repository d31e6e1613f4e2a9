"""The command `python -m experiments study`."""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro
from rich.console import Console

from experiments.config import TrainConfig
from experiments.data.load import load_data_once
from experiments.environment import git_commit
from experiments.errors import DivergedError, ExperimentError, SettingError, option
from experiments.file_lock import owner_lock
from experiments.study.carry_out import (
    CompareTimes,
    carry_out_and_record,
    plan_run,
    time_and_record,
)
from experiments.study.protocol import PROTOCOL, Protocol
from experiments.study.records import Record, read_records
from experiments.study.stages import (
    NAME,
    STAGES,
    StagePlan,
    StudyRun,
    plain_finalist,
    plan_study,
)
from experiments.study.step_times import compare_step_times
from experiments.study.time_limit import TimeLimitError, expected_seconds
from experiments.sweep.compiled import keep_compiled_programs
from experiments.sweep.definition import Sweep
from experiments.sweep.outcome import Outcome, RunFunction, read_outcome
from experiments.sweep.plan import PlannedRun
from experiments.sweep.queue import RunQueue
from experiments.sweep.storage_url import parse_storage_url, sqlite_url
from experiments.sweep.worker import work
from experiments.training.loop import train_next
from experiments.training.together import is_begun_alone, train_together

SETTINGS = tuple(setting.name for setting in PROTOCOL.settings)

if TYPE_CHECKING:
    StageName = SettingName = str
else:
    StageName = tyro.extras.literal_type_from_choices(STAGES)
    SettingName = tyro.extras.literal_type_from_choices(SETTINGS)


@dataclasses.dataclass(frozen=True)
class StudyConfig:
    """Which part of the study, and where its runs and records are."""

    output_dir: Path = Path("runs/study")
    """Where the runs go: logs and checkpoints."""
    data_dir: Path | None = None
    """Where the data are: TFDS's data directory, and that of WikiText-2."""
    records: Path = Path("results/study/runs.jsonl")
    """The file with one line for each run that is at its end. A run that has a line is not run
    again."""
    stages: tuple[StageName, ...] = STAGES
    """Which stages. Each is planned from the records of those before it."""
    settings: tuple[SettingName, ...] = SETTINGS
    """Which settings."""
    time_limit: float | None = None
    """Minutes after which the command should have ended: no run is begun that would probably take
    longer, by the time that runs like it took."""
    together: int = 1
    """How many runs of one method are trained as one program, at most, which a GPU does in little
    more time than one. The stage times, whose steps must have the device for themselves, is left to
    commands with 1."""
    storage: str | None = dataclasses.field(default=None, repr=False)
    """The queue that several of these commands share, as that of a sweep; by default study.db in
    the output directory."""

    def __post_init__(self) -> None:
        """Check the numbers and the storage.

        Raises:
            SettingError: If there is no stage, no setting or no time.
            StorageError: If the storage is of no kind that workers can share.
        """
        for name in ("stages", "settings"):
            if not getattr(self, name):
                raise SettingError(f"{option(name)} must name at least one")
        if self.together < 1:
            raise SettingError(f"--together must be at least 1, not {self.together}")
        if self.time_limit is not None and not self.time_limit > 0:
            raise SettingError(f"--time-limit must be above 0, not {self.time_limit}")
        if self.storage is not None:
            parse_storage_url(self.storage)  # before anything is written


def run_study(
    config: StudyConfig,
    console: Console,
    protocol: Protocol = PROTOCOL,
    run: RunFunction = train_next,
    compare: CompareTimes = compare_step_times,
) -> None:
    """Work on the study, stage by stage, until it is done; the same command goes on.

    Args:
        config: Which part.
        console: Where progress is shown.
        protocol: The protocol.
        run: Carries out one run.
        compare: Compares the times of steps.

    Raises:
        ConfigMismatchError: If records, output directory or storage hold runs with other settings.
        DamagedFileError: If the records are damaged.
        ExperimentError: If a run can not be carried out, or records of finished runs are missing.
    """
    commit = git_commit(*_CODE)
    worker = _Worker(config, console, protocol, run, compare, _deadline(config), commit)
    keep_compiled_programs(config.output_dir)
    try:
        for stage in STAGES:
            if stage in config.stages and not worker.work_off(stage):
                return
    except TimeLimitError as end:
        worker.say(f"{end} The same command goes on.")
        return
    worker.say(
        "All runs that were asked for are recorded. The tables: python -m experiments report "
        f"{config.records.parent}"
    )


_WAIT = 5.0  # seconds between two looks at what others have recorded
_CODE = ("experiments", "seht_jax")
"""What the result of a run depends on: records that are added to a checkout do not change it."""


@dataclasses.dataclass(frozen=True)
class _Worker:
    """One process that works on the study.

    Attributes:
        config: Which part.
        console: Where progress is shown.
        protocol: The protocol.
        run: Carries out one run.
        compare: Compares the times of steps.
        deadline: When it should have ended, by `time.monotonic`; `None` is never.
        commit: The commit of the code.
    """

    config: StudyConfig
    console: Console
    protocol: Protocol
    run: RunFunction
    compare: CompareTimes
    deadline: float | None
    commit: str | None

    def work_off(self, stage: str) -> bool:
        """Carry out the runs of a stage, in all settings, that have no record.

        Returns:
            Whether all of them have one now.

        Raises:
            ExperimentError: If the stage can not be planned yet, or the storage says of runs
                without a record that they are finished.
            TimeLimitError: If there is no time for the next run.
        """
        config = self.config
        records = read_records(config.records)
        plans = plan_study(self.protocol, records)
        chosen = [plan for plan in plans if plan.stage == stage and plan.setting in config.settings]
        self._check_planned(stage, chosen)
        missing = [run for plan in chosen for run in plan.missing(records)]
        total = sum(len(plan.runs) for plan in chosen)
        self.say(f"Stage {stage}: {total - len(missing)} of {total} runs are recorded.")
        if not missing:
            return True
        runs = {run.key: run for run in missing}
        planned = {
            key: plan_run(run, config.output_dir, config.data_dir) for key, run in runs.items()
        }
        if stage == "times":
            return self._compare_times(runs, planned, records)
        keys = {each.config.resolved_run_dir: key for key, each in planned.items()}

        def carry_out(settings: TrainConfig, train: RunFunction, console: Console) -> Outcome:
            key = keys[settings.resolved_run_dir]
            self._check_time(runs[key])
            return carry_out_and_record(
                runs[key],
                planned[key],
                self.protocol.measurement,
                config.records,
                self.commit,
                train,
                console,
            )

        queue = RunQueue(
            config.storage or sqlite_url(config.output_dir / "study.db"),
            NAME,
            _as_sweep(plans),
            list(planned.values()),
        )
        if config.together > 1:
            runs = self._work_off_together(runs, planned)
            return not runs
        work(
            queue,
            "validation_loss",
            self.run,
            self.console,
            carry_out=carry_out,
            wait=self._wait,
        )
        self._check_recorded(stage, runs)
        return True

    def _work_off_together(
        self, runs: Mapping[str, StudyRun], planned: Mapping[str, PlannedRun]
    ) -> dict[str, StudyRun]:
        """Carry out runs of one method as one program; other processes take other methods.

        Returns:
            The runs that are left to commands without ``--together``, as they were begun by
            themselves.

        Raises:
            TimeLimitError: If the time is over.
        """
        left = {
            key: run
            for key, run in runs.items()
            if is_begun_alone(planned[key].config.resolved_run_dir)
        }
        shared = {key: run for key, run in runs.items() if key not in left}
        size = self.config.together

        def train_row(keys: Sequence[str]) -> None:
            for start in range(0, len(keys), size):
                part = [shared[key] for key in keys[start : start + size]]
                self._train_together(part, planned)

        self._work_off_rows(shared, train_row)
        left = {key: left[key] for key in self._without_record(left)}
        if left:
            self.say(
                f"{len(left)} runs are left to the same command without --together, as they were "
                "begun by themselves."
            )
        return left

    def _compare_times(
        self,
        runs: Mapping[str, StudyRun],
        planned: Mapping[str, PlannedRun],
        records: Mapping[str, Record],
    ) -> bool:
        """Compare the times of the finalists' steps with plain training's.

        Returns:
            Whether it is done.

        Raises:
            TimeLimitError: If the time is over.
        """
        if self.config.together > 1:
            self.say(
                "The times of steps are left to the same command without --together; give it a "
                "core, or a GPU, of its own."
            )
            return False
        settings = {setting.name: setting for setting in self.protocol.settings}

        def compare_row(keys: Sequence[str]) -> None:
            for key in keys:
                self._check_deadline(key)
                self.say(key)
                time_and_record(
                    runs[key],
                    planned[key],
                    plain_finalist(self.protocol, settings[runs[key].setting], records),
                    self.config.records,
                    self.commit,
                    self.compare,
                    self.console,
                )

        self._work_off_rows(runs, compare_row)
        return True

    def _work_off_rows(
        self, runs: Mapping[str, StudyRun], carry_out: Callable[[Sequence[str]], None]
    ) -> None:
        """Take rows, whose runs have no record, until there are none; others take other rows.

        Raises:
            TimeLimitError: If the time is over.
        """
        while missing := self._without_record(runs):
            taken = 0
            for row in sorted({_row_of(key) for key in missing}):
                with contextlib.ExitStack() as held:
                    try:
                        held.enter_context(self._hold(row))
                    except BlockingIOError:
                        continue
                    taken += 1
                    carry_out([key for key in self._without_record(runs) if _row_of(key) == row])
            if not taken:
                self._wait(_WAIT)

    def _train_together(self, runs: Sequence[StudyRun], planned: Mapping[str, PlannedRun]) -> None:
        """Train runs as one program, and record them.

        Raises:
            TimeLimitError: If the time is over.
        """
        self._check_deadline(runs[0].key)
        configs = [planned[run.key].config for run in runs]
        self.say("\n".join(run.key for run in runs))
        data = load_data_once(configs[0].data)
        # What diverged before, and lost its record, is not trained again.
        new = [config for config in configs if read_outcome(config.resolved_run_dir) is None]
        outcomes = train_together(new, data, self.console) if new else []
        by_directory = {
            config.resolved_run_dir: outcome for config, outcome in zip(new, outcomes, strict=True)
        }
        for run, config in zip(runs, configs, strict=True):
            carry_out_and_record(
                run,
                planned[run.key],
                self.protocol.measurement,
                self.config.records,
                self.commit,
                functools.partial(_give, by_directory.get(config.resolved_run_dir)),
                self.console,
            )

    def _without_record(self, runs: Mapping[str, StudyRun]) -> list[str]:
        records = read_records(self.config.records)
        return [key for key in runs if key not in records]

    def _hold(self, row: str) -> contextlib.AbstractContextManager[None]:
        self.config.output_dir.mkdir(parents=True, exist_ok=True)
        return owner_lock(self.config.output_dir / f"{row}.lock")

    def say(self, message: str) -> None:
        """Print a line."""
        self.console.print(message, markup=False, highlight=False, soft_wrap=True)

    def _check_planned(self, stage: str, plans: Sequence[StagePlan]) -> None:
        """Check that the stages before are complete.

        Raises:
            ExperimentError: If they are not.
        """
        waiting = [
            name
            for name in self.config.settings
            if name not in {plan.setting for plan in plans}
            if name in {setting.name for setting in self.protocol.settings}
        ]
        if waiting:
            before = ", ".join(STAGES[: STAGES.index(stage)])
            raise ExperimentError(
                f"The stage {stage} of {', '.join(waiting)} can not be planned before all runs of "
                f"{before} are in {self.config.records}: add them to --stages."
            )

    def _check_recorded(self, stage: str, runs: Mapping[str, StudyRun]) -> None:
        """Check that all runs of a stage that is done have their record.

        Raises:
            ExperimentError: If some have not.
        """
        records = read_records(self.config.records)
        without = [key for key in runs if key not in records]
        if without:
            raise ExperimentError(
                f"{len(without)} runs of the stage {stage} are finished by what the storage says, "
                f"and have no record in {self.config.records}, {without[0]} for one. Restore the "
                "file; or pass another --storage, and what is in the output directory is recorded "
                "without being run again."
            )

    def _check_deadline(self, key: str) -> None:
        """Check that there is time at all.

        Raises:
            TimeLimitError: If not.
        """
        if self.deadline is not None and time.monotonic() >= self.deadline:
            raise TimeLimitError(f"The time is over, and {key} is not begun.")

    def _check_time(self, run: StudyRun) -> None:
        """Check that a run would probably end in time.

        Raises:
            TimeLimitError: If not.
        """
        if self.deadline is None:
            return
        left = self.deadline - time.monotonic()
        seconds = expected_seconds(run, read_records(self.config.records).values())
        if left <= 0 or (seconds is not None and seconds > left):
            likely = "" if seconds is None else f"; runs like it took {seconds / 60:.1f} min"
            raise TimeLimitError(
                f"There are {max(left, 0) / 60:.1f} min left, and {run.key} is not begun{likely}."
            )

    def _wait(self, seconds: float) -> None:
        """Wait, but not longer than the command may take.

        Raises:
            TimeLimitError: If it has taken that long.
        """
        if self.deadline is not None:
            left = self.deadline - time.monotonic()
            if left <= 0:
                raise TimeLimitError("The time is over while others have the last runs of a stage.")
            seconds = min(seconds, left)
        time.sleep(seconds)


def _row_of(key: str) -> str:
    """Return the directory of a row: all runs of a stage with one method, under one condition."""
    return key.split("/")[1]


def _give(outcome: Any, *_: Any) -> dict[str, Any]:
    """Return what came of a run that was trained before, as a `RunFunction` does.

    Raises:
        DivergedError: If it diverged.
    """
    if isinstance(outcome, DivergedError):
        raise outcome
    return outcome


def _as_sweep(plans: Sequence[StagePlan]) -> Sweep:
    """Write all stages as one table: the study in the storage may grow, and may not change."""
    rows = tuple(row for plan in plans for row in plan.rows)
    return Sweep(NAME, "The study", rows, selected_by="validation_loss")


def _deadline(config: StudyConfig) -> float | None:
    return None if config.time_limit is None else time.monotonic() + 60 * config.time_limit
