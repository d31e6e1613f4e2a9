"""How far loss, estimate and gradient of the penalty are from float64, along the same directions.

The networks are those of the experiments, on the data that come with packages, at the weights from
which seed 0 starts. In float32 and bfloat16 the weights are float32 and the layers compute in the
dtype; in float64 everything is.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree
from rich.console import Console
from rich.table import Table

import seht_jax as seht
from benchmarks.report import environment, make_progress, new_report_path, write_report
from experiments.config import (
    DataConfig,
    LanguageModelConfig,
    ModelConfig,
    TextConfig,
    TrainConfig,
)
from experiments.data.load import load_data
from experiments.tasks.build import build_task
from seht_jax.curvature import Curvature

REFERENCE = "float64"
COMPARED = ("float32", "bfloat16")
FIGURES = {
    "loss": "loss",
    "gradient": "its gradient",
    "trace": "tr(H)",
    "trace_gradient": "its gradient",
    "gauss_newton_trace": "tr(G)",
    "gauss_newton_trace_gradient": "its gradient",
}
_TRACES: dict[str, Curvature] = {"trace": "hessian", "gauss_newton_trace": "gauss_newton"}


@dataclasses.dataclass(frozen=True)
class PrecisionConfig:
    """What to compare."""

    width: int = 16
    """Channels of the residual network's first stage; four times it are the sizes of the states and
    of the residual stream."""
    batch_size: int = 64
    """Images, or strands of text, of the batch."""
    num_probes: int = 8
    """Random directions, the same for all dtypes."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: If one is not above 0.
        """
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 1:
                raise ValueError(
                    f"{field.name} must be at least 1, not {getattr(self, field.name)}"
                )


def run_precision(config: PrecisionConfig, console: Console) -> Path:
    """Compare, show a table, and write a JSON file.

    Args:
        config: What to compare.
        console: Where progress and table are shown.

    Returns:
        The path of the file.
    """
    errors: dict[str, dict[str, dict[str, float]]] = {}
    networks = _networks(config)
    with make_progress(console) as progress:
        task = progress.add_task("comparing", total=len(networks) * (1 + len(COMPARED)))
        for name, network in networks.items():
            expected = _measure(network, REFERENCE, config.num_probes)
            progress.advance(task)
            errors[name] = {}
            for dtype in COMPARED:
                found = _measure(network, dtype, config.num_probes)
                errors[name][dtype] = {
                    figure: _relative_error(found[figure], expected[figure]) for figure in FIGURES
                }
                progress.advance(task)
    table = Table("network", "dtype", *FIGURES.values(), title="Relative error against float64")
    for name, by_dtype in errors.items():
        for dtype, row in by_dtype.items():
            table.add_row(name, dtype, *(f"{row[figure]:.1e}" for figure in FIGURES))
    console.print(table)
    path = new_report_path("precision", "networks")
    write_report(
        path,
        {
            "config": dataclasses.asdict(config),
            "environment": environment(),
            "relative_errors": errors,
        },
    )
    console.print(f"Written to {path}.")
    return path


def _networks(config: PrecisionConfig) -> dict[str, TrainConfig]:
    common = TrainConfig(batch_size=config.batch_size, method=())
    text = dataclasses.replace(common, data=TextConfig(), model=LanguageModelConfig())
    networks = {
        "digits-resnet": dataclasses.replace(
            common, data=DataConfig(), model=ModelConfig(width=config.width)
        )
    }
    for network in ("lstm", "gru", "transformer"):
        model = LanguageModelConfig(network=network, width=4 * config.width)
        networks[network] = dataclasses.replace(text, model=model)
    return networks


def _measure(config: TrainConfig, dtype: str, num_probes: int) -> dict[str, PyTree]:
    """Compute loss, traces and their gradients in one dtype."""
    # With float64 at hand for all of them: other random bits make the signs of a probe without.
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        data = load_data(config.data)
        # The same weights for all, drawn in float32.
        start = build_task(config, data).init(jax.random.key(0))
        stored = REFERENCE if dtype == REFERENCE else "float32"
        params, network_state = _with_floats(start, stored)
        model: Any = dataclasses.replace(config.model, dtype=dtype)
        config = dataclasses.replace(config, model=model)
        task = build_task(config, data)
        batch = _with_floats(task.initial_batch(), stored)
        batch = jax.tree.map(lambda array: array[: config.batch_size], batch)
        step = jnp.zeros((), jnp.int32)
        network = task.network(network_state, step, jax.random.key(1), {})
        loss_fn = task.loss_fn(network, (), batch)

        def loss(params: PyTree) -> jax.Array:
            return loss_fn(params)[0]

        value, gradient = jax.jit(jax.value_and_grad(loss))(params)
        figures = {"loss": value, "gradient": gradient}
        for name, curvature in _TRACES.items():
            penalised = seht.regularize(
                loss,
                jax.random.key(2),
                None,
                1.0,
                num_probes=num_probes,
                layers=task.layers,
                curvature=curvature,
                with_estimate=True,
            )
            value_and_grad = jax.jit(jax.value_and_grad(penalised, has_aux=True))
            (_, estimate), penalised_gradient = value_and_grad(params)
            figures[name] = estimate.mean
            figures[f"{name}_gradient"] = optax.tree.sub(penalised_gradient, gradient)
        return jax.device_get(figures)


def _with_floats(tree: Any, dtype: str) -> Any:
    """Bring floats, and nothing else, to a dtype."""

    def cast(array: jax.Array) -> jax.Array:
        return array.astype(dtype) if jnp.issubdtype(array.dtype, jnp.floating) else array

    return jax.tree.map(cast, tree)


def _relative_error(found: PyTree, expected: PyTree) -> float:
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        difference = optax.tree.sub(found, expected)
        return float(optax.tree.norm(difference) / optax.tree.norm(expected))
