"""What is measured of a network that is tested: calibration, curvature, size, flatness."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PRNGKeyArray, PyTree

import seht_jax as seht
from experiments.analyse.measure import Estimate, estimate_mean
from experiments.analyse.trained import TrainedNetwork
from experiments.data.corpus import Corpus
from experiments.data.dataset import Dataset
from experiments.study.protocol import Measurement
from experiments.tasks.base import Task
from seht_jax.analysis import extreme_eigenpairs
from seht_jax.curvature import Curvature

_EIGENVALUE, _TRACES = range(2)


def prepare_measurement(
    task: Task, data: Dataset | Corpus, config: Measurement
) -> Callable[[TrainedNetwork], dict[str, float]]:
    """Prepare the measurement of networks; what it compiles serves for all of them.

    Args:
        task: Data and network, without the methods.
        data: The data.
        config: On how much, and how precisely.

    Returns:
        A function from weights to figures by name: ``calibration_error`` on the test data; of the
        mean cross-entropy of the first training examples, in evaluation mode, ``hessian_trace`` and
        ``gauss_newton_trace`` with their ``_standard_error``, ``relative_trace`` likewise (see
        `root_mean_squares`) and ``top_eigenvalue`` of the Hessian; and ``params_norm``.
    """
    evaluator = task.evaluator()
    batches = _batches(task.examples(config.examples), config.batch_size)
    top_eigenvalue = _top_eigenvalue(task, config)
    curvatures: tuple[Curvature, ...] = ("hessian", "gauss_newton")
    estimators = {each: trace_estimator(task.evaluation_loss, each) for each in curvatures}
    keys = [
        # With JAX's default generator most of the compilation would be that of random numbers.
        jax.random.fold_in(jax.random.key(0, impl="rbg"), stream)
        for stream in (_EIGENVALUE, _TRACES)
    ]

    def measure(network: TrainedNetwork) -> dict[str, float]:
        params, network_state = network
        confidences, hits = evaluator.confidences(params, network_state, data.test)
        figures = {
            "calibration_error": calibration_error(confidences, hits, config.calibration_bins),
            "top_eigenvalue": top_eigenvalue(params, network_state, keys[_EIGENVALUE]),
            "params_norm": float(optax.tree.norm(params)),
        }
        ones = jax.tree.map(lambda leaf: jnp.ones((), leaf.dtype), params)
        traces: tuple[tuple[str, Curvature, PyTree], ...] = (
            ("hessian_trace", "hessian", ones),
            ("gauss_newton_trace", "gauss_newton", ones),
            ("relative_trace", "gauss_newton", root_mean_squares(params)),
        )
        for name, curvature, scales in traces:
            found = estimators[curvature](
                keys[_TRACES], config.trace_probes, params, scales, batches, network_state
            )
            figures |= {name: found.mean, f"{name}_standard_error": found.standard_error}
        return figures

    return measure


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


def root_mean_squares(params: PyTree) -> PyTree:
    r"""Compute the scales with which the trace does not depend on the scale of the weights.

    $$\sum_l \frac{\lVert \theta_l \rVert^2}{n_l} \operatorname{tr} G_l$$

    over the arrays of the params, of n_l entries each, is the trace that `trace_estimator` has with
    these scales. To second order it is 2 / s^2 times what the loss rises by, in the mean over
    normal noise whose standard deviation is s times the root mean square of each array's own
    entries. Multiplying an array by c divides its block of G by c^2 where the network stays the
    same: a kernel before a BatchNorm, or kernel and bias before a ReLU with the next kernel divided
    by c. So the measure is the same for all such networks, which tr(G) is not. It is relative
    flatness (Petzka et al., *Relative Flatness and Generalization*, 2021) with the norm of each
    array in place of the inner products of its rows.

    Args:
        params: The network's parameters.

    Returns:
        The root mean square of each array.
    """
    return jax.tree.map(lambda leaf: jnp.sqrt(jnp.mean(jnp.square(leaf))), params)


def trace_estimator(
    loss_fn: Callable[..., jax.Array], curvature: Curvature
) -> Callable[..., Estimate]:
    r"""Prepare estimates of the trace of D C D, C a matrix of the mean loss and D diagonal.

    Each sample has a probe of its own for each batch, along which the loss is propagated forward:
    half the price of the product with the matrix.

    Args:
        loss_fn: ``loss_fn(params, batch, network_state)``, the mean over a batch.
        curvature: Which matrix C is.

    Returns:
        A function of a PRNG key, the number of samples, the params, the entry of D for each array,
        the batches, and the network's state.
    """

    @jax.jit
    def sample(
        key: PRNGKeyArray, params: PyTree, scales: PyTree, batch: PyTree, network_state: PyTree
    ) -> jax.Array:
        def loss_at(steps: PyTree) -> jax.Array:
            moved = jax.tree.map(
                lambda leaf, scale, step: leaf + scale * step, params, scales, steps
            )
            return loss_fn(moved, batch, network_state)

        penalised = seht.regularize(
            loss_at, key, None, 1.0, curvature=curvature, with_estimate=True
        )
        return penalised(jax.tree.map(jnp.zeros_like, params))[1].mean

    def estimate(
        key: PRNGKeyArray,
        num_probes: int,
        params: PyTree,
        scales: PyTree,
        batches: Sequence[PyTree],
        network_state: PyTree,
    ) -> Estimate:
        sizes = [len(jax.tree.leaves(batch)[0]) for batch in batches]
        samples = [
            np.average(
                [
                    float(sample(batch_key, params, scales, batch, network_state))
                    for batch_key, batch in zip(
                        jax.random.split(probe_key, len(batches)), batches, strict=True
                    )
                ],
                weights=sizes,
            )
            for probe_key in jax.random.split(key, num_probes)
        ]
        return estimate_mean(samples)

    return estimate


def _top_eigenvalue(
    task: Task, config: Measurement
) -> Callable[[PyTree, PyTree, PRNGKeyArray], float]:
    examples = task.examples(config.eigenvalue_examples)
    batch_size = min(config.batch_size, len(jax.tree.leaves(examples)[0]))
    loss_fn = seht.mean_over_batches(task.evaluation_loss, batch_size)

    @jax.jit
    def largest(params: PyTree, network_state: PyTree, key: PRNGKeyArray) -> jax.Array:
        pairs = extreme_eigenpairs(loss_fn, key, num_products=config.eigenvalue_products)
        return pairs(params, examples, network_state).largest.values[0]

    def top_eigenvalue(params: PyTree, network_state: PyTree, key: PRNGKeyArray) -> float:
        return float(largest(params, network_state, key))

    return top_eigenvalue


def _batches(examples: PyTree, batch_size: int) -> list[PyTree]:
    size = len(jax.tree.leaves(examples)[0])
    return [
        jax.tree.map(lambda array, start=start: array[start : start + batch_size], examples)
        for start in range(0, size, batch_size)
    ]
