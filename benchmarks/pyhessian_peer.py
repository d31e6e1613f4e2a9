"""The curvature of a trained network here and by PyHessian, on the same weights and data.

The network is a small ResNet in evaluation mode, as PyHessian has it; the loss is the mean over all
samples, the last batch a smaller one. Both compute in float32.
"""

# PyTorch is in the extra `bench` alone, and type checking goes without it.
# pyright: reportMissingImports=false

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import seht_jax as seht
from benchmarks.report import (
    environment,
    grid_table,
    make_progress,
    new_report_path,
    num_threads,
    write_report,
)
from experiments.config import DataConfig, ModelConfig, TrainConfig
from experiments.data.augment import normalise
from experiments.data.load import load_data
from experiments.training.loop import build_experiment
from seht_jax.analysis import (
    DensityEstimate,
    SpectralQuadrature,
    extreme_eigenpairs,
    smoothed_density,
    spectral_quadrature,
)

_NETWORKS: dict[str, Literal["digits-resnet", "resnet18"]] = {
    "digits": "digits-resnet",
    "cifar10": "resnet18",
}
_TOLERANCE = 1e-5  # of PyHessian's power iteration: its default, 1e-3, is not within 1 %
_MAX_POWER_PRODUCTS = 500
_NUM_POINTS = 2000


@dataclasses.dataclass(frozen=True)
class PyHessianConfig:
    """What to compare."""

    dataset: Literal["digits", "cifar10"] = "digits"
    """What the network is trained on: a small ResNet for the digits, ResNet-18 for CIFAR-10."""
    data_dir: Path | None = None
    """Where CIFAR-10 is; see `python -m experiments train cifar10-small --help`."""
    width: int = 8
    """Channels of the network's first stage."""
    epochs: int = 5
    """How long it is trained."""
    samples: int = 1000
    """Training images that the loss is the mean over."""
    batch_size: int = 256
    """How many are taken at once."""
    lanczos_products: int = 30
    """Products for the greatest eigenvalue here; PyHessian stops by itself."""
    trace_probes: int = 1000
    """Probes of the trace."""
    density_probes: int = 5
    """Probes of the spectral density."""
    density_products: int = 60
    """Products for each of them."""
    seed: int = 0
    """For weights, training and probes."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: If one is out of its range.
        """
        for field in ("width", "epochs", "samples", "batch_size", "lanczos_products"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1, not {getattr(self, field)}")
        for field in ("trace_probes", "density_probes", "density_products"):
            if getattr(self, field) < 2:
                raise ValueError(f"{field} must be at least 2, not {getattr(self, field)}")


class TrainedNetwork(NamedTuple):
    """A network and the data that its curvature is of.

    Attributes:
        model: The network.
        variables: Its params and BatchNorm statistics.
        images: Normalised images.
        labels: Their labels.
    """

    model: Any
    variables: dict[str, Any]
    images: Float[Array, "samples height width channels"]
    labels: Array

    @property
    def num_params(self) -> int:
        """The number of parameters."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.variables["params"]))


class Curvatures(NamedTuple):
    """What one of both found, and how long it took.

    Attributes:
        eigenvalue: The greatest eigenvalue.
        trace_samples: Samples of the trace.
        quadrature: The spectrum.
        seconds: The times, by quantity, without compilation.
        products: The numbers of Hessian-vector products, by quantity.
        compile_seconds: The times of compilation; PyTorch has none.
    """

    eigenvalue: float
    trace_samples: np.ndarray
    quadrature: SpectralQuadrature
    seconds: dict[str, float]
    products: dict[str, int]
    compile_seconds: dict[str, float]


QUANTITIES = ("eigenvalue", "trace", "density")


def run_pyhessian(config: PyHessianConfig, console: Console) -> Path:
    """Compare, show a table, write a JSON file and draw the densities.

    Args:
        config: What to compare.
        console: Where progress and table are shown.

    Returns:
        The path of the JSON file.
    """
    with make_progress(console) as progress:
        network = train_network(config, progress)
        ours = our_curvatures(network, config, progress)
        theirs = their_curvatures(network, config, progress)
    points, width = density_points(ours.quadrature, theirs.quadrature)
    densities = [smoothed_density(each.quadrature, points, width) for each in (ours, theirs)]
    report = compare(ours, theirs)
    report["density"]["distance"] = float(
        np.trapezoid(jnp.abs(densities[0].mean - densities[1].mean), points)
    )
    report["density"]["width"] = width
    path = new_report_path("pyhessian", f"{config.dataset}-{config.width}")
    write_report(
        path,
        {
            "benchmark": "pyhessian",
            "environment": environment(),
            **dataclasses.asdict(config) | {"data_dir": None},
            "num_params": network.num_params,
            "threads": num_threads(),
            **report,
        },
    )
    figure = path.with_suffix(".svg")
    draw_densities(points, *densities).savefig(figure)
    console.print(_table(config, network.num_params, report))
    console.print(f"Densities: {figure}. All numbers: {path}", highlight=False, soft_wrap=True)
    return path


def train_network(config: PyHessianConfig, progress: Progress) -> TrainedNetwork:
    """Train the network, plainly.

    Args:
        config: The settings.
        progress: Where progress is shown.

    Returns:
        The network.
    """
    data = load_data(DataConfig(dataset=config.dataset, data_dir=config.data_dir))
    experiment = build_experiment(
        TrainConfig(
            data=DataConfig(dataset=config.dataset, data_dir=config.data_dir),
            model=ModelConfig(network=_NETWORKS[config.dataset], width=config.width),
            method=(),
            epochs=config.epochs,
        ),
        data,
    )
    task: Any = experiment.task
    state = experiment.init(config.seed)
    bar = progress.add_task("training", total=config.epochs)
    for epoch in range(config.epochs):
        order = task.epoch_order(state.key, epoch)
        for _ in range(task.steps_per_epoch):
            state, _ = experiment.train_step(state, task.train_data, order)
        progress.advance(bar)
    images, labels = (part[: config.samples] for part in task.train_data)
    return TrainedNetwork(
        task.model,
        {"params": state.params, "batch_stats": state.network_state},
        normalise(images, task.dataset.mean, task.dataset.standard_deviation),
        labels,
    )


def our_curvatures(
    network: TrainedNetwork, config: PyHessianConfig, progress: Progress
) -> Curvatures:
    """Compute eigenvalue, trace and density here.

    Args:
        network: The network.
        config: The settings.
        progress: Where progress is shown.

    Returns:
        What was found.
    """
    statistics = network.variables["batch_stats"]

    def loss_fn(params: Any, batch: tuple[Array, Array]) -> Array:
        images, labels = batch
        logits = network.model.apply(
            {"params": params, "batch_stats": statistics}, images, train=False
        )
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    loss = seht.mean_over_batches(loss_fn, config.batch_size)
    keys = jax.random.split(jax.random.key(config.seed), 3)
    estimates = {
        "eigenvalue": extreme_eigenpairs(loss, keys[0], num_products=config.lanczos_products),
        "trace": seht.hutchinson_trace(loss, keys[1], num_probes=config.trace_probes),
        "density": spectral_quadrature(
            loss,
            keys[2],
            num_probes=config.density_probes,
            num_products=config.density_products,
        ),
    }
    arguments = (network.variables["params"], (network.images, network.labels))
    found, seconds, compile_seconds = {}, {}, {}
    bar = progress.add_task("here", total=len(estimates))
    for quantity, estimate in estimates.items():
        start = time.perf_counter()
        compiled = jax.jit(estimate).lower(*arguments).compile()
        between = time.perf_counter()
        found[quantity] = jax.block_until_ready(compiled(*arguments))
        seconds[quantity] = time.perf_counter() - between
        compile_seconds[quantity] = between - start
        progress.advance(bar)
    largest, smallest = found["eigenvalue"]
    # Power iteration finds the one of largest magnitude.
    extreme = max(float(largest.values[0]), float(smallest.values[0]), key=abs)
    products = {
        "eigenvalue": min(config.lanczos_products, network.num_params),
        "trace": config.trace_probes,
        "density": config.density_probes * min(config.density_products, network.num_params),
    }
    return Curvatures(
        extreme,
        np.asarray(found["trace"].samples),
        found["density"],
        seconds,
        products,
        compile_seconds,
    )


def their_curvatures(
    network: TrainedNetwork, config: PyHessianConfig, progress: Progress
) -> Curvatures:
    """Compute eigenvalue, trace and density by PyHessian.

    Args:
        network: The network.
        config: The settings.
        progress: Where progress is shown.

    Returns:
        What was found.
    """
    # Where it is used, so that `--help` needs no PyTorch.
    import torch  # noqa: PLC0415

    from benchmarks.torch_hessian import PyHessian, torch_resnet  # noqa: PLC0415

    torch.set_num_threads(num_threads())
    images = np.asarray(network.images)
    peer = PyHessian(
        torch_resnet(network.model, network.variables, images.shape[-1]),
        images,
        np.asarray(network.labels),
        config.batch_size,
    )
    seed = config.seed
    estimates: dict[str, Callable[[], Any]] = {
        "eigenvalue": lambda: peer.top_eigenvalue(seed, _MAX_POWER_PRODUCTS, _TOLERANCE),
        "trace": lambda: peer.trace_samples(seed, config.trace_probes),
        "density": lambda: peer.quadrature(
            seed, config.density_probes, min(config.density_products, network.num_params)
        ),
    }
    found, seconds, products = {}, {}, {}
    bar = progress.add_task("PyHessian", total=len(estimates))
    for quantity, estimate in estimates.items():
        before, start = peer.num_products, time.perf_counter()
        found[quantity] = estimate()
        seconds[quantity] = time.perf_counter() - start
        products[quantity] = peer.num_products - before
        progress.advance(bar)
    nodes, weights = map(jnp.asarray, found["density"])
    return Curvatures(
        found["eigenvalue"],
        np.asarray(found["trace"]),
        SpectralQuadrature(nodes, weights),
        seconds,
        products,
        {},
    )


def compare(ours: Curvatures, theirs: Curvatures) -> dict[str, dict[str, Any]]:
    """Compare the figures.

    Args:
        ours: Ours.
        theirs: PyHessian's.

    Returns:
        By quantity, the figures of both, how far they are apart, and the times.
    """
    (mean, error), (their_mean, their_error) = (
        (samples.mean(), samples.std(ddof=1) / math.sqrt(len(samples)))
        for samples in (ours.trace_samples, theirs.trace_samples)
    )
    figures = {
        "eigenvalue": {
            "here": ours.eigenvalue,
            "pyhessian": theirs.eigenvalue,
            "relative_difference": ours.eigenvalue / theirs.eigenvalue - 1,
        },
        "trace": {
            "here": float(mean),
            "standard_error": float(error),
            "pyhessian": float(their_mean),
            "pyhessian_standard_error": float(their_error),
            "in_standard_errors": float((mean - their_mean) / math.hypot(error, their_error)),
        },
        "density": {},
    }
    return {
        quantity: {
            **figures[quantity],
            "seconds": ours.seconds[quantity],
            "pyhessian_seconds": theirs.seconds[quantity],
            "products": ours.products[quantity],
            "pyhessian_products": theirs.products[quantity],
            "compile_seconds": ours.compile_seconds[quantity],
        }
        for quantity in QUANTITIES
    }


def density_points(
    *quadratures: SpectralQuadrature,
) -> tuple[Float[Array, " points"], float]:
    """Choose where densities are compared, and how much they are smoothed.

    Args:
        *quadratures: The spectra.

    Returns:
        Points from below the least node to above the greatest, and a hundredth of that range.
    """
    nodes = np.concatenate([np.ravel(quadrature.nodes) for quadrature in quadratures])
    width = float(nodes.max() - nodes.min()) / 100
    return jnp.linspace(nodes.min() - 5 * width, nodes.max() + 5 * width, _NUM_POINTS), width


def draw_densities(
    points: Float[Array, " points"], ours: DensityEstimate, theirs: DensityEstimate
) -> Figure:
    """Draw two densities.

    Args:
        points: Where they are known.
        ours: Ours.
        theirs: PyHessian's.

    Returns:
        The figure, with bands of one standard error.
    """
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.add_subplot()
    floor = 1e-6 * float(jnp.max(ours.mean))
    for density, label, colour, dashes in (
        (ours, "seht_jax", "#0072B2", "-"),
        (theirs, "PyHessian", "#E69F00", "--"),
    ):
        mean, error = np.asarray(density.mean), np.asarray(density.standard_error)
        axes.plot(points, np.maximum(mean, floor), dashes, color=colour, label=label)
        axes.fill_between(
            points,
            np.maximum(mean - error, floor),
            np.maximum(mean + error, floor),
            color=colour,
            alpha=0.2,
            linewidth=0,
        )
    axes.set(xlabel="eigenvalue of the Hessian", ylabel="density", yscale="log")
    axes.legend()
    return figure


def _table(config: PyHessianConfig, num_params: int, report: dict[str, dict[str, Any]]) -> Table:
    eigenvalue, trace, density = (report[quantity] for quantity in QUANTITIES)
    cells = [
        (
            "eigenvalue",
            (
                f"{eigenvalue['here']:.5g}",
                f"{eigenvalue['pyhessian']:.5g}",
                f"{100 * eigenvalue['relative_difference']:+.3f} %",
            ),
        ),
        (
            "trace",
            (
                f"{trace['here']:.4g} ± {trace['standard_error']:.2g}",
                f"{trace['pyhessian']:.4g} ± {trace['pyhessian_standard_error']:.2g}",
                f"{trace['in_standard_errors']:+.1f} s.e.",
            ),
        ),
        ("density", ("", "", f"{density['distance']:.2g} of 2 apart")),
    ]
    for quantity in QUANTITIES:
        figures = report[quantity]
        products = figures["products"], figures["pyhessian_products"]
        seconds = figures["seconds"], figures["pyhessian_seconds"]
        each = [1e3 * time / number for time, number in zip(seconds, products, strict=True)]
        cells += [
            (f"{quantity}: products", (*map(str, products), "")),
            (f"{quantity}: ms each", (*(f"{ms:.1f}" for ms in each), f"{each[0] / each[1]:.2f}x")),
            (f"{quantity}: compilation, s", (f"{figures['compile_seconds']:.1f}", "", "")),
        ]
    title = (
        f"Curvature of a ResNet of width {config.width} on {config.dataset}:\n"
        f"{num_params:,} parameters, {config.samples:,} samples, threads: {num_threads()}"
    )
    return grid_table(title, "", ("here", "PyHessian", "difference"), cells)
