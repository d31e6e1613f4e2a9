"""Timing in turn, and what is computed from the times."""

import io
import itertools

import jax
import jax.numpy as jnp
import pytest
from rich.console import Console

from benchmarks import measure as measure_module
from benchmarks.measure import (
    PLAIN,
    ComputedRow,
    NotAvailableError,
    Program,
    Row,
    Stratum,
    compile_step,
    measure,
    without_compilation_cache,
)
from benchmarks.models import QUICK_SIZES, build_benchmark_model
from benchmarks.report import make_progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that only steps move on, by as many seconds as their key says."""

    class Clock:
        now = 0.0

        def perf_counter(self):
            return self.now

        def run(self, seconds):
            self.now += seconds

    clock = Clock()
    monkeypatch.setattr(measure_module, "time", clock)
    return clock


def measured(rows, rounds=3, save=lambda rows: None):
    with make_progress(Console(file=io.StringIO())) as progress:
        return measure(rows, rounds, progress, save)


def row(name, clock, *strata, **details):
    return Row(name, lambda: Program(clock.run, strata, **details))


def failing(name, error):
    def prepare():
        raise error

    return Row(name, prepare)


def test_the_expectation_weighs_the_strata_with_their_probabilities(clock):
    plain, penalised = measured(
        [
            row(PLAIN, clock, Stratum(1.0, (2.0,))),
            row("sparse", clock, Stratum(0.75, (2.0, 2.0)), Stratum(0.25, (6.0, 10.0, 14.0))),
        ]
    )
    assert plain.ratio == 1
    assert penalised.seconds == pytest.approx(0.75 * 2 + 0.25 * 10)
    assert penalised.round_seconds == pytest.approx([3.0, 4.0, 5.0])
    assert penalised.ratio == pytest.approx(2.0)
    assert penalised.strata[1] == {"probability": 0.25, "seconds": pytest.approx(10.0)}


def test_a_row_is_computed_from_others(clock):
    rows = [
        row(PLAIN, clock, Stratum(1.0, (2.0,)), temporary_bytes=10),
        row("drawn", clock, Stratum(1.0, (10.0,)), temporary_bytes=25),
        ComputedRow("lazy", {PLAIN: 0.75, "drawn": 0.25}),
    ]
    _, drawn, lazy = measured(rows)
    assert lazy.seconds == pytest.approx(4.0)
    assert lazy.ratio == pytest.approx(2.0)
    assert drawn.memory_ratio == 2.5


def test_one_failure_does_not_stop_the_others(clock):
    def out_of_memory(key):
        raise RuntimeError("out of memory\nat some length")

    rows = [
        row(PLAIN, clock, Stratum(1.0, (2.0,))),
        failing("a", NotAvailableError("not installed")),
        Row("b", lambda: Program(out_of_memory, (Stratum(1.0, (1.0,)),))),
        ComputedRow("c", {"b": 1.0}),
        row("d", clock, Stratum(1.0, (4.0,))),
    ]
    found = {each.name: each for each in measured(rows)}
    assert found["a"].error == "not installed"
    assert found["b"].error == found["c"].error == "RuntimeError: out of memory"
    assert found["d"].ratio == pytest.approx(2.0)


def test_what_is_known_is_saved_as_it_comes(clock):
    saved = []
    rows = [row(name, clock, Stratum(1.0, (2.0,))) for name in (PLAIN, "other")]
    measured(rows, rounds=2, save=lambda known: saved.append([len(m.round_seconds) for m in known]))
    assert [0, 0] in saved
    assert saved[-2:] == [[1, 1], [2, 2]]


def test_short_steps_are_repeated(clock):
    calls = itertools.count()

    def run(key):
        next(calls)
        clock.now += measure_module.BLOCK_SECONDS / 8

    measured([Row(PLAIN, lambda: Program(run, (Stratum(1.0, (0,)),)))], rounds=1)
    assert next(calls) == 1 + 8


def test_a_compiled_step_knows_its_memory_operations_and_branches():
    model = build_benchmark_model("mlp", QUICK_SIZES["mlp"])

    def step(key, params, inputs, labels):
        large = jax.random.bernoulli(key)
        return jax.lax.cond(large, lambda x: x @ x.T @ x, jnp.positive, inputs)

    key = jax.random.key(0)
    program = compile_step(step, model, (Stratum(1.0, (key,)),))
    program.run(key)
    assert program.compile_seconds > 0
    assert program.temporary_bytes > 0
    assert program.flops >= 2 * 2 * 4 * 4 * 16
    assert program.flops_note.startswith("the costliest branch")


def test_the_compilation_cache_is_off_for_a_while_only():
    before = jax.config.values["jax_enable_compilation_cache"]
    with without_compilation_cache():
        assert not jax.config.values["jax_enable_compilation_cache"]
    assert jax.config.values["jax_enable_compilation_cache"] == before
