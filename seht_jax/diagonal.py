"""Estimates of the diagonal of the Hessian, or of the Gauss-Newton matrix."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray, PyTree

from seht_jax.closed_loss import close_loss
from seht_jax.curvature import Curvature
from seht_jax.penalty import check_estimator, shared_key
from seht_jax.precision import accumulation_dtype
from seht_jax.probes import layer_table, module_layer, sample_probe
from seht_jax.trace import curvature_product


class DiagonalEstimate(NamedTuple):
    """An estimate of a diagonal.

    Attributes:
        mean: The mean over the probes, a pytree like the params.
        standard_error: Its standard error, of the same form; nan for a single probe.
    """

    mean: PyTree
    standard_error: PyTree


def hutchinson_diagonal(
    loss_fn: Callable[..., Any],
    key: PRNGKeyArray,
    *,
    num_probes: int = 32,
    has_aux: bool = False,
    curvature: Curvature = "hessian",
) -> Callable[..., DiagonalEstimate]:
    r"""Estimate the diagonal of H with Rademacher probes.

    $$E[\sigma \odot H \sigma] = \mathrm{diag}\, H, \qquad
        \mathrm{Var}[\sigma_i (H \sigma)_i] = \sum_{j \ne i} H_{ij}^2$$

    The sum of a sample's entries is a sample of `hutchinson_trace`. Sums are kept, and not the
    samples: memory does not grow with the probes.

    Args:
        loss_fn: See `hutchinson_trace`.
        key: A PRNG key.
        num_probes: The number of probes; each costs one Hessian-vector product.
        has_aux: See `hutchinson_trace`.
        curvature: See `hutchinson_trace`.

    Returns:
        A function of `loss_fn`'s signature that returns a `DiagonalEstimate`, in the dtype of the
        loss and at least float32.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If `num_probes` is less than 1.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> def loss_fn(params):
        ...     return jnp.sum(params["a"] ** 2) + 3 * params["b"] ** 2
        >>> params = {"a": jnp.ones(2), "b": jnp.array(1.0)}
        >>> diagonal = hutchinson_diagonal(loss_fn, jax.random.key(0), num_probes=2)(params)
        >>> diagonal.mean["a"].tolist(), float(diagonal.mean["b"])
        ([2.0, 2.0], 6.0)

    References:
        Bekas, Kokiopoulou and Saad, *An estimator for the diagonal of a matrix* (2007). Yao et al.,
        *AdaHessian* (2021), section 3.2.
    """
    check_estimator(loss_fn, key, curvature, num_probes)

    @functools.wraps(loss_fn, updated=())
    def estimate(params: PyTree, /, *args: Any, **kwargs: Any) -> DiagonalEstimate:
        loss, operands = close_loss(loss_fn, params, args, kwargs, has_aux=has_aux)
        table = layer_table(params, module_layer)
        product_with = curvature_product(curvature, loss, operands, table)
        leaves = loss.params_of(operands)
        dtype = accumulation_dtype(loss.dtype)

        def add_sample(carry: Any, key: PRNGKeyArray) -> tuple[Any, None]:
            count, means, squares = carry
            probe = sample_probe(key, leaves, table, 0.5, None)
            product = product_with(loss, operands, probe)
            samples = [probe[i].astype(dtype) * product[i].astype(dtype) for i in table.probed]
            # Welford's recurrence: sums of squares would lose the digits of a small spread.
            changes = [sample - mean for sample, mean in zip(samples, means, strict=True)]
            moved = [
                mean + change / (count + 1) for mean, change in zip(means, changes, strict=True)
            ]
            squares = [
                square + change * (sample - mean)
                for square, change, sample, mean in zip(
                    squares, changes, samples, moved, strict=True
                )
            ]
            return (count + 1, moved, squares), None

        keys = jax.random.split(shared_key(loss, operands, key), num_probes)
        zeros = [jnp.zeros_like(leaf, dtype) for leaf in leaves]
        start = (jnp.zeros((), dtype), zeros, zeros)
        (_, means, squares), _ = jax.lax.scan(add_sample, start, keys)
        degrees = num_probes - 1 or np.nan  # one sample has no spread
        errors = [jnp.sqrt(square / (degrees * num_probes)) for square in squares]
        structure = jax.tree.structure(params)
        return DiagonalEstimate(structure.unflatten(means), structure.unflatten(errors))

    return estimate
