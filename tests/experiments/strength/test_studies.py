"""A study is run once, group by group, and goes on."""

import json

import pytest

from experiments.errors import ConfigMismatchError
from experiments.strength import command, studies
from experiments.strength.command import StrengthConfig, run_strength
from experiments.strength.studies import STUDIES, Study, run_study

TINY = Study(
    networks=(("mlp", 4),),
    strengths={"gauss-newton": (0.1,), "hessian": (0.1,)},
    learning_rates=(1.0,),
    num_seeds=2,
    num_steps=3,
)


def test_it_writes_one_file_for_each_network_and_form_and_goes_on(tmp_path, console, monkeypatch):
    rows = run_study(TINY, tmp_path, console)
    assert len(rows) == 8
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "mlp-4-gauss-newton.json",
        "mlp-4-hessian.json",
    ]
    (tmp_path / "mlp-4-hessian.json").unlink()
    trained = []
    train = studies.train_cells

    def recorded(task, form, *rest):
        trained.append(form)
        return train(task, form, *rest)

    monkeypatch.setattr(studies, "train_cells", recorded)
    assert run_study(TINY, tmp_path, console) == rows
    assert trained == ["hessian"]


def test_runs_with_other_settings_are_not_mixed_in(tmp_path, console):
    run_study(TINY, tmp_path, console)
    with pytest.raises(ConfigMismatchError, match="holds runs with other settings"):
        run_study(Study(**{**vars(TINY), "num_steps": 4}), tmp_path, console)


def test_the_command_writes_a_table(tmp_path, console, monkeypatch):
    monkeypatch.setitem(command.STUDIES, "forms", TINY)
    path = run_strength(StrengthConfig(study="forms", output_dir=tmp_path), console)
    assert path == tmp_path / "forms" / "table.md"
    assert path.read_text().count("| mlp-4 |") == 2 + 2  # in the overview, and with all details
    assert json.loads((tmp_path / "forms" / "mlp-4-hessian.json").read_text())["rows"]


@pytest.mark.parametrize("study", STUDIES.values())
def test_every_study_has_plain_runs_to_compare_with(study):
    assert all(0 not in strengths for strengths in study.strengths.values())
    assert study.num_seeds >= 2
