"""The demo, at a tiny size."""

import dataclasses
import io
import json

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from experiments import demo
from experiments.config import ModelConfig
from experiments.demo import METHODS, DemoConfig, curve_steps, mean_and_error, run_demo, verdict
from experiments.errors import SettingError
from experiments.regularizers import SehtD


def run(method, seed, *, loss, trace=10.0, accuracy=0.9):
    return {
        "method": method,
        "seed": seed,
        "test_loss": loss,
        "test_accuracy": accuracy,
        "trace": trace,
        "train_steps": [15, 30],
        "train_losses": [2.0, 1.0 + seed],
        "curve_steps": [15, 30],
        "test_losses": [2.0, loss],
        "traces": [100.0, trace],
    }


def runs_with(losses):
    return [
        run(method, seed, loss=loss + 0.01 * seed)
        for method, loss in losses.items()
        for seed in range(3)
    ]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Directory, results and text of a finished demo."""
    console = Console(file=io.StringIO(), width=100)
    config = DemoConfig(seeds=2, epochs=1, output_dir=tmp_path_factory.mktemp("demo"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "TIMING_ROUNDS", 1)
        patch.setattr(demo, "TIMING_BLOCK", 2)
        small = dataclasses.replace(demo.digits.CONFIG, model=ModelConfig(width=2), trace_probes=2)
        patch.setattr(demo.digits, "CONFIG", small)
        # One program instead of five, which take a minute to compile.
        patch.setitem(METHODS, "SEHT-D", (SehtD(num_branches=1),))
        results = run_demo(config, console)
    return config, results, console.file.getvalue()


def test_it_compares_the_methods_at_the_same_seeds(finished):
    _, results, _ = finished
    found = {(each["method"], each["seed"]) for each in results["runs"]}
    assert found == {(method, seed) for method in METHODS for seed in (0, 1)}
    assert results["step_seconds"].keys() == METHODS.keys()


def test_it_writes_what_it_returns(finished):
    config, results, _ = finished
    assert json.loads((config.output_dir / "results.json").read_text()) == results


def test_it_ends_with_a_table_and_a_verdict(finished):
    _, results, text = finished
    assert all(method in text for method in METHODS)
    assert "Mean ± standard error over 2 seeds" in text
    assert "1.00x" in text
    assert results["verdict"][-1][:30] in text
    # Why the recommended form is not the paper's.
    assert "no lower bound" in " ".join(text.split())


def test_it_draws_a_figure(finished):
    config, _, _ = finished
    with Image.open(config.output_dir / "demo.png") as image:
        assert image.size == (1800, 600)
        assert np.asarray(image).std() > 0


def test_traces_below_0_are_drawn_too(tmp_path):
    runs = [
        run(method, seed, loss=1.0, trace=-50.0 * seed) for method in METHODS for seed in (0, 1)
    ]
    demo.draw_figure(runs).savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ({"plain": 1.0, "SEHT-D": 1.0, "recommended": 1.0}, "does not beat plain training here"),
        ({"plain": 1.0, "SEHT-D": 1.5, "recommended": 1.5}, "does not beat plain training here"),
        ({"plain": 1.0, "SEHT-D": 0.5, "recommended": 1.5}, "Here SEHT-D generalised better"),
        (
            {"plain": 1.0, "SEHT-D": 0.5, "recommended": 0.4},
            "Here SEHT-D and recommended generalised better",
        ),
    ],
)
def test_the_verdict_is_what_the_numbers_say(losses, expected):
    assert expected in verdict(runs_with(losses))[-1]


def test_a_gain_in_loss_that_costs_accuracy_is_no_gain():
    runs = runs_with({"plain": 1.0, "SEHT-D": 0.5, "recommended": 1.0})
    for each in runs:
        if each["method"] == "SEHT-D":
            each["test_accuracy"] = 0.5
    assert "does not beat" in verdict(runs)[-1]


def test_standard_error():
    assert mean_and_error([1.0, 2.0, 3.0]) == (2.0, pytest.approx(1 / 3**0.5))


@pytest.mark.parametrize("epochs", [1, 2, 12, 100])
def test_curves_are_measured_at_ends_of_epochs_and_at_the_end(epochs):
    steps = curve_steps(epochs * 15, 15)
    assert steps[-1] == epochs * 15
    assert all(step % 15 == 0 for step in steps)
    assert len(set(steps)) == len(steps) <= 12


@pytest.mark.parametrize(("field", "value"), [("seeds", 1), ("epochs", 0)])
def test_too_little_is_refused(field, value):
    with pytest.raises(SettingError, match=f"--{field} must be at least .*, not {value}"):
        DemoConfig(**{field: value})


SETTINGS = {"plain": {"epochs": 1}}


def earlier(directory, *, settings=SETTINGS, finished):
    results = {
        "settings": settings,
        "environment": demo._environment(),
        "runs": [run("plain", seed, loss=1.0) for seed in (0, 5)],
    }
    path = directory / "results.json"
    path.write_text(json.dumps(results | ({"step_seconds": {}} if finished else {})))
    (directory / "demo.png").write_text("picture")
    return path


def test_an_interrupted_demo_is_gone_on_with(tmp_path, console):
    path = earlier(tmp_path, finished=False)
    kept = demo._take_over(path, SETTINGS, 3, console)
    assert kept == [run("plain", 0, loss=1.0)]
    assert "Going on with 1 finished runs" in console.file.getvalue()


def test_a_finished_demo_is_renewed(tmp_path, console):
    path = earlier(tmp_path, finished=True)
    assert demo._take_over(path, SETTINGS, 3, console) == []
    assert "Renewing the finished demo" in console.file.getvalue()


def test_results_of_other_settings_are_kept(tmp_path, console):
    for number in (1, 2):
        path = earlier(tmp_path, settings={"plain": number}, finished=True)
        text = path.read_text()
        assert demo._take_over(path, SETTINGS, 3, console) == []
        assert (tmp_path / f"results-earlier-{number}.json").read_text() == text
        assert (tmp_path / f"demo-earlier-{number}.png").read_text() == "picture"
    assert "kept as" in console.file.getvalue()


def test_a_file_of_somebody_else_is_kept(tmp_path, console):
    path = tmp_path / "results.json"
    path.write_text("no JSON")
    assert demo._take_over(path, SETTINGS, 3, console) == []
    assert (tmp_path / "results-earlier-1.json").read_text() == "no JSON"
