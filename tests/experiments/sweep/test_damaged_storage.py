"""A queue whose database was damaged, or is somebody else's."""

import json
import sqlite3

import optuna
import pytest
import sqlalchemy
import sweep_worker
from mutation import check_cases, many, mutated_bytes, mutated_json, refusal

from experiments.errors import ExperimentError, StorageError

COLUMNS = [
    ("study_user_attributes", "value_json"),
    ("trial_user_attributes", "value_json"),
    ("trial_params", "distribution_json"),
    ("trials", "state"),
    ("trials", "datetime_start"),
    ("studies", "study_name"),
    ("version_info", "schema_version"),
]


@pytest.fixture
def used(tmp_path):
    """The file of a queue of which two runs are done."""
    queue = sweep_worker.open_queue(f"sqlite:///{tmp_path / 'sweep.db'}", tmp_path)
    queue.complete(queue.claim(), {"validation_accuracy": 0.5, "training_seconds": 1.0}, 0.5)
    queue.diverge(queue.claim(), "The run diverged at step 7.")
    queue.claim()
    return tmp_path / "sweep.db"


def change_row(random, path):
    """Change one value of the tables that Optuna keeps, to another text."""
    connection = sqlite3.connect(path)
    try:
        table, column = random.choice(COLUMNS)
        rows = connection.execute(f"SELECT rowid, {column} FROM {table}").fetchall()
        row, value = random.choice(rows)
        if column.endswith("_json"):
            changed = mutated_json(random, json.loads(value)).decode("utf-8", "replace")
        else:
            changed = random.choice(["", "x", "2026-13-45", None, 1, "RUNNING", "WAITING"])
        statement = f"UPDATE {table} SET {column} = ? WHERE rowid = ?"
        refusal(sqlite3.IntegrityError, lambda: connection.execute(statement, (changed, row)))
        connection.commit()
    finally:
        connection.close()


@many(short=12, long=250)
@pytest.mark.filterwarnings("ignore")  # of Optuna, about what it finds
def test_a_damaged_database_is_named(used, tmp_path, record_property, num_cases):
    original = used.read_bytes()
    url = f"sqlite:///{used}"

    def work():
        queue = sweep_worker.open_queue(url, tmp_path)
        queue.progress()
        while (claim := queue.claim()) is not None:
            assert claim.run.config.run_dir.is_relative_to(tmp_path / "runs")
            queue.diverge(claim, "The run diverged at step 7.")

    def case(random):
        if random.random() < 0.3:
            used.write_bytes(mutated_bytes(random, original))
        else:
            change_row(random, used)
        error = refusal(ExperimentError, work)
        assert error is None or str(used) in str(error)
        for path in tmp_path.glob("sweep.db*"):
            path.unlink()
        used.write_bytes(original)
        return error is not None

    check_cases("databases of a queue", num_cases, record_property, case)


def test_trials_of_others_in_a_study_are_left_alone(used, tmp_path):
    url = f"sqlite:///{used}"
    storage = optuna.storages.RDBStorage(url, engine_kwargs={"poolclass": sqlalchemy.NullPool})
    study = optuna.load_study(study_name="study", storage=storage)
    study.add_trial(optuna.trial.create_trial(value=1.0))
    study.add_trial(optuna.trial.create_trial(value=1.0, user_attrs={"run": ["../../x"]}))
    queue = sweep_worker.open_queue(url, tmp_path)
    assert queue.progress().total == sweep_worker.NUM_RUNS


def test_a_study_that_is_none_of_a_sweep_is_refused(tmp_path):
    url = f"sqlite:///{tmp_path / 'sweep.db'}"
    storage = optuna.storages.RDBStorage(url, engine_kwargs={"poolclass": sqlalchemy.NullPool})
    study = optuna.create_study(study_name="study", storage=storage, direction="maximize")
    study.set_user_attr("settings", {"my": "own"})
    with pytest.raises(
        StorageError, match=r"study 'study' in .* none of a sweep: .*another --study"
    ):
        sweep_worker.open_queue(url, tmp_path)
