"""What a penalised training step communicates, against the plain one, by its compiled program.

The programs are those of XLA's CPU backend, whose partitioner and combiner of all-reduces do not
depend on how much LLVM optimises. It lacks one pass of the backends for GPU and TPU, which turns a
sum of all-reduces into an all-reduce of the sum.
"""

import functools
import importlib.util
import io
import json

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P
from rich.console import Console

from benchmarks import communication
from benchmarks.communication import (
    FORMS,
    GAUSS_NEWTON,
    HESSIAN,
    MATRICES,
    PLAIN_FORM,
    SCALARS,
    SPARSE,
    VECTORS,
    CommunicationConfig,
    NoDevicesError,
    fsdp_spec,
    host_mesh,
    quick_size,
    reduced_bytes,
    run_communication,
    step_paths,
    tpu_mesh,
)
from benchmarks.models import build_benchmark_model
from seht_jax import products

STREAMS = {GAUSS_NEWTON: 2, HESSIAN: 3, SPARSE: 3}
PENALISED = pytest.mark.parametrize(
    "form",
    [pytest.param(form, marks=pytest.mark.long if form is SPARSE else ()) for form in STREAMS],
    ids=lambda form: form.name,
)
FEW_SCALARS = 128  # bytes: the loss, the estimate, and two norms for each product
NETWORKS = pytest.mark.parametrize(
    "name", ["mlp", pytest.param("resnet18", marks=pytest.mark.long)]
)


@functools.cache
def model(name):
    return build_benchmark_model(name, quick_size(name))


@pytest.fixture(scope="module")
def paths():
    """The paths of a network, a placement and a form; each is compiled once."""

    @functools.cache
    def compiled(name, placement, form):
        with pytest.MonkeyPatch.context() as patch:
            # Products are made as those of large layers are, and may be left out at run time.
            patch.setattr(products, "_WORTHWHILE_INTENSITY", 0)
            return step_paths(model(name), placement, form, host_mesh())

    return compiled


def param_bytes(name, ranks):
    leaves = jax.tree.leaves(model(name).params)
    return sum(leaf.nbytes for leaf in leaves if leaf.ndim in ranks)


def arrays(path):
    """Return what a path communicates, whatever of it the compiler combined."""
    return sorted(
        (collective.kind, size) for collective in path.collectives for size in collective.sizes
    )


# The gradient


@PENALISED
def test_the_gradient_is_reduced_once_in_a_map_over_the_devices(paths, form):
    for path in (*paths("mlp", "shard_map", form), *paths("mlp", "shard_map", PLAIN_FORM)):
        assert path.counts().keys() == {"all-reduce"}
        assert reduced_bytes(path, MATRICES) == param_bytes("mlp", (2,))
        assert reduced_bytes(path, VECTORS) == param_bytes("mlp", (1,))
        assert reduced_bytes(path, SCALARS) <= FEW_SCALARS


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu, but no TPU")
@PENALISED
def test_the_gradient_is_reduced_once_where_the_compiler_reduces_sums(form):
    (plain,) = step_paths(model("mlp"), "replicated", PLAIN_FORM, tpu_mesh())
    for path in step_paths(model("mlp"), "replicated", form, tpu_mesh()):
        assert reduced_bytes(path, MATRICES) == reduced_bytes(plain, MATRICES)
        assert reduced_bytes(path, VECTORS) == reduced_bytes(plain, VECTORS)
        assert reduced_bytes(path, SCALARS) <= FEW_SCALARS


@PENALISED
def test_the_cpu_backend_reduces_the_terms_of_a_gradient_one_by_one(paths, form):
    (plain,) = paths("mlp", "replicated", PLAIN_FORM)
    assert reduced_bytes(plain, MATRICES) == param_bytes("mlp", (2,))
    for path in paths("mlp", "replicated", form):
        assert reduced_bytes(path, MATRICES) <= STREAMS[form] * reduced_bytes(plain, MATRICES)
        assert reduced_bytes(path, VECTORS) == reduced_bytes(plain, VECTORS)
        assert reduced_bytes(path, SCALARS) <= FEW_SCALARS


# The probe


@NETWORKS
@PENALISED
def test_probes_of_replicated_params_are_not_communicated(paths, name, form):
    for path in paths(name, "replicated", form):
        assert path.counts().keys() == {"all-reduce"}


@PENALISED
def test_no_probe_is_gathered_where_the_loss_gathers_the_params(paths, form):
    (plain,) = paths("mlp", "gathered", PLAIN_FORM)
    assert plain.bytes_of("all-gather") == param_bytes("mlp", (2,))
    for path in paths("mlp", "gathered", form):
        assert path.counts()["all-gather"] == plain.counts()["all-gather"]
        assert path.bytes_of("all-gather") == plain.bytes_of("all-gather")
        assert path.counts().keys() == plain.counts().keys() == {"all-gather", "all-reduce"}


@PENALISED
@pytest.mark.parametrize("name", ["mlp", pytest.param("resnet18", marks=pytest.mark.long)])
def test_params_that_are_gathered_change_nothing_in_what_is_reduced(paths, name, form):
    (plain,) = paths(name, "gathered", PLAIN_FORM)
    replicated, gathered = paths(name, "replicated", form), paths(name, "gathered", form)
    for one, other in zip(gathered, replicated, strict=True):
        assert one.counts()["all-reduce"] == other.counts()["all-reduce"]
        for ranks in (MATRICES, VECTORS, SCALARS):
            assert reduced_bytes(one, ranks) == reduced_bytes(other, ranks)
        assert one.counts()["all-gather"] == plain.counts()["all-gather"]
        assert one.bytes_of("all-gather") == plain.bytes_of("all-gather")


# How often the devices wait for one another


@pytest.mark.parametrize(
    ("name", "form", "most"),
    [
        ("mlp", PLAIN_FORM, [1]),
        ("mlp", GAUSS_NEWTON, [1]),
        ("mlp", HESSIAN, [3]),
        ("mlp", SPARSE, [1, 3, 2, 1]),
        ("resnet18", PLAIN_FORM, [13]),
        ("resnet18", GAUSS_NEWTON, [22]),
        ("resnet18", HESSIAN, [23]),
        pytest.param("resnet18", SPARSE, [13, 26, 21, 16, 14], marks=pytest.mark.long),
    ],
    ids=str,
)
def test_a_step_has_no_more_collectives_than_it_had(paths, name, form, most):
    """What jax 0.10.2 makes of the small networks here: the combiner is that of the CPU backend."""
    counts = [path.counts()["all-reduce"] for path in paths(name, "replicated", form)]
    assert len(counts) == len(most)
    assert all(count <= bound for count, bound in zip(counts, most, strict=True)), counts


# Branches


@pytest.mark.parametrize(
    ("name", "placement"),
    [
        ("mlp", "replicated"),
        ("mlp", "sharded"),
        ("mlp", "gathered"),
        pytest.param("resnet18", "replicated", marks=pytest.mark.long),
    ],
)
def test_a_step_without_a_drawn_layer_communicates_as_a_plain_one(paths, name, placement):
    (plain,) = paths(name, placement, PLAIN_FORM)
    nothing_drawn, *_ = paths(name, placement, SPARSE)
    assert nothing_drawn.branches == (0,)
    assert arrays(nothing_drawn) == arrays(plain)


@pytest.mark.parametrize(
    ("name", "num_layers"), [("mlp", 3), pytest.param("resnet18", 4, marks=pytest.mark.long)]
)
def test_a_shorter_end_of_the_network_communicates_less(paths, name, num_layers):
    nothing_drawn, *programs = paths(name, "replicated", SPARSE)
    (dense,) = paths(name, "replicated", HESSIAN)
    sizes = [path.total_bytes for path in programs]
    assert len(sizes) == num_layers
    assert sizes == sorted(sizes, reverse=True)
    assert nothing_drawn.total_bytes < sizes[-1]
    assert sizes[0] <= dense.total_bytes


def test_programs_that_reduce_the_gradient_alone_communicate_the_same(paths):
    """In a map over the devices the gradient is reduced behind the branches."""
    (path,) = paths("mlp", "shard_map", SPARSE)
    (plain,) = paths("mlp", "shard_map", PLAIN_FORM)
    assert path.branches == ()
    assert path.total_bytes == plain.total_bytes


# Statistics of the batch


@pytest.mark.parametrize("form", [GAUSS_NEWTON, HESSIAN], ids=lambda form: form.name)
def test_statistics_of_the_batch_are_reduced_once_per_stream(paths, form):
    (plain,) = paths("resnet18", "replicated", PLAIN_FORM)
    (path,) = paths("resnet18", "replicated", form)
    # Means and variances, and their cotangents; there are no more sums over the batch than that.
    assert param_bytes("resnet18", (1,)) < reduced_bytes(plain, VECTORS)
    widest = 4 * max(
        leaf.size for leaf in jax.tree.leaves(model("resnet18").params) if leaf.ndim == 1
    )
    assert reduced_bytes(path, VECTORS) > reduced_bytes(plain, VECTORS)
    assert reduced_bytes(path, VECTORS) <= STREAMS[form] * reduced_bytes(plain, VECTORS) + widest


# Shardings, and the command


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((8, 16), P(None, "data")),
        ((32, 16), P("data", None)),
        ((3, 3, 8, 8), P(None, None, "data", None)),
        ((3, 24, 30), P(None, "data", None)),
        ((64,), P()),
        ((3, 5), P()),
        ((), P()),
    ],
)
def test_the_largest_axis_that_divides_is_sharded(shape, spec):
    assert fsdp_spec(jax.ShapeDtypeStruct(shape, jnp.float32)) == spec


def test_the_command_writes_what_it_shows():
    console = Console(file=io.StringIO(), width=160)
    config = CommunicationConfig(models=("mlp",), placements=("shard_map",), quick=True)
    report = json.loads(run_communication(config, console).read_text())
    assert report["finished"]
    assert report["compiled_for"]["count"] == 8
    assert [cell["form"] for cell in report["cells"]] == [form.name for form in FORMS]
    for cell in report["cells"]:
        assert cell["counts"] == {"all-reduce": 1}
        assert cell["bytes"]["all-reduce"] == sum(cell["reduced_bytes"].values())
        assert cell["param_bytes"] < cell["bytes"]["all-reduce"] < cell["param_bytes"] + FEW_SCALARS
    shown = console.file.getvalue()
    assert all(f"shard_map: {form.name}" in shown for form in FORMS)


def test_too_few_devices_are_explained(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    with pytest.raises(NoDevicesError, match=r"8 devices, and there are 1; set .* XLA_FLAGS=.*=8"):
        run_communication(CommunicationConfig(), Console(file=io.StringIO()))


def test_a_missing_compiler_is_explained(monkeypatch):
    def missing(*args, **kwargs):
        raise RuntimeError("no plugin")

    monkeypatch.setattr(communication.topologies, "get_topology_desc", missing)
    with pytest.raises(NoDevicesError, match=r"no compiler for TPUs: pip install 'jax\[tpu\]==0"):
        tpu_mesh()
