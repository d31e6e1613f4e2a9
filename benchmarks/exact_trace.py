"""What the exact trace costs, weight by weight: the reason to estimate it.

The paper's ResNet-18 took two minutes for the exact trace of one layer (section 4.1.1).
"""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import seht_jax as seht
from benchmarks.measure import compile_step, with_hasty_compilation
from benchmarks.models import QUICK_SIZES, SIZES, BenchmarkModel, build_benchmark_model
from benchmarks.report import (
    describe,
    describe_device,
    environment,
    grid_table,
    make_progress,
    new_report_path,
    write_report,
)
from benchmarks.variants import ONE_KEY, plain_step

CHUNK_SIZE = 16
WORTH_MEASURING_SECONDS = 60.0
WHOLE = "the whole network"


@dataclasses.dataclass(frozen=True)
class ExactTraceConfig:
    """What to measure."""

    layers: tuple[str, ...] = ("stem_conv", "head")
    """Layers of the ResNet-18, such as stage1_block1/conv1."""
    width: int = 64
    """Channels of its first stage."""
    weights: int = 64
    """How many weights of a layer are measured, at most; its others are extrapolated from them,
    unless all of them take less than a minute by that. 0 measures all."""
    quick: bool = False
    """Test the benchmark: a tiny network; no result."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: If one is out of its range.
        """
        if self.width < 1:
            raise ValueError(f"width must be at least 1, not {self.width}")
        if self.weights < 0:
            raise ValueError(f"weights must be at least 0, not {self.weights}")


@dataclasses.dataclass(frozen=True)
class LayerCost:
    """What the exact trace of a layer costs.

    Attributes:
        layer: Its name.
        num_weights: How many weights it has.
        num_measured: For how many of them the trace was computed.
        measured_seconds: The time that this took.
        seconds_per_weight: The time for one weight more: there is a part, the network's forward
            pass for one, that all weights share.
    """

    layer: str
    num_weights: int
    num_measured: int
    measured_seconds: float
    seconds_per_weight: float

    @property
    def seconds(self) -> float:
        """The time for all weights, extrapolated from those that were measured."""
        others = self.num_weights - self.num_measured
        return self.measured_seconds + others * self.seconds_per_weight


class NoSuchLayerError(ValueError):
    """The network has no such layer."""


def run_exact_trace(config: ExactTraceConfig, console: Console) -> Path:
    """Measure, show a table, and write a JSON file.

    Args:
        config: What to measure.
        console: Where progress and table are shown.

    Returns:
        The path of the file.
    """
    if config.quick:
        with with_hasty_compilation():
            return _run(config, build_benchmark_model("resnet18", QUICK_SIZES["resnet18"]), console)
    size = {**SIZES["resnet18"], "width": config.width}
    return _run(config, build_benchmark_model("resnet18", size), console)


def measure_layer(model: BenchmarkModel, layer: str, max_weights: int) -> LayerCost:
    """Time the exact trace of a layer, or of its first weights.

    Args:
        model: The network.
        layer: The name of the layer.
        max_weights: How many weights are measured, at most; 0 is all.

    Returns:
        The cost.

    Raises:
        NoSuchLayerError: If there is none of that name.
    """
    leaves = flatten_dict(model.params, sep="/")
    own = {path: leaf for path, leaf in leaves.items() if path.rpartition("/")[0] == layer}
    if not own:
        names = ", ".join(seht.layer_names(model.params))
        raise NoSuchLayerError(f"there is no layer {layer!r}; the network has {names}")
    weights, unravel = ravel_pytree(own)

    def seconds_for(num_measured: int) -> float:
        def loss_fn(measured: Float[Array, " weights"], *batch: Array) -> tuple[Array, Any]:
            moved = unravel(weights.at[:num_measured].set(measured))
            return model.loss_fn(unflatten_dict(leaves | moved, sep="/"), *batch)

        trace = seht.exact_trace(loss_fn, chunk_size=CHUNK_SIZE, has_aux=True)
        arguments = (weights[:num_measured], *model.batch)
        compiled = jax.jit(trace).lower(*arguments).compile()
        start = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        return time.perf_counter() - start

    num_measured = min(max_weights or weights.size, weights.size)
    seconds = seconds_for(num_measured)
    if num_measured <= CHUNK_SIZE:
        return LayerCost(layer, weights.size, num_measured, seconds, seconds / num_measured)
    slope = max(seconds - seconds_for(CHUNK_SIZE), 0.0) / (num_measured - CHUNK_SIZE)
    cost = LayerCost(layer, weights.size, num_measured, seconds, slope)
    if num_measured < weights.size and cost.seconds < WORTH_MEASURING_SECONDS:
        # From few weights what they share looks like a part of each: ten times too much.
        return measure_layer(model, layer, 0)
    return cost


def whole_network(model: BenchmarkModel, costs: Sequence[LayerCost]) -> LayerCost:
    """Extrapolate to all weights, each at the price of a weight of the dearest layer measured.

    Args:
        model: The network.
        costs: The costs of some layers.

    Returns:
        The cost.
    """
    dearest = max(cost.seconds_per_weight for cost in costs)
    return LayerCost(WHOLE, model.num_params, 0, 0.0, dearest)


def _run(config: ExactTraceConfig, model: BenchmarkModel, console: Console) -> Path:
    path = new_report_path("exact_trace", model.name)
    with make_progress(console) as progress:
        plain_seconds = _plain_seconds(model, progress)
        costs = []
        bar = progress.add_task("", total=len(config.layers))
        for layer in config.layers:
            progress.update(bar, description=f"exact trace of {layer}")
            costs.append(measure_layer(model, layer, config.weights))
            progress.advance(bar)
    costs.append(whole_network(model, costs))
    write_report(
        path,
        {
            "benchmark": "exact_trace",
            "model": describe(model),
            "environment": environment(),
            "plain_seconds": plain_seconds,
            "layers": [
                dataclasses.asdict(cost)
                | {"seconds": cost.seconds, "extrapolated": cost.num_measured < cost.num_weights}
                for cost in costs
            ],
        },
    )
    console.print(_table(model, costs, plain_seconds))
    console.print(f"All numbers: {path}", highlight=False, soft_wrap=True)
    return path


def _plain_seconds(model: BenchmarkModel, progress: Progress) -> float:
    bar = progress.add_task("plain step", total=1)
    program = compile_step(plain_step(model), model, ONE_KEY)
    (stratum,) = program.strata
    program.run(stratum.keys[0])
    start = time.perf_counter()
    program.run(stratum.keys[0])
    progress.advance(bar)
    return time.perf_counter() - start


def _table(model: BenchmarkModel, costs: Sequence[LayerCost], plain_seconds: float) -> Table:
    device = f"{describe_device()}, plain step {plain_seconds:.3g} s"
    table = grid_table(
        f"The exact trace: {describe(model)}\n{device}",
        "layer",
        ("weights", "measured", "ms a weight", "seconds", "plain steps"),
        [(cost.layer, _cells(cost, plain_seconds)) for cost in costs],
    )
    table.caption = (
        "¹ extrapolated from the weights that were measured; for the whole network, from the "
        "dearest of these layers."
    )
    table.caption_justify = "left"
    return table


def _cells(cost: LayerCost, plain_seconds: float) -> list[str]:
    mark = " ¹" if cost.num_measured < cost.num_weights else ""
    return [
        f"{cost.num_weights:,}",
        f"{cost.num_measured:,}",
        f"{1e3 * cost.seconds_per_weight:.3g}",
        f"{_rounded(cost.seconds)}{mark}",
        f"{_rounded(cost.seconds / plain_seconds)}{mark}",
    ]


def _rounded(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
