"""The command: what it runs, what it does not run again, when it ends."""

import contextlib
import dataclasses
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest
import study_worker
from study_worker import NUM_RUNS, PROTOCOL, SETTING, begun, fake_run, record_of, work

from experiments.errors import (
    ConfigMismatchError,
    DivergedError,
    ExperimentError,
    SettingError,
)
from experiments.study import command
from experiments.study.command import StudyConfig
from experiments.study.records import append_record, read_records
from experiments.study.report import write_study_report
from experiments.study.stages import TUNING, plan_stage
from experiments.study.step_times import compare_step_times
from experiments.training.logging import TOGETHER
from experiments.training.loop import train
from experiments.training.run_directory import claim_run_directory, write_result

pytestmark = pytest.mark.usefixtures("no_measurement")


@pytest.fixture
def place(tmp_path):
    return tmp_path / "out", tmp_path / "results" / "runs.jsonl"


def test_all_stages_are_worked_off_one_after_the_other(place, console):
    work(*place, console=console)
    records = read_records(place[1])
    stages = [record.stage for record in records.values()]
    assert {stage: stages.count(stage) for stage in stages} == NUM_RUNS
    assert stages == [stage for stage, number in NUM_RUNS.items() for _ in range(number)]
    assert [run for run, _ in begun(place[0])] == [
        run for run, record in records.items() if record.stage != "times"
    ]
    text = console.file.getvalue()
    for stage, number in NUM_RUNS.items():
        assert f"Stage {stage}: 0 of {number} runs are recorded." in text
    assert "min left" in text


def test_test_figures_are_written_of_tested_runs_alone(place):
    work(*place)
    for record in read_records(place[1]).values():
        if record.stage == "times":
            continue
        tested = record.stage not in TUNING
        assert ("test_accuracy" in record.figures) == tested
        assert ("calibration_error" in record.figures) == tested
        assert record.figures["validation_accuracy"] > 0
        assert record.figures["seconds"] >= record.figures["training_seconds"]
        assert record.settings["data.checksum"]
        assert record.environment.keys() == {"jax", "python", "device", "cpu_count"}


def test_a_run_that_has_a_record_is_never_run_again(place, console):
    output_dir, records = place
    work(output_dir, records, stages=("plain",))
    assert len(begun(output_dir)) == NUM_RUNS["plain"]
    other = output_dir.with_name("other")  # neither runs nor queue are there
    work(other, records, stages=("plain", "strengths"), console=console)
    assert len(begun(other)) == NUM_RUNS["strengths"]
    assert "Stage plain: 4 of 4 runs are recorded." in console.file.getvalue()


def test_what_is_finished_without_a_record_is_recorded_without_being_run(place):
    output_dir, records = place
    work(output_dir, records, stages=("plain",))
    before = read_records(records)
    records.unlink()
    (output_dir / "study.db").unlink()
    work(output_dir, records, stages=("plain",))
    after = read_records(records)
    assert len(begun(output_dir)) == NUM_RUNS["plain"]
    assert before.keys() == after.keys()


def test_records_that_are_lost_while_the_storage_is_there_are_an_error(place):
    output_dir, records = place
    work(output_dir, records, stages=("plain",))
    records.unlink()
    with pytest.raises(ExperimentError, match="4 runs of the stage plain are finished"):
        work(output_dir, records, stages=("plain",))


def test_a_stage_before_its_time_is_an_error(place):
    with pytest.raises(ExperimentError, match="strengths of digits can not be planned before"):
        work(*place, stages=("strengths",))


def test_a_diverged_run_has_a_record_and_is_not_chosen(place):
    def run(config, console):
        if config.optimizer.learning_rate == 0.1 and config.seed == 100:
            result = fake_run(config, console)
            raise DivergedError(f"diverged at step {result['steps']}")
        return fake_run(config, console)

    work(*place, run=run, stages=("plain", "strengths"))
    records = read_records(place[1]).values()
    (diverged,) = [record for record in records if record.diverged]
    assert diverged.divergence == "diverged at step 40"
    assert diverged.figures == {}
    rates = {
        each.values["optimizer.learning_rate"] for each in records if each.stage == "strengths"
    }
    assert rates == {0.05}


def test_a_network_no_better_than_chance_has_diverged(place):
    def run(config, console):
        result = fake_run(config, console)
        if config.seed == 100:
            result |= {"validation_accuracy": 0.13}  # of 200 images, one of ten classes
        return result

    work(*place, run=run, stages=("plain",))
    records = read_records(place[1]).values()
    assert [each.diverged for each in records] == [each.seed == 100 for each in records]
    assert all(each.divergence.startswith("No better") for each in records if each.diverged)
    assert all(each.figures["validation_loss"] for each in records)


def test_a_changed_protocol_is_refused_by_records_runs_and_storage(place):
    output_dir, records = place
    base = dataclasses.replace(SETTING.base, epochs=5)
    protocol = dataclasses.replace(PROTOCOL, settings=(dataclasses.replace(SETTING, base=base),))
    work(output_dir, records, stages=("plain",))
    with pytest.raises(ConfigMismatchError, match="epochs: 4 there, 5 planned"):
        work(output_dir, records, protocol=protocol, stages=("plain",))
    records.unlink()
    with pytest.raises(ConfigMismatchError, match="The study 'study'"):
        work(output_dir, records, protocol=protocol, stages=("plain",))
    (output_dir / "study.db").unlink()
    with pytest.raises(ConfigMismatchError, match="epochs: 4 there, 5 planned"):
        work(output_dir, records, protocol=protocol, stages=("plain",))


def test_no_run_is_begun_that_would_not_end_in_time(place, console):
    output_dir, records = place
    first, *others = plan_stage(PROTOCOL, SETTING, "plain", {}).runs
    record = record_of(first)
    append_record(records, record._replace(figures=record.figures | {"seconds": 90.0}))
    work(output_dir, records, time_limit=1.0, console=console)
    assert begun(output_dir) == []
    assert len(read_records(records)) == 1
    text = console.file.getvalue()
    assert "1.0 min left" in text
    assert "is not begun; runs like it took 1.5 min. The same command goes on." in text
    work(output_dir, records, time_limit=2.0, stages=("plain",))
    assert len(begun(output_dir)) == len(others)


def test_an_interrupted_run_is_the_next_one(place):
    started = []

    def run(config, console):
        started.append(config.resolved_run_dir)
        if len(started) == 2:
            raise KeyboardInterrupt
        return fake_run(config, console)

    with pytest.raises(KeyboardInterrupt):
        work(*place, run=run, stages=("plain",))
    work(*place, run=run, stages=("plain",))
    assert started[1] == started[2]
    assert len(read_records(place[1])) == NUM_RUNS["plain"]


@pytest.mark.slow
def test_two_processes_share_the_work(place):
    output_dir, records = place
    arguments = [sys.executable, study_worker.__file__, str(output_dir), str(records)]
    root = Path(study_worker.__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root), str(root / "tests")])}
    workers = [subprocess.Popen(arguments, cwd=root, env=environment) for _ in range(2)]
    assert [worker.wait() for worker in workers] == [0, 0]
    assert len(read_records(records)) == sum(NUM_RUNS.values())
    runs = begun(output_dir)
    num_trained = sum(NUM_RUNS.values()) - NUM_RUNS["times"]
    assert len({run for run, _ in runs}) == len(runs) == num_trained
    assert len({process for _, process in runs}) == 2


@pytest.fixture
def trained_together(monkeypatch):
    """Let nothing be trained; the runs of each call."""
    calls = []

    def train_together(configs, data, console):
        calls.append([config.resolved_run_dir for config in configs])
        configs[0].resolved_run_dir.parent.mkdir(parents=True, exist_ok=True)
        results = [fake_run(config, console) | {TOGETHER: len(configs)} for config in configs]
        for config, result in zip(configs, results, strict=True):
            write_result(config.resolved_run_dir, result)
        return results

    monkeypatch.setattr(command, "train_together", train_together)
    return calls


def test_runs_of_one_method_are_trained_together(place, trained_together, console):
    output_dir, records = place
    work(output_dir, records, together=3, console=console)
    # What comes after the times waits for them.
    assert "The times of steps are left to the same command without" in console.file.getvalue()
    assert len(read_records(records)) == sum(NUM_RUNS[stage] for stage in ("plain", "strengths"))
    work(output_dir, records, stages=("times",))
    work(output_dir, records, together=3)
    done = read_records(records)
    assert len(done) == sum(NUM_RUNS.values())
    assert len(begun(output_dir)) == len(done) - NUM_RUNS["times"]
    assert max(map(len, trained_together)) == 3
    for directories in trained_together:
        rows = {directory.relative_to(output_dir).parts[1] for directory in directories}
        assert len(rows) == 1
    together = {str(each.relative_to(output_dir)) for call in trained_together for each in call}
    for run, record in done.items():
        assert (TOGETHER in record.figures) == (run in together)
        assert (run in together) == (record.stage != "times")
        assert not {"seconds", "training_seconds", "median_step_time"} & record.figures.keys()


def test_runs_that_diverge_together_have_records_and_are_not_trained_again(
    place, monkeypatch, console
):
    output_dir, records = place

    def diverge(configs, data, console):
        for config in configs:
            claim_run_directory(config.resolved_run_dir, config, data)
        return [DivergedError("It diverged.") for _ in configs]

    monkeypatch.setattr(command, "train_together", diverge)
    with pytest.raises(ExperimentError, match="plain training diverged at every point"):
        work(output_dir, records, stages=("plain", "strengths"), together=4)
    before = read_records(records)
    assert all(record.diverged for record in before.values())
    records.unlink()
    monkeypatch.setattr(command, "train_together", pytest.fail)
    work(output_dir, records, stages=("plain",), together=4)
    assert read_records(records).keys() == before.keys()


def test_a_run_that_was_begun_by_itself_is_left_alone(place, trained_together, console):
    output_dir, records = place
    key = plan_stage(PROTOCOL, SETTING, "plain", {}).runs[0].key
    (output_dir / key / "checkpoints" / "10").mkdir(parents=True)
    work(output_dir, records, stages=("plain",), together=4, console=console)
    assert read_records(records).keys() == {
        run.key for run in plan_stage(PROTOCOL, SETTING, "plain", {}).runs
    } - {key}
    assert "1 runs are left" in console.file.getvalue()


def test_a_method_that_another_process_is_at_is_left_to_it(place, trained_together, console):
    output_dir, records = place
    output_dir.mkdir(parents=True)
    with owner_lock_of_another_process(output_dir / "plain-digits-plain.lock"):
        options = {"stages": ("plain",), "together": 4, "console": console}
        work(output_dir, records, time_limit=0.05, **options)
        assert "while others have the last runs" in console.file.getvalue()
        assert not trained_together
    work(output_dir, records, stages=("plain",), together=4)
    assert len(read_records(records)) == NUM_RUNS["plain"]


def test_times_are_compared_with_plain_training_as_it_was_tuned(place):
    compared = []

    def compare(config, plain, console):
        compared.append((config, plain))
        return study_worker.compare(config, plain, console)

    work(*place, stages=("plain", "strengths", "times"), compare=compare)
    done = read_records(place[1])
    assert len(compared) == NUM_RUNS["times"]
    for (config, plain), record in zip(compared, list(done.values())[-3:], strict=True):
        assert record.stage == "times"
        assert record.figures["step_time_ratio"] == 2.0
        assert config.method != ()
        assert dataclasses.replace(config, method=()) == plain


def test_no_times_are_compared_when_the_time_is_over(place, console, monkeypatch):
    output_dir, records = place
    work(output_dir, records, stages=("plain", "strengths"))
    monkeypatch.setattr(command, "_deadline", lambda _: 0.0)
    work(output_dir, records, stages=("times",), compare=pytest.fail, console=console)
    assert "The time is over, and runs/times-digits" in console.file.getvalue()


@contextlib.contextmanager
def owner_lock_of_another_process(path):
    with path.open("a+") as file:  # another open file is what another process has
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_small_study_is_trained_from_its_start_to_the_report(place, console, monkeypatch):
    monkeypatch.undo()  # networks are measured
    output_dir, records = place
    methods = [
        dataclasses.replace(method, values=(0.01,))  # SAM of 0.05 may never leave the start
        for method in SETTING.methods
        if method.label in {"SAM", PROTOCOL.recommended}
    ]
    setting = dataclasses.replace(
        SETTING,
        # So many epochs that some of them take plain training's time on whatever machine.
        base=dataclasses.replace(
            SETTING.base,
            model=dataclasses.replace(SETTING.base.model, width=6),
            batch_size=50,
            epochs=8,
        ),
        plain_grid={"optimizer.learning_rate": (0.05,)},
        methods=tuple(methods),
        conditions={},
    )
    protocol = dataclasses.replace(
        PROTOCOL, settings=(setting,), tuning_seeds=(100,), finalist_seeds=(0, 1)
    )
    work(output_dir, records, run=train, protocol=protocol, compare=compare_step_times)
    tested = [each for each in read_records(records).values() if each.stage == "finalists"]
    assert len(tested) == 6
    assert not any(record.diverged for record in tested)
    for record in tested:
        assert record.figures["test_accuracy"] > 0.3
        assert record.figures["gauss_newton_trace"] > 0
        assert record.figures["relative_trace"] > 0
    page = write_study_report(records.parent, console, protocol)
    assert "Finalists: Digits" in page.read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stages": ()}, "--stages must name at least one"),
        ({"settings": ()}, "--settings must name at least one"),
        ({"together": 0}, "--together must be at least 1, not 0"),
        ({"time_limit": 0.0}, "--time-limit must be above 0, not 0.0"),
    ],
)
def test_a_part_that_is_none_is_named(options, message):
    with pytest.raises(SettingError, match=message):
        StudyConfig(**options)
