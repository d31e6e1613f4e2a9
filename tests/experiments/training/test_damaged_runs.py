"""A run that goes on, or is shown, whose files were damaged."""

import io
import json

import pytest
from known_sweep import FINISHED, log
from mutation import check_cases, contents, many, mutated_bytes, mutated_json, refusal
from rich.console import Console

from experiments.errors import DamagedFileError, ExperimentError
from experiments.training.logging import RunLog, read_log
from experiments.training.run_directory import (
    claim_run_directory,
    read_result,
    read_settings,
    record_start,
    write_result,
)
from experiments.training.summary import summary_table

FIGURES = {
    "train_images": 40,
    "train_loss": 0.5,
    "train_accuracy": 0.8,
    "trace": 10.0,
    "trace_standard_error": 1.0,
    "gauss_newton_trace": 11.0,
    "gauss_newton_trace_standard_error": 1.0,
    "trace_examples": 40,
}


@pytest.fixture
def run(plain, tiny_digits):
    """A run directory with its files, and no checkpoints."""
    claim_run_directory(plain.run_dir, plain, tiny_digits)
    record_start(plain.run_dir)
    write_result(plain.run_dir, FINISHED | FIGURES)
    (plain.run_dir / "metrics.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in log(0.1))
    )
    return plain


@many(short=200, long=3000)
def test_files_of_a_run_are_named_and_left_as_they_are(
    run, tiny_digits, record_property, num_cases
):
    paths = [run.run_dir / f"{name}.json" for name in ("config", "environment", "result")]
    originals = {path: path.read_bytes() for path in paths}

    def take_up(random):
        path = random.choice(paths)
        path.write_bytes(mutated_json(random, json.loads(originals[path])))
        before = contents(run.run_dir)
        error = refusal(ExperimentError, lambda: show(run, tiny_digits))
        if error is not None:
            named = path if isinstance(error, DamagedFileError) else run.run_dir
            assert str(named) in str(error)
            assert contents(run.run_dir) == before
        for each, original in originals.items():
            each.write_bytes(original)
        return error is not None

    check_cases("files of a run", num_cases, record_property, take_up)


@many(short=500, long=4000)
def test_a_damaged_log_is_named_and_left_as_it_is(run, record_property, num_cases):
    path = run.run_dir / "metrics.jsonl"
    rows = list(log(0.1))

    def read(random):
        if random.random() < 0.5:
            path.write_bytes(mutated_bytes(random, "".join(map(line, rows)).encode()))
        else:
            damaged = random.randrange(len(rows))
            lines = [line(row).encode() for row in rows]
            lines[damaged] = mutated_json(random, rows[damaged]).replace(b"\n", b"") + b"\n"
            path.write_bytes(b"".join(lines))
        before = path.read_bytes()
        error = refusal(DamagedFileError, lambda: read_log(path))
        if error is not None:
            assert f"{path} is damaged in line " in str(error)
            assert path.read_bytes() == before
            return True
        found = read_log(path)
        steps = [row["step"] for row in found]
        assert steps == sorted(set(steps))
        # What can not be read is lost at the end alone, where a kill cuts.
        assert before.count(b"\n") <= len(found) <= before.count(b"\n") + 1
        return False

    check_cases("logs", num_cases, record_property, read)


def show(run, data):
    """Take a finished run up again, as `train` does, and show its result."""
    claim_run_directory(run.run_dir, run, data)
    result = read_result(run.run_dir)
    if result is not None:
        Console(file=io.StringIO(), markup=False).print(summary_table(result))
    record_start(run.run_dir)


def line(row):
    return json.dumps(row) + "\n"


def test_a_run_does_not_go_on_with_a_damaged_log_and_leaves_it(run):
    path = run.run_dir / "metrics.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"loss"', b"loss", 1))
    before = contents(run.run_dir)
    with pytest.raises(DamagedFileError, match=r"in line 1 of 4(.|\n)*delete that line"):
        RunLog(run.run_dir, resumed_at=8)
    assert contents(run.run_dir) == before


@pytest.mark.parametrize("name", ["config.json", "result.json", "metrics.jsonl"])
def test_a_directory_in_the_place_of_a_file_is_named(run, name):
    (run.run_dir / name).unlink()
    (run.run_dir / name).mkdir()
    read = {"config.json": read_settings, "result.json": read_result}
    with pytest.raises(DamagedFileError, match=f"{name} is in the way, and no file"):
        read.get(name, lambda directory: read_log(directory / name))(run.run_dir)


@pytest.mark.parametrize("name", ["config.tmp", "result.tmp", "result.json"])
def test_a_link_in_the_place_of_a_file_is_not_followed(tmp_path, name):
    thesis = tmp_path / "thesis.txt"
    thesis.write_text("years of work")
    directory = tmp_path / "run"
    directory.mkdir()
    (directory / name).symlink_to(thesis)
    write_result(directory, FINISHED)
    assert thesis.read_text() == "years of work"
    assert not (directory / "result.json").is_symlink()


@pytest.mark.parametrize(
    "name", ["checkpoints", "checkpoints-damaged", "diverged", "tensorboard", "checkpoints/8"]
)
def test_a_run_with_a_link_that_leads_out_of_it_is_refused(run, tmp_path, tiny_digits, name):
    theses = tmp_path / "theses"
    (theses / "2024").mkdir(parents=True)
    link = run.run_dir / name
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(theses)
    with pytest.raises(DamagedFileError, match=f"link in .*/{name} leads out of"):
        claim_run_directory(run.run_dir, run, tiny_digits)
    assert [path.name for path in theses.iterdir()] == ["2024"]


def test_a_link_within_a_run_is_left_alone(run, tmp_path, tiny_digits):
    (run.run_dir / "newest").symlink_to("metrics.jsonl")
    (tmp_path / "link").symlink_to(run.run_dir)
    claim_run_directory(tmp_path / "link", run, tiny_digits)
    assert (run.run_dir / "newest").is_symlink()
