"""A loss over a whole data set, a batch at a time."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from seht_jax._compat import as_varying, varying_axes
from seht_jax.closed_loss import split_result
from seht_jax.penalty import check_count, check_loss_fn
from seht_jax.precision import accumulation_dtype
from seht_jax.sharding import num_explicit_shards


def mean_over_batches(
    loss_fn: Callable[..., Any], batch_size: int, *, has_aux: bool = False
) -> Callable[..., Float[Array, ""]]:
    r"""Turn a batch's mean loss into that of a data set of any size, in the memory of one batch.

    $$L(\theta) = \sum_k \frac{|B_k|}{n} L_{B_k}(\theta)$$

    so a last batch that is smaller counts for less. Whatever takes a loss takes the result:
    gradients, `hvp`, `layer_traces`, `exact_trace`, `seht_jax.analysis`. A batch's activations are
    computed again when its derivative is, and not kept: the derivatives of the mean cost what those
    of the batches do, one after the other. (XLA may keep one copy of the data in another layout.)

    Of N samples in b full batches, batch k has the samples k, k + b, k + 2b, ...: each device's
    part of a data set that is sharded over the samples gives its share to every batch, so that all
    devices work on each and no sample moves. (That is so if the devices divide the batch size, and
    the batch size the number of samples.) Where samples of a batch are coupled, as by batch
    normalisation in training mode, the mean depends on who is with whom.

    Args:
        loss_fn: `loss_fn(params, batch, *args, **kwargs)` returns the mean over a batch, a real
            scalar, or `(scalar, aux)`.
        batch_size: How many samples are in a batch.
        has_aux: Whether the loss returns an aux; it is dropped.

    Returns:
        A function of `(params, data, *args, **kwargs)` that returns the mean loss, at least
        float32. The data are a pytree like the batch, whose arrays have all samples along the
        first axis.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If `batch_size` is less than 1, the arrays of the data have no first axis in
            common, there is no sample, or a batch of samples that a mesh of explicit axes shares
            can not be shared evenly.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> def loss_fn(weight, batch):
        ...     return jnp.mean((weight * batch["x"] - batch["y"]) ** 2)
        >>> data = {"x": jnp.arange(5.0), "y": jnp.ones(5)}
        >>> mean_loss = mean_over_batches(loss_fn, batch_size=2)
        >>> float(jax.hessian(mean_loss)(1.0, data))  # 2 (0 + 1 + 4 + 9 + 16) / 5
        12.0
    """
    check_loss_fn("loss_fn", loss_fn)
    check_count("batch_size", batch_size)

    @functools.wraps(loss_fn, updated=())
    def mean_loss(params: PyTree, data: PyTree, /, *args: Any, **kwargs: Any) -> Float[Array, ""]:
        num_samples = _num_samples(data)
        num_batches, num_left = divmod(num_samples, batch_size)
        if num_batches:
            _check_shares(data, batch_size)
        num_full = num_batches * batch_size

        @jax.checkpoint
        def batch_loss(params: PyTree, batch: PyTree) -> Array:
            result = loss_fn(params, batch, *args, **kwargs)
            loss, _ = split_result(result, has_aux=has_aux, name="loss_fn")
            return loss.astype(accumulation_dtype(loss.dtype))

        def full_loss(k: Array) -> Array:
            batch = jax.tree.map(
                lambda rows: jax.lax.dynamic_index_in_dim(rows, k, axis=1, keepdims=False), stacked
            )
            return batch_loss(params, batch)

        parts = []
        if num_batches:
            # Sliced where the number does not come out even only: a slice of a sharded axis moves.
            stacked = jax.tree.map(
                lambda rows: (
                    jax.lax.slice_in_dim(rows, 0, num_full) if num_left else rows
                ).reshape(batch_size, num_batches, *rows.shape[1:]),
                data,
            )
            indices = jnp.arange(num_batches)
            loss = jax.eval_shape(full_loss, indices[0])
            zero = as_varying(jnp.zeros((), loss.dtype), varying_axes(loss))
            total, _ = jax.lax.scan(lambda total, k: (total + full_loss(k), None), zero, indices)
            parts.append(total * (batch_size / num_samples))
        if num_left:
            rest = jax.tree.map(lambda rows: jax.lax.slice_in_dim(rows, num_full, None), data)
            last = batch_loss(params, rest)
            parts.append(last * (num_left / num_samples))
        return sum(parts[1:], start=parts[0])

    return mean_loss


def _num_samples(data: PyTree) -> int:
    leaves = jax.tree_util.tree_leaves_with_path(data)
    sizes = {jnp.shape(leaf)[:1] for _, leaf in leaves}
    if len(sizes) != 1 or () in sizes:
        described = ", ".join(
            f"data{jax.tree_util.keystr(path)}: {jnp.shape(leaf)}" for path, leaf in leaves
        )
        message = (
            "data must be a pytree of arrays with all samples along their first axis, got "
            f"{'the shapes ' + described if leaves else 'no array'}"
        )
        raise ValueError(message)
    ((num_samples,),) = sizes
    if num_samples == 0:
        message = "data has no sample: the first axis of its arrays is of size 0"
        raise ValueError(message)
    return num_samples


def _check_shares(data: PyTree, batch_size: int) -> None:
    """Check that each device has the same share of a batch, where shares are part of the type.

    Raises:
        ValueError: If it has not.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(data):
        num_shards = num_explicit_shards(leaf)
        if batch_size % num_shards:
            message = (
                f"batch_size must be a multiple of {num_shards}, the number of parts in which the "
                f"samples of data{jax.tree_util.keystr(path)} lie on a mesh of explicit axes, got "
                f"{batch_size}"
            )
            raise ValueError(message)
