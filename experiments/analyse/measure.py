"""What is measured of a trained network: ends and density of the spectrum, traces, slices."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

import seht_jax as seht
from experiments.analyse.trained import TrainedNetwork
from experiments.errors import SettingError, option
from experiments.tasks.base import Task
from seht_jax.analysis import (
    SpectralQuadrature,
    extreme_eigenpairs,
    filter_normalized_direction,
    loss_slice,
    spectral_quadrature,
)
from seht_jax.curvature import Curvature
from seht_jax.probes import LayerFunction, layer_table

Advance: TypeAlias = Callable[[str, int], None]
"""Is told what is measured, and how much of the work (see `total_work`) has been done since."""

NUM_EIGENVALUES = 3

# The work of a matrix-vector product in evaluations of the loss, roughly.
_PRODUCT = 6
_EIGENVALUES, _DENSITY, _TRACES, _SLICES = range(4)


@dataclasses.dataclass(frozen=True)
class MeasureConfig:
    """On which data, and how precisely."""

    examples: int = 1000
    """Training images, or windows of text, whose mean loss is looked at: the first ones, or all
    where there are fewer."""
    batch_size: int = 100
    """How many of them are in memory at a time; it changes the time alone."""
    eigenvalue_products: int = 40
    """Products with the Hessian for the ends of its spectrum."""
    density_probes: int = 4
    """Random vectors for the density of the spectrum."""
    density_products: int = 30
    """Products with the Hessian for each of them."""
    trace_probes: int = 64
    """Random vectors for the traces of H and of G, by layer."""
    slice_directions: int = 5
    """Random directions along which the loss is drawn."""
    slice_points: int = 41
    """Points of each slice, an odd number, so that the network itself is among them."""
    slice_range: float = 1.0
    """How far a slice reaches to both sides; at 1, a filter has moved by its own length."""
    probe_seed: int = 0
    """Seed of all random vectors and directions, which are the same for both networks."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            SettingError: If one is out of its range.
        """
        minima = {
            "examples": 1,
            "batch_size": 1,
            "eigenvalue_products": NUM_EIGENVALUES,
            "density_probes": 2,
            "density_products": 2,
            "trace_probes": 2,
            "slice_directions": 1,
            "slice_points": 3,
            "probe_seed": 0,
        }
        for name, minimum in minima.items():
            value = getattr(self, name)
            if not minimum <= value < 2**31:
                raise SettingError(
                    f"{option(name)} must be at least {minimum}, and an int32, not {value}"
                )
        if self.slice_points % 2 == 0:
            raise SettingError(f"--slice-points must be odd, not {self.slice_points}")
        if not 0 < self.slice_range < float("inf"):
            raise SettingError(f"--slice-range must be finite and above 0, not {self.slice_range}")

    @property
    def slice_positions(self) -> np.ndarray:
        """Where on a slice the loss is evaluated."""
        return np.linspace(-self.slice_range, self.slice_range, self.slice_points)


class Estimate(NamedTuple):
    """A mean over random vectors, and its standard error."""

    mean: float
    standard_error: float


class Eigenvalue(NamedTuple):
    """An eigenvalue, and a bound on its error: there is one of H no farther away than that."""

    value: float
    residual: float


class Traces(NamedTuple):
    """The trace of a matrix, and the traces of its blocks, one for each layer."""

    total: Estimate
    by_layer: dict[str, Estimate]


class Measurement(NamedTuple):
    """What is known of a trained network.

    Attributes:
        num_params: Its parameters.
        num_examples: How many examples the loss is a mean of.
        loss: The mean loss.
        largest: The largest eigenvalues of the Hessian, the largest first.
        smallest: The smallest ones, the smallest first.
        quadrature: The spectrum of the Hessian, as random vectors see it.
        hessian: Traces of the Hessian.
        gauss_newton: Traces of the Gauss-Newton matrix.
        layer_sizes: Parameters of each layer.
        slices: The loss along each direction, of shape (directions, points).
    """

    num_params: int
    num_examples: int
    loss: float
    largest: list[Eigenvalue]
    smallest: list[Eigenvalue]
    quadrature: SpectralQuadrature
    hessian: Traces
    gauss_newton: Traces
    layer_sizes: dict[str, int]
    slices: np.ndarray


def total_work(config: MeasureConfig, num_params: int) -> int:
    """Count the work of measuring a network, in evaluations of the loss, roughly.

    Args:
        config: How precisely it is measured.
        num_params: Its parameters.

    Returns:
        What `Advance` is told of, added up.
    """
    eigenvalue_products = min(config.eigenvalue_products, num_params)
    density_products = config.density_probes * min(config.density_products, num_params)
    products = eigenvalue_products + density_products + 2 * config.trace_probes
    return _PRODUCT * products + config.slice_directions * config.slice_points


def estimate_mean(samples: Sequence[float] | np.ndarray) -> Estimate:
    """Compute a mean over random vectors.

    Args:
        samples: What each of them gave, two at least.

    Returns:
        The mean, and its standard error.
    """
    error = np.std(samples, ddof=1, dtype=np.float64) / len(samples) ** 0.5
    return Estimate(float(np.mean(samples, dtype=np.float64)), float(error))


def measurer(
    task: Task, config: MeasureConfig, advance: Advance
) -> Callable[[TrainedNetwork], Measurement]:
    """Prepare the measurement of networks of one kind, all of which share its compilation.

    Args:
        task: Data and network, without the methods.
        config: On which data, and how precisely.
        advance: Is told of what is done.

    Returns:
        Measures a network.
    """
    examples = task.examples(config.examples)
    num_examples = len(jax.tree.leaves(examples)[0])
    loss_fn = seht.mean_over_batches(task.evaluation_loss, min(config.batch_size, num_examples))
    # With JAX's default generator, which draws each array by a program of its own, most of the
    # compilation would be that of random numbers.
    keys = [
        jax.random.fold_in(jax.random.key(config.probe_seed, impl="rbg"), stream)
        for stream in (_EIGENVALUES, _DENSITY, _TRACES, _SLICES)
    ]
    mean_loss = jax.jit(loss_fn)
    eigenpairs = jax.jit(
        extreme_eigenpairs(
            loss_fn,
            keys[_EIGENVALUES],
            num_pairs=NUM_EIGENVALUES,
            num_products=config.eigenvalue_products,
            progress=functools.partial(advance, "eigenvalues", _PRODUCT),
        )
    )
    quadrature = jax.jit(
        spectral_quadrature(
            loss_fn,
            keys[_DENSITY],
            num_probes=config.density_probes,
            num_products=config.density_products,
            progress=functools.partial(advance, "density", _PRODUCT),
        )
    )
    trace_samples = {
        name: jax.jit(functools.partial(_trace_sample, task, loss_fn, name))
        for name in ("hessian", "gauss_newton")
    }
    positions = jnp.asarray(config.slice_positions, jnp.float32)
    along = jax.jit(
        lambda key, params, *rest: loss_slice(
            loss_fn, filter_normalized_direction(key, params), positions
        )(params, *rest)
    )

    def measure(network: TrainedNetwork) -> Measurement:
        arguments = (network.params, examples, network.network_state)

        def traces(curvature: Curvature) -> Traces:
            samples = []
            for key in jax.random.split(keys[_TRACES], config.trace_probes):
                samples.append(jax.device_get(trace_samples[curvature](key, *arguments)))
                advance("traces", _PRODUCT)
            by_layer = {name: np.array([each[name] for each in samples]) for name in samples[0]}
            total = np.sum(list(by_layer.values()), axis=0)
            return Traces(
                estimate_mean(total), {k: estimate_mean(each) for k, each in by_layer.items()}
            )

        advance("eigenvalues", 0)
        loss = float(mean_loss(*arguments))
        pairs = jax.block_until_ready(eigenpairs(*arguments))
        advance("density", 0)
        spectrum = jax.block_until_ready(quadrature(*arguments))
        jax.effects_barrier()  # the last calls of the progress
        advance("traces", 0)
        hessian, gauss_newton = traces("hessian"), traces("gauss_newton")
        advance("slices", 0)
        slices = []
        for key in jax.random.split(keys[_SLICES], config.slice_directions):
            slices.append(np.asarray(along(key, *arguments)))
            advance("slices", config.slice_points)
        sizes = _layer_sizes(network.params, task.layers)
        return Measurement(
            num_params=sum(sizes.values()),
            num_examples=num_examples,
            loss=loss,
            largest=_eigenvalues(pairs.largest.values, pairs.largest.residuals),
            smallest=_eigenvalues(pairs.smallest.values, pairs.smallest.residuals),
            quadrature=spectrum,
            hessian=hessian,
            gauss_newton=gauss_newton,
            layer_sizes=sizes,
            slices=np.stack(slices),
        )

    return measure


def _trace_sample(
    task: Task,
    loss_fn: Callable[..., Array],
    curvature: Curvature,
    key: PRNGKeyArray,
    *arguments: object,
) -> dict[str, Float[Array, ""]]:
    estimate = seht.layer_traces(
        loss_fn, key, num_probes=1, curvature=curvature, layers=task.layers
    )
    return {name: trace.samples[0] for name, trace in estimate(*arguments).items()}


def _layer_sizes(params: PyTree, layers: LayerFunction) -> dict[str, int]:
    """Count the parameters of each layer."""
    table = layer_table(params, layers)
    sizes = np.zeros(len(table.names), int)
    for leaf, index in zip(jax.tree.leaves(params), table.indices.values(), strict=True):
        np.add.at(sizes, np.broadcast_to(index, leaf.shape), 1)
    return dict(zip(table.names, sizes.tolist(), strict=True))


def _eigenvalues(values: Array, residuals: Array) -> list[Eigenvalue]:
    # The residuals are those of exact arithmetic.
    rounding = float(jnp.finfo(values.dtype).eps * jnp.max(jnp.abs(values)))
    pairs = zip(values.tolist(), residuals.tolist(), strict=True)
    return [Eigenvalue(value, max(residual, rounding)) for value, residual in pairs]
