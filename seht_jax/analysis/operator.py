"""The Hessian, or the Gauss-Newton matrix, as a linear map of flat vectors, which matfree takes.

A flat vector has the entries of all probed leaves, one after the other, in at least float32. Krylov
methods keep dozens of them, and make sums over all their entries, for which the leaves' own shapes
and dtypes are no use. Params and products keep theirs: each product takes the vector apart, and
works on leaves.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from seht_jax.closed_loss import close_loss
from seht_jax.curvature import Curvature
from seht_jax.penalty import (
    check_curvature,
    check_key,
    check_loss_fn,
    check_switch,
    shared_key,
)
from seht_jax.precision import accumulation_dtype
from seht_jax.probes import LayerFunction, layer_table, sample_probe
from seht_jax.sharding import gathered, shaped_like
from seht_jax.trace import curvature_product


@dataclasses.dataclass(frozen=True)
class CurvatureOperator:
    """A symmetric matrix.

    Attributes:
        size: Its number of rows.
        dtype: The dtype of the vectors.
        product: The product with a vector. `jax.vmap` makes one product after the other.
        signs: From a key to a vector of random signs.
        to_params: From stacked vectors ``(vectors, size)`` to a pytree like the params whose
            leaves have the stack as first axis, in the leaves' dtypes and shardings. Leaves that
            are not probed are zero.
        key: The key with which the caller draws: on all devices that share the loss, the same.
    """

    size: int
    dtype: np.dtype
    product: Callable[[Float[Array, " size"]], Float[Array, " size"]]
    signs: Callable[[PRNGKeyArray], Float[Array, " size"]]
    to_params: Callable[[Float[Array, "vectors size"]], PyTree]
    key: PRNGKeyArray


def curvature_operator(
    loss_fn: Callable[..., Any],
    key: PRNGKeyArray,
    *,
    has_aux: bool,
    curvature: Curvature,
    layers: LayerFunction,
    progress: Callable[[], Any] | None,
) -> Callable[..., CurvatureOperator]:
    """Check the arguments that the functions of this package share, and make their operator.

    Args:
        loss_fn: The loss.
        key: A PRNG key.
        has_aux: Whether the loss returns an aux; it is dropped.
        curvature: Which matrix.
        layers: From the path of a leaf to its layer, `None` for what is left out.
        progress: Called on the host after each product.

    Returns:
        A function of `loss_fn`'s signature that returns the operator.

    Raises:
        TypeError: If an argument has the wrong type.
    """
    check_loss_fn("loss_fn", loss_fn)
    check_key(key)
    check_switch("has_aux", has_aux)
    check_curvature(curvature)
    if progress is not None and not callable(progress):
        message = f"progress must be a function without arguments, or None, got {progress!r}"
        raise TypeError(message)

    def operator(params: PyTree, /, *args: Any, **kwargs: Any) -> CurvatureOperator:
        loss, operands = close_loss(loss_fn, params, args, kwargs, has_aux=has_aux)
        table = layer_table(params, layers)
        product_with = curvature_product(curvature, loss, operands, table)
        leaves = loss.params_of(operands)
        dtype = accumulation_dtype(loss.dtype)
        ends = np.cumsum([leaves[i].size for i in table.probed])

        def join(parts: dict[int, Array]) -> Array:
            flat = [gathered(parts[i]).astype(dtype).reshape(-1) for i in table.probed]
            return jnp.concatenate(flat)

        def split(vector: Array) -> dict[int, Array]:
            parts = jnp.split(vector, ends[:-1], axis=-1)
            return {i: shaped_like(p, leaves[i]) for i, p in zip(table.probed, parts, strict=True)}

        # In sequence: the activations of all products at once are what there is no room for.
        @jax.custom_batching.sequential_vmap
        def product(vector: Array) -> Array:
            result = join(product_with(loss, operands, split(vector)))
            if progress is not None:
                # An entry is passed on, so that it is called when the product is there.
                jax.debug.callback(functools.partial(_report, progress), result[0])
            return result

        def signs(key: PRNGKeyArray) -> Array:
            return join(sample_probe(key, leaves, table, 0.5, None))

        def to_params(vectors: Array) -> PyTree:
            parts = split(vectors)
            stacked = [
                parts[i] if i in parts else jnp.zeros((len(vectors), *leaf.shape), leaf.dtype)
                for i, leaf in enumerate(leaves)
            ]
            originals = jax.tree.leaves(params)
            return jax.tree.structure(params).unflatten(map(_sharded_like, stacked, originals))

        return CurvatureOperator(
            int(ends[-1]), dtype, product, signs, to_params, shared_key(loss, operands, key)
        )

    return operator


def _sharded_like(stacked: Array, leaf: Any) -> Array:
    """Shard a stack of arrays as an array is, where that can be known: outside of `jax.jit`."""
    if isinstance(leaf, Tracer) or not isinstance(leaf, jax.Array):
        return stacked
    sharding = leaf.sharding
    if not isinstance(sharding, NamedSharding):
        return stacked
    axes: Sequence[Any] = (None, *sharding.spec)
    return jax.device_put(stacked, NamedSharding(sharding.mesh, PartitionSpec(*axes)))


def _report(progress: Callable[[], Any], _: Any) -> None:
    progress()
