"""The loss along random straight lines through a network's params."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from seht_jax.closed_loss import check_params, split_result
from seht_jax.penalty import check_key, check_loss_fn, check_switch
from seht_jax.precision import accumulation_dtype


def filter_normalized_direction(
    key: PRNGKeyArray, params: PyTree, *, filter_axis: int = -1
) -> PyTree:
    r"""Draw a random direction, each filter of which is as long as that of the params.

    With Gaussian $d$ and the filters $\theta_{ij}$ of layer i,

    $$d_{ij} \leftarrow \frac{d_{ij}}{\|d_{ij}\|} \|\theta_{ij}\|$$

    so that a step along it changes every filter by the same share of its size, and the slices of
    networks whose weights differ in scale compare. A filter is what makes one output: all entries
    of an array that share their index along `filter_axis`. Biases and the params of BatchNorm, that
    is, arrays with less than two axes, do not move.

    Args:
        key: A PRNG key.
        params: The params, a pytree of floating-point arrays.
        filter_axis: The axis that counts outputs: the last one in Flax and Haiku, the first, 0, in
            Equinox and PyTorch.

    Returns:
        The direction, with the params' structure, shapes, dtypes and, outside of `jax.jit` too,
        shardings. A filter of zeros does not move.

    Raises:
        TypeError: If `key` is no PRNG key, or a leaf of the params no floating-point array.
        ValueError: If an array with two axes or more has no such axis.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> params = {"kernel": jnp.array([[3.0, 0.0], [4.0, 2.0]]), "bias": jnp.ones(2)}
        >>> direction = filter_normalized_direction(jax.random.key(0), params)
        >>> [round(float(norm), 4) for norm in jnp.linalg.norm(direction["kernel"], axis=0)]
        [5.0, 2.0]
        >>> direction["bias"].tolist()
        [0.0, 0.0]

    References:
        Li, Xu, Taylor, Studer and Goldstein, *Visualizing the Loss Landscape of Neural Nets*
        (2018), section 4.
    """
    check_key(key)
    check_params(params)
    params = jax.tree.map(jnp.asarray, params)

    def of_leaf(path: Any, noise: Array, leaf: Array) -> Array:
        if leaf.ndim < 2:
            return jnp.zeros_like(leaf)
        if not -leaf.ndim <= filter_axis < leaf.ndim:
            message = (
                f"filter_axis must be an axis of every array with two axes or more, got "
                f"{filter_axis}, and params{jax.tree_util.keystr(path)} has {leaf.ndim}"
            )
            raise ValueError(message)
        others = tuple(axis for axis in range(leaf.ndim) if axis != filter_axis % leaf.ndim)
        wide = accumulation_dtype(leaf.dtype)
        noise, weights = noise.astype(wide), leaf.astype(wide)
        length = jnp.linalg.vector_norm(noise, axis=others, keepdims=True)
        wanted = jnp.linalg.vector_norm(weights, axis=others, keepdims=True)
        # A draw of nothing but zeros can not be scaled to a length.
        return (noise * (wanted / jnp.where(length > 0, length, 1))).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(of_leaf, optax.tree.random_like(key, params), params)


def loss_slice(
    loss_fn: Callable[..., Any],
    direction: PyTree,
    positions: Float[Array, " positions"],
    *,
    has_aux: bool = False,
) -> Callable[..., Float[Array, " positions"]]:
    r"""Evaluate a loss along a straight line through the params.

    $$\alpha \mapsto L(\theta + \alpha d)$$

    Args:
        loss_fn: `loss_fn(params, *args, **kwargs)` returns a real scalar, or `(scalar, aux)`. For
            a data set, wrap it in `seht_jax.mean_over_batches`.
        direction: d, a pytree like the params (`filter_normalized_direction`).
        positions: The values of alpha. They are taken one after the other, in the memory of one
            evaluation.
        has_aux: Whether the loss returns an aux; it is dropped.

    Returns:
        A function of `loss_fn`'s signature that returns the losses, at least float32.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the positions are no vector, or the direction is not like the params.

    Examples:
        >>> import jax.numpy as jnp
        >>> losses = loss_slice(lambda x: x**2, jnp.array(2.0), jnp.array([-1.0, 0.0, 1.0]))
        >>> losses(jnp.array(1.0)).tolist()  # (1 + 2 alpha)^2
        [1.0, 1.0, 9.0]

    References:
        Goodfellow, Vinyals and Saxe, *Qualitatively Characterizing Neural Network Optimization
        Problems* (2015).
    """
    check_loss_fn("loss_fn", loss_fn)
    check_switch("has_aux", has_aux)
    positions = jnp.asarray(positions)
    if positions.ndim != 1 or not jnp.issubdtype(positions.dtype, jnp.floating):
        message = (
            "positions must be a vector of floating-point numbers, got shape "
            f"{positions.shape} and dtype {positions.dtype}"
        )
        raise ValueError(message)

    @functools.wraps(loss_fn, updated=())
    def losses(params: PyTree, /, *args: Any, **kwargs: Any) -> Float[Array, " positions"]:
        check_params(params)
        _check_alike(params, direction)

        def at(position: Array) -> Array:
            moved = jax.tree.map(functools.partial(_move, position), params, direction)
            loss, _ = split_result(loss_fn(moved, *args, **kwargs), has_aux=has_aux, name="loss_fn")
            return loss.astype(accumulation_dtype(loss.dtype))

        return jax.lax.map(at, positions)

    return losses


def _move(position: Array, leaf: Any, part: Any) -> Array:
    leaf = jnp.asarray(leaf)
    return leaf + position.astype(leaf.dtype) * part


def _check_alike(params: PyTree, direction: PyTree) -> None:
    """Check that a direction has the structure, shapes and dtypes of the params.

    Raises:
        ValueError: If it has not.
    """
    structures = jax.tree.structure(params), jax.tree.structure(direction)
    if structures[0] != structures[1]:
        message = (
            f"direction must have the structure of the params, {structures[0]}, got {structures[1]}"
        )
        raise ValueError(message)
    for (path, leaf), part in zip(
        jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(direction), strict=True
    ):
        wanted, found = jax.typeof(jnp.asarray(leaf)), jax.typeof(jnp.asarray(part))
        if (wanted.shape, wanted.dtype) != (found.shape, found.dtype):
            message = (
                f"direction{jax.tree_util.keystr(path)} must have the shape and dtype of the "
                f"params there, {wanted.str_short()}, got {found.str_short()}"
            )
            raise ValueError(message)
