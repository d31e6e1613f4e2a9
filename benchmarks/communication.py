"""What the penalty costs in communication: the collectives of compiled training steps.

Each step, with the optimizer's update in it, is compiled for eight devices and never run: the
devices of this process, or those of a TPU topology, for which `libtpu` must be installed but no TPU
be there. A step of SEHT-D counts once for each of its programs.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import numpy as np
import optax
from jax import lax
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from rich.console import Console

import seht_jax as seht
from benchmarks import hlo
from benchmarks.measure import PLAIN
from benchmarks.models import QUICK_SIZES, BenchmarkModel, Size, build_benchmark_model
from benchmarks.report import (
    describe,
    environment,
    grid_table,
    make_progress,
    new_report_path,
    write_report,
)
from benchmarks.variants import STRENGTH, dense_name
from experiments.errors import ExperimentError
from seht_jax.curvature import Curvature

Placement = Literal["replicated", "sharded", "gathered", "shard_map"]
ModelName = Literal["mlp", "transformer", "resnet18"]

NUM_DEVICES = 8
AXIS = "data"
TPU_TOPOLOGY = "v5e:2x4"

# Layers are wide enough for the products that they are made of in a real network, which are not
# those of a tiny one, and sizes are divisible by the number of devices.
SIZES: Mapping[ModelName, Size] = {
    "mlp": {"input_size": 512, "hidden_size": 512, "batch_size": 1024},
    "transformer": {
        "num_blocks": 1,
        "num_heads": 4,
        "model_size": 256,
        "vocabulary_size": 512,
        "length": 64,
        "batch_size": 32,
    },
    "resnet18": {
        "num_stages": 1,
        "blocks_per_stage": 1,
        "width": 64,
        "image_size": 16,
        "batch_size": 32,
    },
}


@dataclasses.dataclass(frozen=True)
class Form:
    """A form of the penalty.

    Attributes:
        name: Its name.
        p: `None` for SEHT-H, a number for SEHT-D.
        curvature: The matrix; `None` for no penalty.
    """

    name: str
    p: float | None = None
    curvature: Curvature | None = None


PLAIN_FORM = Form(PLAIN)
HESSIAN = Form(dense_name(1), None, "hessian")
GAUSS_NEWTON = Form(dense_name(1, "gauss_newton"), None, "gauss_newton")
SPARSE = Form("SEHT-D, p = 0.05, 1 probe", 0.05, "hessian")
FORMS = (PLAIN_FORM, GAUSS_NEWTON, HESSIAN, SPARSE)


@dataclasses.dataclass(frozen=True)
class CommunicationConfig:
    """What to compile."""

    models: tuple[ModelName, ...] = get_args(ModelName)
    """The networks: one with BatchNorm, two without."""
    placements: tuple[Placement, ...] = get_args(Placement)
    """Where params are: replicated under jit, sharded under jit, sharded and gathered by the loss,
    replicated under shard_map."""
    tpu: bool = False
    """Compile for eight TPUs (v5e), which need not be there; libtpu must be installed."""
    quick: bool = False
    """Test the benchmark: tiny networks; no result."""


class NoDevicesError(ExperimentError):
    """There is nothing to compile for."""


def run_communication(config: CommunicationConfig, console: Console) -> Path:
    """Compile, count, show a table for each network, and write a JSON file.

    Args:
        config: What to compile.
        console: Where progress and tables are shown.

    Returns:
        The path of the file.
    """
    mesh = tpu_mesh() if config.tpu else host_mesh()
    kind = mesh.devices.flat[0].device_kind
    path = new_report_path("communication", "tpu" if config.tpu else "host")
    cells: list[dict[str, Any]] = []
    report = {
        "benchmark": "communication",
        "quick": config.quick,
        "environment": environment(),
        "compiled_for": {"device": kind, "count": NUM_DEVICES},
        "cells": cells,
    }
    for name in config.models:
        model = build_benchmark_model(name, quick_size(name) if config.quick else SIZES[name])
        rows: list[tuple[str, Sequence[str]]] = []
        with make_progress(console) as progress:
            bar = progress.add_task("", total=len(config.placements) * len(FORMS))
            for placement in config.placements:
                for form in FORMS:
                    progress.update(bar, description=f"{name}, {placement}: {form.name}")
                    paths = step_paths(model, placement, form, mesh)
                    for each in paths:
                        cells.append(_cell(model, placement, form, each))
                        rows.append((_row_name(placement, form, each), _row(each)))
                    write_report(path, report | {"finished": False})
                    progress.advance(bar)
        title = f"{describe(model)}\n{NUM_DEVICES} x {kind}, jax {jax.__version__}"
        console.print(grid_table(title, "step", COLUMNS, rows))
    write_report(path, report | {"finished": True})
    console.print(f"All numbers: {path}", highlight=False, soft_wrap=True)
    return path


def host_mesh() -> Mesh:
    """Return a mesh of this process's devices.

    Raises:
        NoDevicesError: If there are fewer than eight.
    """
    if jax.device_count() < NUM_DEVICES:
        message = (
            f"the steps are compiled for {NUM_DEVICES} devices, and there are "
            f"{jax.device_count()}; set the environment variable "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={NUM_DEVICES}, or use --tpu"
        )
        raise NoDevicesError(message)
    devices = jax.devices()[:NUM_DEVICES]
    return jax.make_mesh((NUM_DEVICES,), (AXIS,), (AxisType.Auto,), devices=devices)


def tpu_mesh() -> Mesh:
    """Return a mesh of TPUs to compile for, which need not be there.

    Raises:
        NoDevicesError: If the compiler for TPUs is not installed.
    """
    # Without these the compiler asks the machine that it is on for its TPUs, and waits.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", f"v5litepod-{NUM_DEVICES}")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_WORKER_ID", "0")
    try:
        topology = topologies.get_topology_desc(TPU_TOPOLOGY, platform="tpu")
    except Exception as error:  # jaxlib has no narrower type for it
        message = f"there is no compiler for TPUs: pip install 'jax[tpu]=={jax.__version__}'"
        raise NoDevicesError(message) from error
    return Mesh(np.asarray(topology.devices).reshape(NUM_DEVICES), (AXIS,))


def step_paths(
    model: BenchmarkModel, placement: Placement, form: Form, mesh: Mesh
) -> list[hlo.Path]:
    """Compile a training step, and read off what it communicates.

    Args:
        model: What is trained.
        placement: Where its params are.
        form: The form of the penalty.
        mesh: The devices.

    Returns:
        One path for each of the step's programs that differ in it.
    """
    text = compile_step(model, placement, form, mesh).as_text()
    return hlo.communication_paths(text or "", mesh.size)


def compile_step(model: BenchmarkModel, placement: Placement, form: Form, mesh: Mesh) -> Any:
    """Compile a training step: a gradient, and an update of params by SGD with momentum.

    Args:
        model: What is trained.
        placement: Where its params are.
        form: The form of the penalty.
        mesh: The devices.

    Returns:
        The compiled step.
    """
    tx = optax.sgd(0.1, momentum=0.9)
    state = jax.eval_shape(lambda params: (params, tx.init(params)), model.params)
    batch = jax.eval_shape(lambda: model.batch)
    key = jax.eval_shape(lambda: jax.random.key(0))

    def sharding(spec: P) -> NamedSharding:
        return NamedSharding(mesh, spec)

    loss_fn = model.loss_fn
    if placement == "gathered":

        def loss_fn(params: Any, *batch: jax.Array) -> tuple[jax.Array, Any]:
            return model.loss_fn(lax.with_sharding_constraint(params, sharding(P())), *batch)

    def step(state: Any, key: jax.Array, *batch: jax.Array) -> Any:
        params, opt_state = state
        objective = _penalised(loss_fn, form, key, model)

        def mean_loss(params: Any) -> tuple[jax.Array, Any]:
            loss, aux = objective(params, *batch)
            if placement != "shard_map":
                return loss, aux
            # Statistics of BatchNorm are averaged too, so that all devices go on with the same.
            return lax.pmean((loss, aux), AXIS)

        value, gradients = jax.value_and_grad(mean_loss, has_aux=True)(params)
        updates, opt_state = tx.update(gradients, opt_state)
        return (optax.apply_updates(params, updates), opt_state), value

    of_batch = [P(AXIS)] * len(batch)
    if placement == "shard_map":
        specs = {"in_specs": (P(), P(), *of_batch), "out_specs": P()}
        return jax.jit(jax.shard_map(step, mesh=mesh, **specs)).lower(state, key, *batch).compile()
    replicated = placement == "replicated"
    of_state = jax.tree.map(lambda leaf: sharding(P() if replicated else fsdp_spec(leaf)), state)
    jitted = jax.jit(
        step,
        in_shardings=(of_state, sharding(P()), *map(sharding, of_batch)),
        out_shardings=(of_state, None),
    )
    return jitted.lower(state, key, *batch).compile()


def fsdp_spec(leaf: jax.ShapeDtypeStruct) -> P:
    """Shard a leaf over the devices that share the batch, along its largest axis that divides.

    Args:
        leaf: A leaf of the params or of the optimizer's state. Vectors, which are small, stay
            whole.

    Returns:
        The spec.
    """
    divisible = [axis for axis, size in enumerate(leaf.shape) if size % NUM_DEVICES == 0]
    if leaf.ndim < 2 or not divisible:
        return P()
    largest = max(divisible, key=lambda axis: leaf.shape[axis])
    return P(*(AXIS if axis == largest else None for axis in range(leaf.ndim)))


def _penalised(
    loss_fn: Callable[..., Any], form: Form, key: jax.Array, model: BenchmarkModel
) -> Callable[..., Any]:
    if form.curvature is None:
        return loss_fn
    return seht.regularize(
        loss_fn,
        key,
        form.p,
        STRENGTH,
        has_aux=True,
        curvature=form.curvature,
        layers=model.layers,
    )


SCALARS, VECTORS, MATRICES = (0,), (1,), (2, 3, 4)  # numbers of axes; a kernel is a matrix

COLUMNS = ("collectives", "reduced: matrices", "vectors", "scalars", "gathered", "other")


def reduced_bytes(path: hlo.Path, ranks: Sequence[int] | None = None) -> int:
    """Sum the bytes that are reduced over the devices, whether the result is sharded or not.

    Args:
        path: A way through a step.
        ranks: See `hlo.Path.bytes_of`.

    Returns:
        Bytes.
    """
    return path.bytes_of("all-reduce", ranks) + path.bytes_of("reduce-scatter", ranks)


def _cell(
    model: BenchmarkModel, placement: Placement, form: Form, path: hlo.Path
) -> dict[str, Any]:
    return {
        "model": model.name,
        "size": dict(model.size),
        "param_bytes": sum(
            leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(model.params)
        ),
        "placement": placement,
        "form": form.name,
        "branches": path.branches,
        "counts": path.counts(),
        "bytes": {kind: path.bytes_of(kind) for kind in hlo.KINDS},
        "reduced_bytes": {
            "matrices": reduced_bytes(path, MATRICES),
            "vectors": reduced_bytes(path, VECTORS),
            "scalars": reduced_bytes(path, SCALARS),
        },
    }


def _row_name(placement: Placement, form: Form, path: hlo.Path) -> str:
    branch = "".join(f", program {index}" for index in path.branches)
    return f"{placement}: {form.name}{branch}"


def _row(path: hlo.Path) -> list[str]:
    gathered = path.bytes_of("all-gather")
    return [
        str(len(path.collectives)),
        *(f"{reduced_bytes(path, ranks):,}" for ranks in (MATRICES, VECTORS, SCALARS)),
        f"{gathered:,}",
        f"{path.total_bytes - gathered - reduced_bytes(path):,}",
    ]


def quick_size(name: ModelName) -> Size:
    """Make the sizes of the other benchmarks' tests divisible by the number of devices."""
    larger = {"batch_size": NUM_DEVICES, "width": NUM_DEVICES, "vocabulary_size": 4 * NUM_DEVICES}
    return {key: larger.get(key, size) for key, size in QUICK_SIZES[name].items()}
