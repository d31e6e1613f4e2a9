"""The queue of a sweep's runs: an Optuna study that any number of workers share.

Every run is one Optuna trial, enqueued with its settings. Optuna's own `GridSampler` would choose
among grid points when it is asked, and may give one point to two workers; here all are enqueued
beforehand, and a worker takes the first that waits, under a lock. A trial whose worker died is
failed by Optuna when its heartbeat has stopped for a while, and its run is enqueued again.
"""

import contextlib
import math
import os
import platform
import threading
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import optuna
import sqlalchemy
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import (
    ExperimentalWarning,
    OptunaError,
    StorageInternalError,
    UpdateFinishedTrialError,
)
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import URL
from sqlalchemy.exc import SQLAlchemyError

from experiments.config import check_settings
from experiments.errors import ExperimentError, StorageError
from experiments.json_file import check_kind
from experiments.sweep.definition import Sweep, more_is_better
from experiments.sweep.lock import database_lock
from experiments.sweep.plan import PlannedRun, compare_settings, settings_of
from experiments.sweep.storage_url import hide_password, parse_storage_url, without_password

HEARTBEAT_SECONDS = 30
GRACE_SECONDS = 120

# What Optuna and SQLAlchemy raise where the database does not do what it is asked.
_DATABASE_ERRORS = (SQLAlchemyError, StorageInternalError)
# What they raise where it answers, with rows that are none of Optuna's, or of another version.
_UNREADABLE = (OptunaError, ValueError, LookupError, TypeError, RuntimeError)
_LARGEST_SEED = 2**31 - 1
_FAILURE = "failure"
_SQLITE_TIMEOUT_SECONDS = 100


class Claim(NamedTuple):
    """A run that this worker has taken.

    Attributes:
        trial_id: Optuna's id of the trial.
        run: The run.
    """

    trial_id: int
    run: PlannedRun


class Progress(NamedTuple):
    """How far the runs of a queue are.

    Attributes:
        finished: Runs that came to the last epoch.
        diverged: Runs that did not.
        running: Runs that a worker has, this one's included.
        waiting: The others.
        seconds_left: Time that running and waiting runs take one worker, by the time that finished
            runs of the same row took; `None` before the first is finished.
    """

    finished: int
    diverged: int
    running: int
    waiting: int
    seconds_left: float | None

    @property
    def done(self) -> int:
        """Runs that are not run again."""
        return self.finished + self.diverged

    @property
    def total(self) -> int:
        """All runs."""
        return self.done + self.running + self.waiting


class RunQueue:
    """The runs of a sweep, of which each is taken by one worker at a time.

    Every method but `heartbeat` may raise `StorageError`, and may be called again after it.
    """

    def __init__(
        self,
        url: str,
        study_name: str,
        sweep: Sweep,
        runs: Sequence[PlannedRun],
        *,
        heartbeat_seconds: int = HEARTBEAT_SECONDS,
        grace_seconds: int = GRACE_SECONDS,
    ) -> None:
        """Open the study, or make it, and enqueue the runs that it does not have.

        Args:
            url: ``sqlite:///FILE`` or ``postgresql://USER:PASSWORD@HOST/DATABASE``.
            study_name: Name of the study in that database.
            sweep: The sweep, whose settings must be those of an earlier call.
            runs: The runs; a study may have others, at more seeds, which are left to others.
            heartbeat_seconds: Time between two signs of life of a worker.
            grace_seconds: Time without one after which a run is taken from its worker.

        Raises:
            ConfigMismatchError: If the study holds runs with other settings.
            StorageError: If the database is of another kind, does not answer, or has a study of
                that name that is none of a sweep.
        """
        self._url = parse_storage_url(url)
        self._study_name = study_name
        self._runs = {run.key: run for run in runs}
        self._order = {key: i for i, key in enumerate(self._runs)}
        self._ranges = _ranges(runs)
        self._heartbeat_seconds = heartbeat_seconds
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        # Locked from the beginning: two workers must not make the tables at once either.
        with self._lock():
            self._storage = _open_storage(self._url, heartbeat_seconds, grace_seconds)
            self._study = optuna.create_study(
                study_name=study_name,
                storage=self._storage,
                sampler=optuna.samplers.RandomSampler(),  # which is never asked
                direction="maximize" if more_is_better(sweep.selected_by) else "minimize",
                load_if_exists=True,
            )
            compare_settings(
                self._stored_settings(),
                sweep,
                f"The study {study_name!r} in {without_password(self._url)}",
                "Pass another --study and --output-dir, or take back the changes to go on "
                "with what is there.",
            )
            self._study.set_user_attr("settings", settings_of(sweep))
            self._enqueue_missing()

    def claim(self) -> Claim | None:
        """Take the first run that waits, those of workers that died included.

        Runs that failed come behind those that did not, so that one that can not be carried out
        keeps no worker from the others.

        Returns:
            The run, or `None` if none waits; some may still be running.
        """
        with self._lock():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                optuna.storages.fail_stale_trials(self._study)
            self._enqueue_missing()
            trials = self._trials(TrialState.WAITING, TrialState.FAIL)
            waiting = [trial for trial in trials if trial.state == TrialState.WAITING]
            if not waiting:
                return None
            failures = Counter(_key(trial) for trial in trials if _FAILURE in trial.user_attrs)
            trial = min(
                waiting, key=lambda trial: (failures[_key(trial)], self._order[_key(trial)])
            )
            trial_id = self._trial_id(trial)
            self._storage.set_trial_user_attr(
                trial_id, "worker", f"{platform.node()}:{os.getpid()}"
            )
            # Before it runs: a worker that is killed right here would never be found out.
            self._storage.record_heartbeat(trial_id)
            self._storage.set_trial_state_values(trial_id, TrialState.RUNNING)
            return Claim(trial_id, self._runs[_key(trial)])

    @contextlib.contextmanager
    def heartbeat(self, claim: Claim) -> Iterator[None]:
        """Give signs of life while a run is carried out.

        Args:
            claim: The run.

        Yields:
            Nothing.
        """
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(self._heartbeat_seconds):
                # A server that is away for a moment costs a beat, not the run.
                with contextlib.suppress(*_DATABASE_ERRORS):
                    self._storage.record_heartbeat(claim.trial_id)

        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def complete(self, claim: Claim, result: Mapping[str, Any], value: float) -> bool:
        """Record the result of a run.

        Args:
            claim: The run.
            result: The result.
            value: What a point of the grid is chosen by.

        Returns:
            Whether the run was still this worker's.
        """
        return self._end(claim, TrialState.COMPLETE, {"result": dict(result)}, [value])

    def diverge(self, claim: Claim, message: str) -> bool:
        """Record that a run diverged; it counts as done.

        Args:
            claim: The run.
            message: What happened.

        Returns:
            Whether the run was still this worker's.
        """
        return self._end(claim, TrialState.PRUNED, {"diverged": message})

    def give_back(self, claim: Claim) -> bool:
        """Let a run that was stopped be the next that a worker takes.

        Args:
            claim: The run.

        Returns:
            Whether the run was still this worker's.
        """
        return self._end(claim, TrialState.FAIL, {})

    def fail(self, claim: Claim, reason: str) -> bool:
        """Let a run that could not be carried out wait behind the others.

        Args:
            claim: The run.
            reason: Why.

        Returns:
            Whether the run was still this worker's.
        """
        return self._end(claim, TrialState.FAIL, {_FAILURE: reason})

    def progress(self) -> Progress:
        """Count the runs.

        Returns:
            How far they are.
        """
        with self._errors_named():
            trials = self._trials(TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
        finished, diverged, running = (
            [trial for trial in trials if trial.state == state]
            for state in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
        )
        return Progress(
            finished=len(finished),
            diverged=len(diverged),
            running=len(running),
            waiting=len(self._runs) - len(finished) - len(diverged) - len(running),
            seconds_left=self._seconds_left(finished, done=[*finished, *diverged]),
        )

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        with self._errors_named(), database_lock(self._url, f"sweep {self._study_name}"):
            yield

    @contextlib.contextmanager
    def _errors_named(self) -> Iterator[None]:
        """Say of an error of the database which storage it is.

        Raises:
            ExperimentError: What is raised within, as it is.
            StorageError: In place of an error of the database.
            UpdateFinishedTrialError: As it is.
        """
        try:
            yield
        except (ExperimentError, UpdateFinishedTrialError):
            raise
        except _DATABASE_ERRORS as error:
            # Optuna's own words are a guess at the cause, which SQLAlchemy's name.
            cause = error.__cause__ if isinstance(error, StorageInternalError) else error
            raise StorageError(
                f"the storage {without_password(self._url)} can not be used: "
                + hide_password(str(cause or error), self._url)
            ) from error
        except _UNREADABLE as error:
            raise StorageError(
                f"the storage {without_password(self._url)} holds what Optuna can not read, "
                f"{type(error).__name__}: {hide_password(str(error), self._url)}\nTake another "
                "database, or restore this one."
            ) from error

    def _stored_settings(self) -> dict[str, dict[str, Any]]:
        """Read what the study says of its runs.

        Raises:
            StorageError: If it is none of a sweep.
        """
        stored = self._study.user_attrs.get("settings", {})
        try:
            for settings in check_kind(stored, dict[str, Any], "the settings").values():
                check_settings(settings)
        except ValueError as error:
            raise StorageError(
                f"the study {self._study_name!r} in {without_password(self._url)} is damaged, or "
                f"none of a sweep: {error}. Pass another --study."
            ) from error
        return stored

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        trials = self._study.get_trials(deepcopy=False, states=states)
        return [trial for trial in trials if _key(trial) in self._runs]

    def _trial_id(self, trial: FrozenTrial) -> int:
        study_id = self._storage.get_study_id_from_name(self._study_name)
        return self._storage.get_trial_id_from_study_id_trial_number(study_id, trial.number)

    def _enqueue_missing(self) -> None:
        alive = set(TrialState) - {TrialState.FAIL}
        present = {_key(trial) for trial in self._trials(*alive)}
        for key, run in self._runs.items():
            if key not in present:
                self._study.add_trial(
                    optuna.trial.create_trial(
                        state=TrialState.WAITING,
                        params=_params(run),
                        distributions={name: self._ranges[name] for name in _params(run)},
                        user_attrs={"run": key, "row": run.label, **run.values},
                    )
                )

    def _end(
        self,
        claim: Claim,
        state: TrialState,
        attributes: Mapping[str, Any],
        values: Sequence[float] | None = None,
    ) -> bool:
        try:
            with self._errors_named():
                for name, value in attributes.items():
                    self._storage.set_trial_user_attr(claim.trial_id, name, value)
                self._storage.set_trial_state_values(claim.trial_id, state, values)
        except UpdateFinishedTrialError:
            return False
        return True

    def _seconds_left(
        self, finished: Sequence[FrozenTrial], done: Sequence[FrozenTrial]
    ) -> float | None:
        seconds: dict[str, list[float]] = {}
        for trial in finished:
            seconds.setdefault(self._runs[_key(trial)].label, []).append(_seconds(trial))
        if not seconds:
            return None
        means = {label: sum(each) / len(each) for label, each in seconds.items()}
        overall = sum(means.values()) / len(means)
        done_keys = {_key(trial) for trial in done}
        return sum(
            means.get(run.label, overall) for key, run in self._runs.items() if key not in done_keys
        )


def _open_storage(
    url: URL, heartbeat_seconds: int, grace_seconds: int
) -> optuna.storages.RDBStorage:
    # No connection stays open: a run takes hours, which a server need not survive.
    options: dict[str, Any] = {"poolclass": sqlalchemy.NullPool}
    if url.get_backend_name() == "sqlite":
        options["connect_args"] = {"timeout": _SQLITE_TIMEOUT_SECONDS}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return optuna.storages.RDBStorage(
            url.render_as_string(hide_password=False),
            engine_kwargs=options,
            heartbeat_interval=heartbeat_seconds,
            grace_period=grace_seconds,
        )


def _key(trial: FrozenTrial) -> str:
    """Read which run a trial is; one of somebody else's in the same study is none."""
    key = trial.user_attrs.get("run")
    return key if isinstance(key, str) else ""


def _params(run: PlannedRun) -> dict[str, float]:
    """Choose what Optuna shows as parameters: the numbers; the rest are attributes."""
    numbers = {
        name: float(value)
        for name, value in run.values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }
    return {"seed": run.config.seed, **numbers}


def _ranges(runs: Sequence[PlannedRun]) -> dict[str, BaseDistribution]:
    values: dict[str, list[float]] = {}
    for run in runs:
        for name, value in _params(run).items():
            values.setdefault(name, []).append(value)
    ranges: dict[str, BaseDistribution] = {
        name: FloatDistribution(min(each), max(each)) for name, each in values.items()
    }
    return ranges | {"seed": IntDistribution(0, _LARGEST_SEED)}


def _seconds(trial: FrozenTrial) -> float:
    """Tell how long a run took, the parts before an interruption included."""
    duration = trial.duration.total_seconds() if trial.duration else 0.0
    result = trial.user_attrs.get("result")
    seconds = result.get("training_seconds") if isinstance(result, dict) else None
    return max(duration, seconds) if isinstance(seconds, int | float) else duration
