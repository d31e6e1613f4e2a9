"""A demo that finds results that it did not write."""

import io

from mutation import check_cases, contents, many, mutated_json
from rich.console import Console

from experiments import demo
from experiments.demo import METHODS

SETTINGS = {"plain": {"epochs": 1}}
RUN = {
    "seed": 0,
    "test_loss": 0.5,
    "test_accuracy": 0.9,
    "trace": 10.0,
    "train_steps": [15, 30],
    "train_losses": [2.0, 1.0],
    "curve_steps": [15, 30],
    "test_losses": [2.0, 0.5],
    "traces": [100.0, 10.0],
}


@many(short=200, long=1000)
def test_what_a_demo_can_not_go_on_with_is_kept(tmp_path, record_property, num_cases):
    path = tmp_path / "results.json"
    runs = [RUN | {"method": method, "seed": seed} for seed in (0, 1) for method in METHODS]
    results = {"settings": SETTINGS, "environment": demo._environment(), "runs": runs}

    def take_over(random):
        text = mutated_json(random, results)
        path.write_bytes(text)
        kept = demo._take_over(path, SETTINGS, 2, Console(file=io.StringIO(), markup=False))
        assert list(contents(tmp_path).values()) == [text]
        for run in kept:
            assert run["seed"] < 2
            assert len(run["traces"]) == len(run["curve_steps"])
        put_aside = not path.exists()
        for each in tmp_path.iterdir():
            each.unlink()
        return put_aside

    check_cases("results of a demo", num_cases, record_property, take_over)
