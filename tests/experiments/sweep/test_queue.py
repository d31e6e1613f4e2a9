"""The queue, on SQLite and on a PostgreSQL server."""

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext

import optuna
import pytest
import sqlalchemy
import sweep_worker
from optuna.study import StudyDirection
from optuna.trial import TrialState
from sweep_worker import NUM_RUNS, SWEEP, begun, with_strengths

from experiments.config import TrainConfig
from experiments.errors import ConfigMismatchError, ExperimentError, StorageError
from experiments.sweep.definition import Row
from experiments.sweep.storage_url import parse_storage_url


def trials_of(storage, *states):
    # A pool would leave connections open.
    opened = optuna.storages.RDBStorage(storage, engine_kwargs={"poolclass": sqlalchemy.NullPool})
    study = optuna.load_study(study_name="study", storage=opened)
    return study.get_trials(states=states or None)


@pytest.fixture
def trials(tmp_path):
    """What is in the file of `open_queue`."""
    return lambda: trials_of(f"sqlite:///{tmp_path / 'sweep.db'}")


@pytest.fixture
def start_worker(checkout, storage, tmp_path):
    """Start workers in processes of their own; whatever happens, they end with the test."""
    processes = []

    def start(grace_seconds, *arguments):
        settings = [storage, str(tmp_path), str(grace_seconds), *arguments]
        command = [sys.executable, sweep_worker.__file__, *settings]
        environment = os.environ | {"PYTHONPATH": str(checkout), "JAX_PLATFORMS": "cpu"}
        processes.append(subprocess.Popen(command, env=environment, cwd=tmp_path))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()


def test_two_workers_that_start_at_once_run_every_run_exactly_once(start_worker, storage, tmp_path):
    workers = [start_worker(600), start_worker(600)]
    assert [worker.wait() for worker in workers] == [0, 0]
    runs = begun(tmp_path)
    assert len(runs) == len({run for run, _ in runs}) == NUM_RUNS
    assert [trial.state for trial in trials_of(storage)] == [TrialState.COMPLETE] * NUM_RUNS
    assert len({trial.user_attrs["run"] for trial in trials_of(storage)}) == NUM_RUNS


def test_a_killed_workers_run_is_taken_up_again_where_it_was(start_worker, storage, tmp_path):
    killed = start_worker(600, "hang")
    while not list(tmp_path.glob("runs/**/checkpoint")):
        assert killed.poll() is None
        time.sleep(0.1)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    (checkpoint,) = tmp_path.glob("runs/**/checkpoint")
    (lost,) = trials_of(storage, TrialState.RUNNING)

    assert start_worker(2).wait() == 0
    runs = [run for run, _ in begun(tmp_path)]
    assert sorted(runs) == sorted(set(runs))
    assert len(runs) == NUM_RUNS
    assert runs.count(str(checkpoint.parent)) == 1
    (failed,) = trials_of(storage, TrialState.FAIL)
    assert failed.number == lost.number
    assert len(trials_of(storage, TrialState.COMPLETE)) == NUM_RUNS


def test_a_run_is_claimed_once_seed_by_seed_in_the_order_of_the_rows(storage, tmp_path):
    first, second = (sweep_worker.open_queue(storage, tmp_path) for _ in range(2))
    claimed = []
    while (claim := first.claim() or second.claim()) is not None:
        claimed.append(claim.run)
        first, second = second, first
    assert [run.config.seed for run in claimed] == [0, 0, 0, 1, 1, 1]
    assert [run.label for run in claimed] == ["Plain", "SEHT-H", "SEHT-H"] * 2
    assert len({run.key for run in claimed}) == NUM_RUNS
    assert first.progress()._asdict() == {
        "finished": 0,
        "diverged": 0,
        "running": NUM_RUNS,
        "waiting": 0,
        "seconds_left": None,
    }


@pytest.mark.parametrize(
    ("selected_by", "direction"),
    [
        ("validation_accuracy", StudyDirection.MAXIMIZE),
        ("validation_perplexity", StudyDirection.MINIMIZE),
    ],
)
def test_the_study_has_the_direction_of_its_figure(open_queue, selected_by, direction):
    queue = open_queue(dataclasses.replace(SWEEP, selected_by=selected_by))
    assert queue._study.direction == direction


def test_a_run_that_is_given_back_is_the_next(open_queue):
    queue = open_queue()
    claim, other = queue.claim(), queue.claim()
    assert queue.give_back(claim)
    assert queue.claim().run == claim.run != other.run


def test_a_run_that_failed_comes_behind_the_others(open_queue):
    queue = open_queue()
    failed = queue.claim()
    assert queue.fail(failed, "OutOfMemory()")
    others = [queue.claim().run for _ in range(NUM_RUNS - 1)]
    assert failed.run not in others
    assert queue.claim().run == failed.run


def test_what_is_done_is_recorded_and_not_run_again(open_queue, trials):
    queue = open_queue(num_seeds=1)
    assert queue.complete(queue.claim(), {"validation_accuracy": 0.5, "test_accuracy": 0.4}, 0.5)
    assert queue.diverge(queue.claim(), "The run diverged at step 7.")
    claim = queue.claim()
    assert claim.run.values == {"seht-h.lam": 1e-4}
    assert open_queue(num_seeds=1).claim() is queue.claim() is None
    progress = queue.progress()
    assert (progress.finished, progress.diverged) == (1, 1)
    assert (progress.running, progress.waiting) == (1, 0)
    finished, diverged, _ = trials()
    assert (finished.value, finished.user_attrs["result"]["test_accuracy"]) == (0.5, 0.4)
    assert finished.user_attrs["row"] == "Plain"
    assert diverged.state == TrialState.PRUNED
    assert diverged.user_attrs["diverged"] == "The run diverged at step 7."
    assert diverged.params == {"seed": 0, "seht-h.lam": 1e-5}


def test_the_time_left_is_that_of_runs_of_the_same_row(open_queue):
    queue = open_queue(num_seeds=1)
    assert queue.progress().seconds_left is None
    queue.complete(queue.claim(), {"training_seconds": 100.0}, 0.5)
    assert queue.progress().seconds_left == pytest.approx(200)  # two more, of another row
    queue.complete(queue.claim(), {"training_seconds": 1000.0}, 0.5)
    assert queue.progress().seconds_left == pytest.approx(1000)


def test_a_worker_learns_that_its_run_was_given_to_another(open_queue):
    queue = open_queue()
    claim = queue.claim()
    queue.give_back(claim)
    assert not queue.complete(claim, {"validation_accuracy": 0.5}, 0.5)


def test_a_worker_gives_signs_of_life_as_long_as_it_has_a_run(open_queue, monkeypatch):
    beats, third = [], threading.Event()

    def record(storage, trial_id):
        beats.append(trial_id)
        if len(beats) == 3:
            third.set()
        elif len(beats) == 2:
            raise optuna.exceptions.StorageInternalError("the server is away for a moment")

    queue = open_queue()
    claim = queue.claim()
    monkeypatch.setattr(optuna.storages.RDBStorage, "record_heartbeat", record)
    with queue.heartbeat(claim):
        assert third.wait(60)
    assert set(beats) == {claim.trial_id}
    assert "heartbeat" not in [thread.name for thread in threading.enumerate()]


@pytest.mark.parametrize("grown", [SWEEP, with_strengths(*sweep_worker.STRENGTHS, 1e-2)])
def test_a_study_may_grow(open_queue, grown):
    few = open_queue(num_seeds=1)
    while (claim := few.claim()) is not None:
        few.complete(claim, {}, 0.5)
    more = open_queue(grown, num_seeds=2)
    progress = more.progress()
    assert progress.finished == 3
    assert progress.waiting == 2 * len(grown.points()) - 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_strengths(1e-5), "seht-h.lam=0.0001: there, but no longer part of the sweep"),
        (
            dataclasses.replace(
                SWEEP, rows=(Row("Plain", TrainConfig(method=(), epochs=99)), SWEEP.rows[1])
            ),
            "runs/plain: epochs is 10 there, and 99 in the sweep",
        ),
    ],
)
def test_changed_settings_are_an_error_that_names_the_fix(open_queue, trials, change, message):
    open_queue()
    before = trials()
    with pytest.raises(ConfigMismatchError) as caught:
        open_queue(change)
    assert message in str(caught.value)
    assert "Pass another --study and --output-dir" in str(caught.value)
    assert trials() == before


@pytest.mark.parametrize(
    "url", ["mysql://root:secret@localhost/db", "sqlite://", "sqlite:///:memory:", "sweep.db"]
)
def test_a_storage_that_workers_can_not_share_is_refused(url, tmp_path):
    with pytest.raises(ExperimentError, match="storage must be sqlite:///FILE or post") as caught:
        sweep_worker.open_queue(url, tmp_path)
    assert "secret" not in str(caught.value)


def test_a_server_that_does_not_answer_is_named_without_its_password(tmp_path):
    url = f"postgresql://me:secret@/db?host={tmp_path}"
    with pytest.raises(ExperimentError, match="can not be used") as caught:
        sweep_worker.open_queue(url, tmp_path)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "call",
    [
        lambda queue, claim: queue.claim(),
        lambda queue, claim: queue.progress(),
        lambda queue, claim: queue.complete(claim, {"test_accuracy": 0.5}, 0.5),
        lambda queue, claim: queue.diverge(claim, "The run diverged at step 7."),
        lambda queue, claim: queue.fail(claim, "OutOfMemory()"),
        lambda queue, claim: queue.give_back(claim),
    ],
    ids=["claim", "progress", "complete", "diverge", "fail", "give_back"],
)
def test_a_database_that_goes_away_is_named_without_its_password(open_queue, monkeypatch, call):
    queue = open_queue(num_seeds=1)
    claim, before = queue.claim(), queue.progress()
    with sweep_worker.database_away(queue), monkeypatch.context() as patch:
        patch.setattr(queue, "_url", parse_storage_url("postgresql://me:secret@host/db"))
        patch.setattr("experiments.sweep.queue.database_lock", lambda url, name: nullcontext())
        with pytest.raises(StorageError, match=r"can not be used: .*server is away") as caught:
            call(queue, claim)
    assert "postgresql://me:***@host/db" in str(caught.value)
    assert queue.progress() == before
    call(queue, claim)


def test_a_file_that_is_no_database_is_refused(tmp_path):
    path = tmp_path / "thesis.txt"
    path.write_text("years of work, in many words, longer than the header of a database. " * 4)
    with pytest.raises(ExperimentError, match="can not be used"):
        sweep_worker.open_queue(f"sqlite:///{path}", tmp_path)
    assert "years of work" in path.read_text()
