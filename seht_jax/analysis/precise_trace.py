"""Traces for measurement: fewer products than `seht_jax.hutchinson_trace` needs for an error.

A part of the products finds the directions of large curvature, in which the trace is then exact;
random probes see the rest alone. For a spectrum that falls off quickly, as a trained network's, the
error falls as 1/m with the number m of products, rather than as 1/sqrt(m). They keep as many
vectors of the params' size in memory as there are probes, or twice that.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray, PyTree
from matfree import stochtrace

from seht_jax.analysis.operator import CurvatureOperator, curvature_operator
from seht_jax.curvature import Curvature
from seht_jax.penalty import check_count
from seht_jax.probes import LayerFunction, module_layer
from seht_jax.trace import TraceEstimate, summarise


def xtrace(
    loss_fn: Callable[..., Any],
    key: PRNGKeyArray,
    *,
    num_probes: int = 32,
    has_aux: bool = False,
    curvature: Curvature = "hessian",
    layers: LayerFunction = module_layer,
    progress: Callable[[], Any] | None = None,
) -> Callable[..., TraceEstimate]:
    r"""Estimate tr(H) by XTrace, which uses every probe for both purposes.

    $$\mathrm{tr}\, H \approx \frac{1}{m} \sum_i \Big( \mathrm{tr}\, Q_{-i}^T H Q_{-i}
        + \omega_i^T (I - Q_{-i} Q_{-i}^T)\, H\, (I - Q_{-i} Q_{-i}^T)\, \omega_i \Big)$$

    where $Q_{-i}$ is an orthonormal basis of the products with all probes but the i-th. The
    terms are the samples. They are not independent, and their standard error is an estimate that is
    used in practice, not one that theory gives.

    Args:
        loss_fn: See `extreme_eigenpairs`.
        key: A PRNG key.
        num_probes: The number of probes m, less than half of the parameters. There are two products
            for each, and one to find the scale.
        has_aux: See `extreme_eigenpairs`.
        curvature: See `extreme_eigenpairs`.
        layers: See `extreme_eigenpairs`.
        progress: See `extreme_eigenpairs`.

    Returns:
        A function of `loss_fn`'s signature that returns a `TraceEstimate`, in the dtype of the
        loss and at least float32.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If there are too few parameters for the number of probes.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> def loss_fn(params):
        ...     return 0.5 * jnp.sum(0.5 ** jnp.arange(50) * params**2)
        >>> estimate = xtrace(loss_fn, jax.random.key(0), num_probes=15)(jnp.ones(50))
        >>> bool(abs(estimate.mean - 2.0) < 0.001)
        True

    References:
        Epperly, Tropp and Webber, *XTrace: Making the Most of Every Sample in Stochastic Trace
        Estimation* (2024), in matfree's implementation.
    """
    check_count("num_probes", num_probes)
    operator = curvature_operator(
        loss_fn, key, has_aux=has_aux, curvature=curvature, layers=layers, progress=progress
    )

    @functools.wraps(loss_fn, updated=())
    def estimate(params: PyTree, /, *args: Any, **kwargs: Any) -> TraceEstimate:
        matrix = operator(params, *args, **kwargs)
        _check_few(num_probes, matrix, products_of_probe=2)
        like = jnp.zeros(matrix.size, matrix.dtype)
        probes = stochtrace.sampler_sphere(like, num=num_probes)(matrix.key)
        # matfree tells products that are linearly dependent by an absolute threshold.
        norm = jnp.linalg.norm(matrix.product(probes[0]))
        scale = jnp.where(norm > 0, norm, 1)
        samples = stochtrace.leave_one_out_xtrace()(lambda v: matrix.product(v) / scale, probes)
        return summarise(samples * scale)

    return estimate


def hutch_plus_plus(
    loss_fn: Callable[..., Any],
    key: PRNGKeyArray,
    *,
    num_probes: int = 32,
    has_aux: bool = False,
    curvature: Curvature = "hessian",
    layers: LayerFunction = module_layer,
    progress: Callable[[], Any] | None = None,
) -> Callable[..., TraceEstimate]:
    r"""Estimate tr(H) by Hutch++, with half of the probes for the large directions.

    $$\mathrm{tr}\, H = \mathrm{tr}\, Q^T H Q
        + E\big[\sigma^T (I - QQ^T)\, H\, (I - QQ^T)\, \sigma\big]$$

    where Q is an orthonormal basis of the products of H with m random vectors. Given Q the samples
    are independent and unbiased, so the standard error is one.

    Args:
        loss_fn: See `extreme_eigenpairs`.
        key: A PRNG key.
        num_probes: The number m, of random vectors for the basis and of probes for the rest. There
            are three products for each; m is at most a third of the parameters.
        has_aux: See `extreme_eigenpairs`.
        curvature: See `extreme_eigenpairs`.
        layers: See `extreme_eigenpairs`.
        progress: See `extreme_eigenpairs`.

    Returns:
        A function of `loss_fn`'s signature that returns a `TraceEstimate`, in the dtype of the
        loss and at least float32.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If there are too few parameters for the number of probes.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> def loss_fn(params):
        ...     return 0.5 * jnp.sum(0.5 ** jnp.arange(50) * params**2)
        >>> estimate = hutch_plus_plus(loss_fn, jax.random.key(0), num_probes=10)(jnp.ones(50))
        >>> bool(abs(estimate.mean - 2.0) < 0.01)
        True

    References:
        Meyer, Musco, Musco and Woodruff, *Hutch++: Optimal Stochastic Trace Estimation* (2021).
    """
    check_count("num_probes", num_probes)
    operator = curvature_operator(
        loss_fn, key, has_aux=has_aux, curvature=curvature, layers=layers, progress=progress
    )

    @functools.wraps(loss_fn, updated=())
    def estimate(params: PyTree, /, *args: Any, **kwargs: Any) -> TraceEstimate:
        matrix = operator(params, *args, **kwargs)
        _check_few(num_probes, matrix, products_of_probe=3)
        keys_basis, keys_rest = jax.random.split(matrix.key, (2, num_probes))
        sketch = jax.lax.map(lambda key: matrix.product(matrix.signs(key)), keys_basis)
        basis = jnp.linalg.qr(sketch.T)[0]
        large = jnp.sum(jax.lax.map(matrix.product, basis.T) * basis.T)

        def rest(key: PRNGKeyArray) -> jax.Array:
            probe = matrix.signs(key)
            probe -= basis @ (basis.T @ probe)
            return probe @ matrix.product(probe)

        return summarise(large + jax.lax.map(rest, keys_rest))

    return estimate


def _check_few(num_probes: int, matrix: CurvatureOperator, products_of_probe: int) -> None:
    """Refuse as many products as the exact trace takes.

    Raises:
        ValueError: If there are.
    """
    if num_probes * products_of_probe >= matrix.size:
        message = (
            f"num_probes = {num_probes} takes {products_of_probe} products each, and the matrix "
            f"has only {matrix.size} rows: use seht_jax.exact_trace, or fewer probes"
        )
        raise ValueError(message)
