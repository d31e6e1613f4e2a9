"""A worker: what it records, how it stops, how it goes on."""

import contextlib

import pytest
from sweep_worker import NUM_RUNS, SWEEP, begun, database_away, fake_run

from experiments.errors import DivergedError, ExperimentError, StorageError
from experiments.sweep.worker import work


def keys(queue):
    waiting = []
    while (claim := queue.claim()) is not None:
        waiting.append(claim.run.key)
    return waiting


def stop_at(number, error):
    """A run that is stopped when it is the number-th."""
    started = []

    def run(config, console):
        started.append(config)
        if len(started) == number:
            raise error
        return fake_run(config, console)

    return run


def test_all_runs_are_carried_out_and_counted(open_queue, console, tmp_path):
    progress = work(open_queue(), SWEEP.selected_by, fake_run, console)
    assert (progress.finished, progress.diverged) == (NUM_RUNS, 0)
    assert len(begun(tmp_path)) == NUM_RUNS
    text = console.file.getvalue()
    assert "Run 1 of 6: runs/plain/seed0 \n" in text
    assert "Run 6 of 6: runs/seht-h/seht-h.lam=0.0001/seed1 about 0 min left\n" in text
    assert work(open_queue(), SWEEP.selected_by, fake_run, console) == progress
    assert len(begun(tmp_path)) == NUM_RUNS


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("no space left on device")])
def test_a_worker_that_is_stopped_gives_its_run_back(open_queue, console, tmp_path, error):
    with pytest.raises(type(error)):
        work(open_queue(), SWEEP.selected_by, stop_at(2, error), console)
    assert len(begun(tmp_path)) == 1
    progress = work(open_queue(), SWEEP.selected_by, fake_run, console)
    assert progress.finished == NUM_RUNS
    assert len(begun(tmp_path)) == NUM_RUNS


@pytest.mark.parametrize("call", ["claim", "progress", "complete"])
def test_a_database_that_is_away_for_a_while_costs_nothing(open_queue, console, monkeypatch, call):
    queue = open_queue()
    ask, away = getattr(queue, call), iter([True, True])

    def ask_twice_in_vain(*arguments):
        with database_away(queue) if next(away, False) else contextlib.nullcontext():
            return ask(*arguments)

    monkeypatch.setattr(queue, call, ask_twice_in_vain)
    progress = work(queue, SWEEP.selected_by, fake_run, console, poll_seconds=0.01)
    assert progress.finished == NUM_RUNS
    text = console.file.getvalue()
    assert text.count("server is away") == text.count("It is tried again.") == 1


@pytest.fixture
def run_without_database():
    """Make a run that begins where the queue's database goes away, until the end of the test."""
    with contextlib.ExitStack() as stack:

        def made(queue, run):
            def begin(config, console):
                stack.enter_context(database_away(queue))
                return run(config, console)

            return begin

        yield made


def test_a_database_that_stays_away_stops_the_worker_and_the_result_is_kept(
    open_queue, console, tmp_path, run_without_database
):
    queue = open_queue()
    run = run_without_database(queue, fake_run)
    with pytest.raises(StorageError, match=r"server is away(.|\n)*It was tried again for 0 s"):
        work(queue, SWEEP.selected_by, run, console, poll_seconds=0.01, patience_seconds=0.05)
    assert len(list(tmp_path.glob("runs/**/result.json"))) == len(begun(tmp_path)) == 1


@pytest.mark.parametrize(
    ("error", "patience_seconds"),
    [(KeyboardInterrupt(), 600.0), (OSError("no space left on device"), 0.0)],
)
def test_a_database_that_is_away_hides_no_error_and_ctrl_c_does_not_wait(
    open_queue, console, monkeypatch, run_without_database, error, patience_seconds
):
    queue, waits = open_queue(), []
    monkeypatch.setattr("experiments.sweep.worker.time.sleep", waits.append)
    run = run_without_database(queue, stop_at(1, error))
    with pytest.raises(type(error)):
        work(queue, SWEEP.selected_by, run, console, patience_seconds=patience_seconds)
    assert waits == []
    assert "server is away" in console.file.getvalue()
    assert "The run is not handed back." in console.file.getvalue()


def test_a_run_that_diverges_is_recorded_and_the_sweep_goes_on(open_queue, console):
    def run(config, console):
        if config.seed == 0 and not config.method:
            config.run_dir.mkdir(parents=True)
            raise DivergedError("The run diverged at step 7.")
        return fake_run(config, console)

    progress = work(open_queue(), SWEEP.selected_by, run, console)
    assert (progress.finished, progress.diverged) == (NUM_RUNS - 1, 1)
    assert "diverged at step 7. The sweep goes on." in console.file.getvalue()


def test_results_that_nothing_can_be_chosen_by_stop_the_sweep(open_queue, console):
    queue = open_queue()
    with pytest.raises(ExperimentError, match="chooses by 'validation_f1', which is none of"):
        work(queue, "validation_f1", fake_run, console)
    assert len(keys(queue)) == NUM_RUNS


def test_a_worker_waits_for_the_runs_of_others(open_queue, console, tmp_path):
    other, queue = open_queue(), open_queue()
    claim = other.claim()

    def run(config, console):
        result = fake_run(config, console)
        if len(begun(tmp_path)) == NUM_RUNS - 1:  # the last but the other's, which now stops
            other.give_back(claim)
        return result

    assert work(queue, SWEEP.selected_by, run, console, poll_seconds=0.01).finished == NUM_RUNS
