"""Step time, compile time and memory of penalised steps, as ratios to the plain step.

All variants are compiled first and then timed in turn, round after round, so that a disturbance of
the machine strikes them alike; each is reported by its median. Memory is what the compiler reports
for the program's temporary buffers.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
from rich.table import Table

import seht_jax as seht
from experiments.models.resnet import resnet18

Step: TypeAlias = Callable[..., Any]

SEHT_D_KEYS = 40  # enough draws that the mean over them is that of SEHT-D within some percent


@dataclasses.dataclass(frozen=True)
class StepTimeConfig:
    """A CIFAR ResNet-18 with BatchNorm in training mode."""

    width: int = 16
    """Channels of the first stage; 64 is the full network, and takes minutes to compile."""
    batch_size: int = 32
    """Images in the batch."""
    rounds: int = 5
    """How often every variant is timed."""
    composition: bool = False
    """Whether to time the literal composition too, reverse over the Hessian-vector product."""


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What one variant costs.

    Attributes:
        seconds: Median time of a step.
        compile_seconds: Time to trace and compile it.
        temporary_bytes: The program's temporary buffers.
    """

    seconds: float
    compile_seconds: float
    temporary_bytes: int


def measure_step_times(
    config: StepTimeConfig, report: Callable[[str], None]
) -> dict[str, Measurement]:
    """Compile and time every variant.

    Args:
        config: What to measure.
        report: Is told what is going on.

    Returns:
        The measurements, by the name of the variant; "plain" is first.
    """
    model = resnet18(10, config.width)
    key = jax.random.key(0)
    images = jax.random.normal(key, (config.batch_size, 32, 32, 3))
    labels = jax.random.randint(key, (config.batch_size,), 0, 10)
    variables = model.init(key, images, train=False)
    params, batch_stats = variables["params"], variables["batch_stats"]

    def loss_fn(params: Any, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, Any]:
        logits, updated = model.apply(
            {"params": params, "batch_stats": batch_stats},
            images,
            train=True,
            mutable=["batch_stats"],
        )
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return loss, updated["batch_stats"]

    compiled, compile_seconds = {}, {}
    for name, step in _variants(loss_fn, composition=config.composition).items():
        report(f"Compiling {name}")
        start = time.perf_counter()
        compiled[name] = jax.jit(step).lower(params, images, labels, key).compile()
        compile_seconds[name] = time.perf_counter() - start

    times: dict[str, list[float]] = {name: [] for name in compiled}
    for step in compiled.values():
        jax.block_until_ready(step(params, images, labels, key))
    for i in range(config.rounds):
        report(f"Timing, round {i + 1} of {config.rounds}")
        for name, step in compiled.items():
            keys = list(jax.random.split(jax.random.key(i), SEHT_D_KEYS if "SEHT-D" in name else 1))
            start = time.perf_counter()
            for step_key in keys:
                jax.block_until_ready(step(params, images, labels, step_key))
            times[name].append((time.perf_counter() - start) / len(keys))
    return {
        name: Measurement(
            statistics.median(times[name]),
            compile_seconds[name],
            step.memory_analysis().temp_size_in_bytes,
        )
        for name, step in compiled.items()
    }


def step_time_table(config: StepTimeConfig, measurements: Mapping[str, Measurement]) -> Table:
    """Lay the measurements out as ratios to the plain step.

    Args:
        config: What was measured.
        measurements: The measurements.

    Returns:
        A table for a rich console.
    """
    plain = measurements["plain"]
    table = Table(
        title=f"CIFAR ResNet-18, width {config.width}, batch {config.batch_size}, "
        f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {config.rounds} rounds; "
        f"plain step: {1e3 * plain.seconds:.0f} ms, "
        f"{plain.temporary_bytes / 2**20:.0f} MiB of temporary memory"
    )
    for heading in ("value and gradient of", "time", "memory", "compile time"):
        table.add_column(heading, justify="left" if heading.startswith("value") else "right")
    for name, measurement in measurements.items():
        table.add_row(
            name,
            f"{measurement.seconds / plain.seconds:.2f}x",
            f"{measurement.temporary_bytes / plain.temporary_bytes:.2f}x",
            f"{measurement.compile_seconds:.0f} s",
        )
    return table


def _variants(loss_fn: Callable[..., Any], *, composition: bool) -> dict[str, Step]:
    def penalised(p: Any, **options: Any) -> Step:
        def step(params: Any, images: jax.Array, labels: jax.Array, key: jax.Array) -> Any:
            regularized = seht.regularize(loss_fn, key, p, 1e-4, has_aux=True, **options)
            return jax.value_and_grad(regularized, has_aux=True)(params, images, labels)

        return step

    def plain(params: Any, images: jax.Array, labels: jax.Array, key: jax.Array) -> Any:
        del key
        return jax.value_and_grad(loss_fn, has_aux=True)(params, images, labels)

    def skipped(params: Any, images: jax.Array, labels: jax.Array, key: jax.Array) -> Any:
        never = jnp.sum(jax.random.key_data(key)) < 0  # unknown to the compiler
        return penalised(None, active=never)(params, images, labels, key)

    def composed(params: Any, images: jax.Array, labels: jax.Array, key: jax.Array) -> Any:
        probe = optax.tree.random_like(key, params, jax.random.rademacher)

        def regularized(params: Any) -> jax.Array:
            product = seht.hvp(loss_fn, probe, has_aux=True)(params, images, labels)
            return loss_fn(params, images, labels)[0] + 1e-4 * optax.tree.vdot(probe, product)

        return jax.value_and_grad(regularized)(params)

    return {
        "plain": plain,
        "penalty not active": skipped,
        "SEHT-D, p = 0.01": penalised(0.01),
        "SEHT-D, p = 0.05": penalised(0.05),
        "SEHT-H": penalised(None),
        "SEHT-H, 5 probes": penalised(None, num_probes=5),
    } | ({"SEHT-H, literal composition": composed} if composition else {})
