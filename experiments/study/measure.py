"""What is measured of a network that is tested: calibration, curvature, size, flatness."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PRNGKeyArray, PyTree

import seht_jax as seht
from experiments.analyse.trained import TrainedNetwork
from experiments.data.corpus import Corpus
from experiments.data.dataset import Dataset
from experiments.study.protocol import Measurement
from experiments.tasks.base import Task
from seht_jax.analysis import extreme_eigenpairs
from seht_jax.curvature import Curvature
from seht_jax.probes import leaf_paths

_EIGENVALUE, _TRACES = range(2)


class Estimate(NamedTuple):
    """A mean over random vectors, and its standard error."""

    mean: float
    standard_error: float


def measure_network(
    task: Task, data: Dataset | Corpus, network: TrainedNetwork, config: Measurement
) -> dict[str, float]:
    """Measure a network.

    Args:
        task: Data and network, without the methods.
        data: The data.
        network: The weights.
        config: On how much, and how precisely.

    Returns:
        Figures by name: ``calibration_error`` on the test data; of the mean cross-entropy of the
        first training examples, in evaluation mode, ``hessian_trace`` and ``gauss_newton_trace``
        with their ``_standard_error``, ``top_eigenvalue`` of the Hessian and ``relative_trace``
        (see `relative_trace`); and ``params_norm``.
    """
    confidences, hits = task.evaluator().confidences(
        network.params, network.network_state, data.test
    )
    examples = task.examples(config.examples)
    batch_size = min(config.batch_size, len(jax.tree.leaves(examples)[0]))
    loss_fn = seht.mean_over_batches(task.evaluation_loss, batch_size)
    arguments = (network.params, examples, network.network_state)
    keys = [
        # With JAX's default generator most of the compilation would be that of random numbers.
        jax.random.fold_in(jax.random.key(0, impl="rbg"), stream)
        for stream in (_EIGENVALUE, _TRACES)
    ]
    pairs = extreme_eigenpairs(loss_fn, keys[_EIGENVALUE], num_products=config.eigenvalue_products)
    figures = {
        "calibration_error": calibration_error(confidences, hits, config.calibration_bins),
        "top_eigenvalue": float(jax.jit(pairs)(*arguments).largest.values[0]),
        "params_norm": float(optax.tree.norm(network.params)),
    }
    curvatures: tuple[Curvature, ...] = ("hessian", "gauss_newton")
    for curvature in curvatures:
        samples = trace_samples(loss_fn, curvature, keys[_TRACES], config.trace_probes, arguments)
        trace = _estimate(sum(samples.values(), np.zeros(config.trace_probes)))
        figures |= {
            f"{curvature}_trace": trace.mean,
            f"{curvature}_trace_standard_error": trace.standard_error,
        }
        if curvature == "gauss_newton":
            flatness = relative_trace(network.params, samples)
            figures |= {
                "relative_trace": flatness.mean,
                "relative_trace_standard_error": flatness.standard_error,
            }
    return figures


def calibration_error(confidences: np.ndarray, hits: np.ndarray, num_bins: int) -> float:
    r"""Compute the expected calibration error.

    $$\sum_b \frac{n_b}{n} \left| \text{accuracy}_b - \text{confidence}_b \right|$$

    over bins of equal width in the confidence. Guo et al., *On Calibration of Modern Neural
    Networks* (2017).

    Args:
        confidences: The probability of the likeliest class of each example, in [0, 1].
        hits: Whether it is the right one.
        num_bins: How many bins.

    Returns:
        The error, from 0 to 1.
    """
    bins = np.minimum((confidences * num_bins).astype(int), num_bins - 1)
    gaps = np.bincount(bins, hits.astype(float) - confidences.astype(float), num_bins)
    return float(np.abs(gaps).sum() / len(hits))


def relative_trace(params: PyTree, samples: dict[str, np.ndarray]) -> Estimate:
    r"""Compute a measure of flatness that does not depend on the scale of the weights.

    $$\sum_l \frac{\lVert \theta_l \rVert^2}{n_l} \operatorname{tr} G_l$$

    over the arrays of the params, of n_l entries each. To second order it is 2 / s^2 times what
    the loss rises by, in the mean over normal noise whose standard deviation is s times the root
    mean square of each array's own entries. Multiplying an array by c divides its block of G by c^2
    where the network stays the same: a kernel before a BatchNorm, or kernel and bias before a ReLU
    with the next kernel divided by c. So the measure is the same for all such networks, which tr(G)
    is not. It is relative flatness (Petzka et al., *Relative Flatness and Generalization*, 2021)
    with the norm of each array in place of the inner products of its rows.

    Args:
        params: The network's parameters.
        samples: What `trace_samples` returns for the Gauss-Newton matrix.

    Returns:
        The measure; the larger, the sharper.
    """
    weights = {
        _leaf_name(path): float(jnp.mean(jnp.square(leaf)))
        for path, leaf in zip(leaf_paths(params), jax.tree.leaves(params), strict=True)
    }
    return _estimate(sum(weights[name] * each for name, each in samples.items()))


def trace_samples(
    loss_fn: Callable[..., jax.Array],
    curvature: Curvature,
    key: PRNGKeyArray,
    num_probes: int,
    arguments: tuple[PyTree, ...],
) -> dict[str, np.ndarray]:
    """Estimate the trace of each block of a matrix, a block being that of one array of the params.

    Args:
        loss_fn: The loss, a function of the arguments.
        curvature: Which matrix.
        key: PRNG key of the probes.
        num_probes: How many probes.
        arguments: The params, and what else the loss takes.

    Returns:
        One sample for each probe, by the array's name.
    """

    @jax.jit
    def sample(key: PRNGKeyArray, *arguments: Any) -> dict[str, jax.Array]:
        traces = seht.layer_traces(
            loss_fn, key, num_probes=1, curvature=curvature, layers=_leaf_name
        )
        return {name: trace.samples[0] for name, trace in traces(*arguments).items()}

    samples = [
        jax.device_get(sample(probe_key, *arguments))
        for probe_key in jax.random.split(key, num_probes)
    ]
    return {name: np.array([each[name] for each in samples], np.float64) for name in samples[0]}


def _leaf_name(path: tuple[str, ...]) -> str:
    return "/".join(path)


def _estimate(samples: Any) -> Estimate:
    error = np.std(samples, ddof=1) / len(samples) ** 0.5
    return Estimate(float(np.mean(samples)), float(error))
