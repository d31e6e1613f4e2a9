"""Which runs there are, and the file that says so."""

import dataclasses
import json
from pathlib import Path

import pytest
from sweep_worker import SWEEP, with_strengths

from experiments.config import DataConfig, TrainConfig, to_json
from experiments.errors import ConfigMismatchError
from experiments.sweep.definition import Row
from experiments.sweep.plan import PLAN, plan_runs, write_plan


def test_runs_go_seed_by_seed_to_directories_that_their_settings_name(tmp_path):
    runs = plan_runs(SWEEP, 2, tmp_path)
    assert [run.key for run in runs] == [
        "runs/plain/seed0",
        "runs/seht-h/seht-h.lam=1e-05/seed0",
        "runs/seht-h/seht-h.lam=0.0001/seed0",
        "runs/plain/seed1",
        "runs/seht-h/seht-h.lam=1e-05/seed1",
        "runs/seht-h/seht-h.lam=0.0001/seed1",
    ]
    assert [run.config.run_dir for run in runs] == [tmp_path / run.key for run in runs]
    assert [run.config.seed for run in runs] == [0, 0, 0, 1, 1, 1]
    assert {run.config.name for run in runs} == {"toy"}


def test_data_may_be_elsewhere(tmp_path):
    row = Row("Plain", TrainConfig(data=DataConfig("cifar10"), method=()))
    sweep = dataclasses.replace(SWEEP, rows=(row,))
    (run,) = plan_runs(sweep, 1, tmp_path, data_dir=Path("elsewhere"))
    assert run.config.data.data_dir == Path("elsewhere")


def test_the_plan_says_all_that_a_report_needs(tmp_path):
    write_plan(SWEEP, 2, tmp_path)
    plan = json.loads((tmp_path / PLAN).read_text())
    assert (plan["name"], plan["seeds"], plan["baseline"]) == ("toy", 2, "Plain")
    assert plan["convergence"] == ["Plain", "SEHT-H"]
    _, row = plan["rows"]
    assert [point["values"] for point in row["points"]] == [
        {"seht-h.lam": 1e-5},
        {"seht-h.lam": 1e-4},
    ]
    (run, *_) = plan_runs(SWEEP, 1, tmp_path)
    settings = to_json(run.config)
    assert plan["rows"][0]["points"][0]["settings"] | {"seed": 0} == settings


@pytest.mark.parametrize("sweep", [SWEEP, with_strengths(1e-5, 1e-4, 1e-3)])
def test_a_plan_may_grow_and_does_not_shrink(tmp_path, sweep):
    write_plan(SWEEP, 3, tmp_path)
    write_plan(sweep, 1, tmp_path)
    plan = json.loads((tmp_path / PLAN).read_text())
    assert plan["seeds"] == 3
    assert len(plan["rows"][1]["points"]) == len(sweep.points()) - 1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (with_strengths(1e-5), "seht-h.lam=0.0001: there, but no longer part of the sweep"),
        (dataclasses.replace(SWEEP, name="other"), "holds the sweep 'toy'"),
    ],
)
def test_a_plan_of_something_else_is_refused_and_kept(tmp_path, changed, message):
    write_plan(SWEEP, 1, tmp_path)
    before = (tmp_path / PLAN).read_bytes()
    with pytest.raises(ConfigMismatchError, match=message) as caught:
        write_plan(changed, 1, tmp_path)
    assert "Pass another --output-dir" in str(caught.value)
    assert (tmp_path / PLAN).read_bytes() == before


def test_a_plan_from_before_a_setting_existed_goes_on(tmp_path):
    write_plan(SWEEP, 1, tmp_path)
    plan = json.loads((tmp_path / PLAN).read_text())
    for row in plan["rows"]:
        for point in row["points"]:
            settings = point["settings"]
            assert settings.pop("optimizer.algorithm") == "sgd"
            settings["method"] = [
                word.replace(",scale_free=False", "") for word in settings["method"]
            ]
    (tmp_path / PLAN).write_text(json.dumps(plan))
    write_plan(SWEEP, 2, tmp_path)
    assert json.loads((tmp_path / PLAN).read_text())["seeds"] == 2


def test_a_plan_goes_on_when_its_runs_are_logged_more_often(tmp_path):
    write_plan(SWEEP, 1, tmp_path)
    rows = tuple(
        dataclasses.replace(row, config=dataclasses.replace(row.config, log_every=1))
        for row in SWEEP.rows
    )
    write_plan(dataclasses.replace(SWEEP, rows=rows), 2, tmp_path)
    assert json.loads((tmp_path / PLAN).read_text())["seeds"] == 2


def test_a_plan_of_a_method_that_is_gone_is_refused(tmp_path):
    write_plan(SWEEP, 1, tmp_path)
    path = tmp_path / PLAN
    path.write_text(path.read_text().replace('"seht-h:lam', '"gone:lam'))
    with pytest.raises(ConfigMismatchError, match="gone"):
        write_plan(SWEEP, 1, tmp_path)
