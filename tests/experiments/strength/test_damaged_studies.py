"""A study that goes on with files that were damaged."""

import dataclasses
import json

from mutation import check_cases, contents, many, mutated_json, refusal

from experiments.errors import ExperimentError
from experiments.strength import studies
from experiments.strength.cells import Run, grid
from experiments.strength.forms import RECOMMENDED
from experiments.strength.report import compare, markdown, overview, verdict
from experiments.strength.studies import Study, run_study

STUDY = Study((("mlp", 4),), {RECOMMENDED: (0.1, 0.2)}, (1.0,), num_seeds=2, num_steps=3)


@dataclasses.dataclass(frozen=True)
class Task:
    learning_rate: float = 0.1


@many(short=100, long=1000)
def test_a_damaged_file_of_a_study_is_named_and_left_as_it_is(
    tmp_path, console, monkeypatch, record_property, num_cases
):
    def train(task, form, cells, num_steps):
        assert cells == grid([task.learning_rate], [0.0, 0.1, 0.2], 2)
        return [Run(1.0 + cell.seed, 0.5, 10.0 + cell.strength, 0.1, 1.0, -1) for cell in cells]

    monkeypatch.setattr(studies, "build_task", lambda name, width: Task())
    monkeypatch.setattr(studies, "train_cells", train)
    run_study(STUDY, tmp_path, console)
    (path,) = tmp_path.iterdir()
    original = path.read_bytes()

    def go_on():
        comparisons = compare(run_study(STUDY, tmp_path, console))
        assert markdown(comparisons)
        assert overview(comparisons)
        assert verdict(comparisons, RECOMMENDED, 0.1)

    def case(random):
        path.write_bytes(mutated_json(random, json.loads(original)))
        before = contents(tmp_path)
        error = refusal(ExperimentError, go_on)
        assert error is None or str(path) in str(error)
        assert contents(tmp_path) == before
        return error is not None

    check_cases("files of a study", num_cases, record_property, case)
