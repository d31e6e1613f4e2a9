"""Compile programs and time them in turn.

All rows are compiled first, without the persistent compilation cache, and then timed round after
round, each of them once per round, so that a disturbance of the machine strikes them alike.

A step whose cost depends on a random draw is timed in each *stratum* of the draw (a set of keys for
which it does the same work); its cost is the expectation, the sum of the strata's times weighted
with their probabilities, which are known exactly. A mean over random keys would need hundreds of
steps: at p = 0.01, most draw nothing.
"""

import contextlib
import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import jax
from jax.experimental.compilation_cache import compilation_cache
from rich.progress import Progress

from benchmarks.models import BenchmarkModel

PLAIN = "plain step"
BLOCK_SECONDS = 0.05  # shorter steps are repeated for about that long, and the mean is taken
MAX_REPEATS = 50


class NotAvailableError(Exception):
    """A row can not be measured here, for a reason that is no fault, such as a missing package."""


@dataclasses.dataclass(frozen=True)
class Stratum:
    """Draws that cost the same, or nearly.

    Attributes:
        probability: Exactly how probable it is that a step's draw is one of them.
        keys: Some of them: arguments of `Program.run`.
    """

    probability: float
    keys: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled step.

    Attributes:
        run: Takes one step with a key and waits for its results.
        strata: The strata of the step's random draw.
        compile_seconds: How long it took to trace and compile; `None` where nothing is compiled.
        temporary_bytes: The compiler's figure for temporary buffers, if there is one.
        flops: The compiler's count of floating-point operations, if there is one.
        flops_note: What the count leaves out.
    """

    run: Callable[[Any], None]
    strata: tuple[Stratum, ...]
    compile_seconds: float | None = None
    temporary_bytes: int | None = None
    flops: float | None = None
    flops_note: str = ""


@dataclasses.dataclass(frozen=True)
class Row:
    """One thing to measure.

    Attributes:
        name: Its name.
        prepare: Compiles it.
        baseline: The name of the row that it is divided by.
    """

    name: str
    prepare: Callable[[], Program]
    baseline: str = PLAIN


@dataclasses.dataclass(frozen=True)
class ComputedRow:
    """A row whose times are computed from those of others.

    Attributes:
        name: Its name.
        weights: From the names of measured rows to what their times are multiplied by.
        baseline: The name of the row that it is divided by.
    """

    name: str
    weights: Mapping[str, float]
    baseline: str = PLAIN


AnyRow: TypeAlias = Row | ComputedRow


@dataclasses.dataclass
class Measurement:
    """What is known of a row; `None` is what is not (yet).

    Attributes:
        name: The name of the row.
        baseline: The name of the row that it is divided by.
        seconds: Time of a step: for each stratum the median over the rounds, weighted with the
            strata's probabilities.
        ratio: Median over the rounds of the ratio to the baseline in the same round.
        round_seconds: Time of a step in each round.
        strata: Probability and median seconds of each stratum.
        compile_seconds: See `Program`.
        temporary_bytes: See `Program`.
        memory_ratio: Temporary buffers in multiples of the baseline's.
        flops: See `Program`.
        flops_note: See `Program`.
        computed_from: The weights, for a row that was computed rather than measured.
        error: Why the row could not be measured.
    """

    name: str
    baseline: str
    seconds: float | None = None
    ratio: float | None = None
    round_seconds: list[float] = dataclasses.field(default_factory=list)
    strata: list[dict[str, float]] = dataclasses.field(default_factory=list)
    compile_seconds: float | None = None
    temporary_bytes: int | None = None
    memory_ratio: float | None = None
    flops: float | None = None
    flops_note: str = ""
    computed_from: dict[str, float] | None = None
    error: str | None = None


def measure(
    rows: Sequence[AnyRow],
    rounds: int,
    progress: Progress,
    save: Callable[[list[Measurement]], None] = lambda _: None,
) -> list[Measurement]:
    """Compile all rows, then time them in turn.

    A row that fails is reported with its error, and the others go on.

    Args:
        rows: What to measure; the rows that others are divided by or computed from are among them.
        rounds: How often each is timed.
        progress: Shows what is going on.
        save: Is given what is known whenever there is more.

    Returns:
        The measurements, in the order of the rows.
    """
    session = _Session(rows, progress)
    session.compile(save)
    session.warm_up(save)
    session.time(rounds, save)
    return session.measurements()


def compile_step(
    step: Callable[..., Any], model: BenchmarkModel, strata: tuple[Stratum, ...]
) -> Program:
    """Compile a step.

    Args:
        step: ``step(key, params, *batch)``.
        model: What it is a step of.
        strata: The strata of its draw; their keys are PRNG keys.

    Returns:
        The compiled step.
    """
    arguments = (model.params, *model.batch)
    start = time.perf_counter()
    compiled = jax.jit(step).lower(strata[0].keys[0], *arguments).compile()
    seconds = time.perf_counter() - start
    memory, costs = compiled.memory_analysis(), compiled.cost_analysis()
    return Program(
        run=lambda key: jax.block_until_ready(compiled(key, *arguments)),
        strata=strata,
        compile_seconds=seconds,
        temporary_bytes=None if memory is None else memory.temp_size_in_bytes,
        flops=None if costs is None else costs.get("flops"),
        flops_note=_flops_note(compiled.as_text() or ""),
    )


@contextlib.contextmanager
def without_compilation_cache() -> Iterator[None]:
    """Switch the persistent compilation cache off, whose hits would pass for compile times."""
    with _setting("jax_enable_compilation_cache", False):
        compilation_cache.reset_cache()  # JAX looks at the setting once, until it is reset
        yield
    compilation_cache.reset_cache()


@contextlib.contextmanager
def with_hasty_compilation() -> Iterator[None]:
    """Have programs compiled fast that run slowly, for a test of the benchmarks."""
    with _setting("jax_disable_most_optimizations", True):
        yield


@contextlib.contextmanager
def _setting(name: str, value: Any) -> Iterator[None]:
    before = jax.config.values[name]
    jax.config.update(name, value)
    try:
        yield
    finally:
        jax.config.update(name, before)


class _Session:
    """Programs, errors and times by the name of the row."""

    def __init__(self, rows: Sequence[AnyRow], progress: Progress) -> None:
        self.rows = rows
        self.progress = progress
        self.programs: dict[str, Program] = {}
        self.errors: dict[str, str] = {}
        self.warm_seconds: dict[str, list[float]] = {}
        # By row, by stratum, by round.
        self.times: dict[str, list[list[float]]] = {}

    def compile(self, save: Callable[[list[Measurement]], None]) -> None:
        measured = [row for row in self.rows if isinstance(row, Row)]
        task = self.progress.add_task("", total=len(measured))
        with without_compilation_cache():
            for row in measured:
                self.progress.update(task, description=f"Compiling: {row.name}")
                with self._reported(row.name):
                    self.programs[row.name] = program = row.prepare()
                    if program.compile_seconds is not None:
                        self.progress.console.print(
                            f"Compiled in {program.compile_seconds:5.1f} s: {row.name}",
                            highlight=False,
                        )
                self.progress.advance(task)
                save(self.measurements())
        self.progress.remove_task(task)

    def warm_up(self, save: Callable[[list[Measurement]], None]) -> None:
        task = self.progress.add_task("", total=len(self.programs))
        for name, program in list(self.programs.items()):
            self.progress.update(task, description=f"Warming up: {name}")
            with self._reported(name):
                self.warm_seconds[name] = [
                    _seconds(program, stratum.keys[:1], 1) for stratum in program.strata
                ]
                self.times[name] = [[] for _ in program.strata]
            self.progress.advance(task)
        self.progress.remove_task(task)
        save(self.measurements())

    def time(self, rounds: int, save: Callable[[list[Measurement]], None]) -> None:
        # Progress is counted in seconds, as the warm-up measured them: a slow row counts for more.
        task = self.progress.add_task("", total=rounds * self._expected_seconds(rounds))
        for i in range(rounds):
            for name, program in list(self.programs.items()):
                description = f"Timing, round {i + 1} of {rounds}: {name}"
                self.progress.update(task, description=description)
                with self._reported(name):
                    for k, stratum in enumerate(program.strata):
                        keys = _keys_of_round(stratum.keys, i, rounds)
                        warm = self.warm_seconds[name][k]
                        repeats = _repeats(warm, len(keys))
                        self.times[name][k].append(_seconds(program, keys, repeats))
                        self.progress.advance(task, warm * repeats * len(keys))
            save(self.measurements())
        self.progress.remove_task(task)

    def measurements(self) -> list[Measurement]:
        found: dict[str, Measurement] = {}
        for row in self.rows:
            if isinstance(row, Row):
                found[row.name] = self._measured(row)
        for row in self.rows:
            if isinstance(row, ComputedRow):
                found[row.name] = _computed(row, found)
        for measurement in found.values():
            _compare(measurement, found[measurement.baseline])
        return [found[row.name] for row in self.rows]

    def _measured(self, row: Row) -> Measurement:
        measurement = Measurement(row.name, row.baseline, error=self.errors.get(row.name))
        program = self.programs.get(row.name)
        if program is not None:
            measurement.compile_seconds = program.compile_seconds
            measurement.temporary_bytes = program.temporary_bytes
            measurement.flops = program.flops
            measurement.flops_note = program.flops_note
            times = self.times.get(row.name)
            if times and all(times):
                weights = [stratum.probability for stratum in program.strata]
                medians = [statistics.median(of_stratum) for of_stratum in times]
                measurement.strata = [
                    {"probability": weight, "seconds": seconds}
                    for weight, seconds in zip(weights, medians, strict=True)
                ]
                measurement.seconds = _inner(weights, medians)
                # A round that was cut short has fewer strata than weights, and is left out.
                measurement.round_seconds = [
                    _inner(weights, of_round) for of_round in zip(*times, strict=False)
                ]
        return measurement

    def _expected_seconds(self, rounds: int) -> float:
        return sum(
            warm * len(keys) * _repeats(warm, len(keys))
            for name, program in self.programs.items()
            for warm, stratum in zip(self.warm_seconds[name], program.strata, strict=True)
            for keys in [_keys_of_round(stratum.keys, 0, rounds)]
        )

    @contextlib.contextmanager
    def _reported(self, name: str) -> Iterator[None]:
        """Note an error of a row, and drop the row from what is still to be done."""
        try:
            yield
        except Exception as error:  # noqa: BLE001  # whatever a row fails with, the others go on
            text = str(error) if isinstance(error, NotAvailableError) else _one_line(error)
            self.errors[name] = text
            self.programs.pop(name, None)
            self.times.pop(name, None)
            self.progress.console.print(f"{name}: {text}", highlight=False, markup=False)


def _computed(row: ComputedRow, found: Mapping[str, Measurement]) -> Measurement:
    measurement = Measurement(row.name, row.baseline, computed_from=dict(row.weights))
    sources = [found[name] for name in row.weights]
    weights = list(row.weights.values())
    errors = [source.error for source in sources if source.error is not None]
    if errors:
        measurement.error = errors[0]
        return measurement
    seconds = [source.seconds for source in sources if source.seconds is not None]
    if len(seconds) == len(sources):
        measurement.seconds = _inner(weights, seconds)
        measurement.round_seconds = [
            _inner(weights, of_round)
            for of_round in zip(*(source.round_seconds for source in sources), strict=False)
        ]
    return measurement


def _compare(measurement: Measurement, baseline: Measurement) -> None:
    pairs = list(zip(measurement.round_seconds, baseline.round_seconds, strict=False))
    if pairs:
        measurement.ratio = statistics.median(seconds / plain for seconds, plain in pairs)
    if measurement.temporary_bytes is not None and baseline.temporary_bytes:
        measurement.memory_ratio = measurement.temporary_bytes / baseline.temporary_bytes


def _seconds(program: Program, keys: Sequence[Any], repeats: int) -> float:
    """Return the mean time of a step over some keys."""
    start = time.perf_counter()
    for _ in range(repeats):
        for key in keys:
            program.run(key)
    return (time.perf_counter() - start) / (repeats * len(keys))


def _repeats(warm_seconds: float, num_keys: int) -> int:
    repeats = math.ceil(BLOCK_SECONDS / (warm_seconds * num_keys))
    return min(max(repeats, 1), MAX_REPEATS)


def _keys_of_round(keys: Sequence[Any], index: int, rounds: int) -> Sequence[Any]:
    """Spread the keys of a stratum over the rounds, at least one for each."""
    return keys[index::rounds] or [keys[index % len(keys)]]


def _inner(weights: Sequence[float], values: Sequence[float]) -> float:
    return math.fsum(weight * value for weight, value in zip(weights, values, strict=True))


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _flops_note(program_text: str) -> str:
    """Say what XLA's count of operations leaves out: it looks at the program, not at a run."""
    notes = {
        " conditional(": "the costliest branch of a conditional",
        " while(": "one pass of a loop",
    }
    return ", ".join(note for text, note in notes.items() if text in program_text)
