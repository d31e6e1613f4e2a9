"""A loss as a function of explicit arrays.

The penalty differentiates a loss by its params and, under the user's own transformations, by
everything else that the loss reads: batch, keywords, values captured from outside. Tracing the loss
once and passing all of it as operands is what makes every JAX transformation work on the result:
what stays captured inside a custom derivative rule leaks.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import eval_jaxpr
from jax.extend import core
from jaxtyping import Array, Float, PyTree

from seht_jax._compat import as_varying, varying_axes


@dataclasses.dataclass(frozen=True)
class ClosedLoss:
    """A traced loss; calling it on its operands gives the loss and the arrays of its aux.

    Attributes:
        jaxpr: From the operands to the loss, followed by the arrays of the aux.
        num_params: How many of the operands, at the end, are the leaves of the params.
        restore_aux: From the arrays of the aux to the aux that the user's function returned.
    """

    jaxpr: core.Jaxpr
    num_params: int
    restore_aux: Callable[[Sequence[Array]], PyTree]

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the loss."""
        loss: Any = self.jaxpr.outvars[0].aval
        return loss.dtype

    def __call__(self, operands: Sequence[Array]) -> tuple[Float[Array, ""], list[Array]]:
        """Evaluate the loss.

        Args:
            operands: The captured values, then the leaves of the params.

        Returns:
            The loss, and the arrays of the aux.
        """
        num_captured = len(self.jaxpr.constvars)
        results = eval_jaxpr(self.jaxpr, operands[:num_captured], *operands[num_captured:])
        loss, *aux = map(jnp.asarray, results)  # constants come out as NumPy arrays
        return loss, aux

    def params_of(self, operands: Sequence[Array]) -> Sequence[Array]:
        """Return the operands that are the leaves of the params.

        Args:
            operands: All operands.

        Returns:
            The leaves.
        """
        return operands[len(operands) - self.num_params :]


def close_loss(
    loss_fn: Callable[..., Any],
    params: PyTree,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    has_aux: bool,
    name: str = "loss_fn",
) -> tuple[ClosedLoss, list[Array]]:
    """Trace a loss and turn all that it reads into operands.

    Args:
        loss_fn: `loss_fn(params, *args, **kwargs)` returns a scalar, or `(scalar, aux)`.
        params: The params, a pytree of real floating-point arrays.
        args: The other positional arguments, passed on as they are.
        kwargs: The keyword arguments, passed on as they are.
        has_aux: Whether the loss returns an aux.
        name: What the user's argument is called, for errors.

    Returns:
        The closed loss, and its operands.

    Raises:
        TypeError: If a leaf of the params is not a real floating-point array, or the loss changes
            one in place, or returns anything but a real scalar (and an aux, if `has_aux`).
        ValueError: If the loss is not a scalar, or devices that share it differ in the params.
    """
    check_params(params)
    params = jax.tree.map(jnp.asarray, params)
    closed, restore_aux = _trace(loss_fn, params, args, kwargs, has_aux=has_aux, name=name)
    axes = varying_axes(closed.out_avals[0])
    if axes:
        # Under `shard_map` the derivative of a replicated input is summed over the devices. That
        # sum must stand outside of the penalty's branches, so inputs are marked before tracing.
        params, args, kwargs = jax.tree.map(
            lambda leaf: as_varying(leaf, axes) if _is_inexact_array(leaf) else leaf,
            (params, args, kwargs),
        )
        closed, restore_aux = _trace(loss_fn, params, args, kwargs, has_aux=has_aux, name=name)
    leaves = jax.tree.leaves(params)
    sharded = frozenset().union(*map(varying_axes, leaves)) - axes
    if sharded:
        message = (
            f"the params differ over the mesh axes {sorted(sharded)}, over which the loss does "
            "not: params that are sharded by hand inside shard_map are not supported. Use jax.jit "
            "with sharded arrays, or gather the params first"
        )
        raise ValueError(message)
    operands = [*map(jnp.asarray, closed.consts), *leaves]
    return ClosedLoss(closed.jaxpr, len(leaves), restore_aux), operands


def check_params(params: PyTree) -> None:
    """Check that every leaf of the params can be probed.

    Args:
        params: The params.

    Raises:
        TypeError: If a leaf is not a real floating-point array.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        dtype = leaf.dtype if hasattr(leaf, "dtype") else None
        if dtype is None and isinstance(leaf, float):
            continue
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            kind = f"of type {type(leaf).__name__}" if dtype is None else f"of dtype {dtype}"
            message = (
                "params, the first argument of the loss, must be a pytree of real floating-point "
                f"arrays; params{jax.tree_util.keystr(path)} is {kind}. Pass what is not trained "
                "as another argument (Equinox: eqx.partition(model, eqx.is_inexact_array); NNX: "
                "nnx.split(model, nnx.Param, ...))"
            )
            raise TypeError(message)


def split_result(result: Any, *, has_aux: bool, name: str) -> tuple[Array, PyTree]:
    """Take apart what a loss returned, and check it.

    Args:
        result: What it returned.
        has_aux: Whether it returns an aux.
        name: What the user's argument is called, for errors.

    Returns:
        The loss and the aux, `None` if there is none.

    Raises:
        TypeError: If it is anything but a real scalar (and an aux, if `has_aux`).
        ValueError: If the loss is not a scalar.
    """
    if has_aux:
        if not isinstance(result, tuple) or len(result) != 2:
            message = f"with has_aux=True, {name} must return (loss, aux), got {_describe(result)}"
            raise TypeError(message)
        loss, aux = result
    else:
        loss, aux = result, None
    if not isinstance(loss, float) and not hasattr(loss, "dtype"):
        hint = ""
        if isinstance(loss, tuple):
            hint = f"; pass {'has_aux=True' if name == 'loss_fn' else 'the loss alone'}"
        message = f"{name} must return a real scalar, got {_describe(loss)}{hint}"
        raise TypeError(message)
    loss = jnp.asarray(loss)
    if not jnp.issubdtype(loss.dtype, jnp.floating):
        message = f"{name} must return a real scalar, got dtype {loss.dtype}"
        raise TypeError(message)
    if loss.shape != ():
        message = (
            f"{name} must return a scalar, got shape {loss.shape}; reduce it, for example with "
            "jnp.mean"
        )
        raise ValueError(message)
    return loss, aux


def _trace(
    loss_fn: Callable[..., Any],
    params: PyTree,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    has_aux: bool,
    name: str,
) -> tuple[core.ClosedJaxpr, Callable[[Sequence[Array]], PyTree]]:
    aux_leaves: list[Any] = []
    aux_structure = None
    replaced: list[Any] = []

    def flat_loss(params: PyTree) -> list[Array]:
        nonlocal aux_leaves, aux_structure, replaced
        given = dict(jax.tree.leaves_with_path(params))
        result = loss_fn(params, *args, **kwargs)
        found = dict(jax.tree.leaves_with_path(params))
        replaced = [path for path in given | found if given.get(path) is not found.get(path)]
        loss, aux = split_result(result, has_aux=has_aux, name=name)
        leaves, aux_structure = jax.tree.flatten(aux)
        arrays = [leaf for leaf in leaves if isinstance(leaf, jax.Array)]
        aux_leaves = [_ARRAY if isinstance(leaf, jax.Array) else leaf for leaf in leaves]
        return [loss, *arrays]

    closed = jax.make_jaxpr(flat_loss)(params)
    if replaced:
        _check_unchanged(lambda params: loss_fn(params, *args, **kwargs), params, replaced, name)

    def restore_aux(arrays: Sequence[Array]) -> PyTree:
        remaining = iter(arrays)
        leaves = [next(remaining) if leaf is _ARRAY else leaf for leaf in aux_leaves]
        return jax.tree.unflatten(aux_structure, leaves)

    return closed, restore_aux


def _check_unchanged(
    loss_fn: Callable[[PyTree], Any], params: PyTree, replaced: Sequence[Any], name: str
) -> None:
    """Refuse a loss that writes into its params, whose change would be lost without a word.

    Raises:
        TypeError: If a leaf has another value afterwards, or has been added or removed.
    """
    positions = {path: i for i, (path, _) in enumerate(jax.tree.leaves_with_path(params))}

    def values_after(params: PyTree) -> list[Array]:
        loss_fn(params)
        found = dict(jax.tree.leaves_with_path(params))
        return [found[path] for path in replaced if path in found and path in positions]

    jaxpr = jax.make_jaxpr(values_after)(params).jaxpr
    outputs = iter(jaxpr.outvars) if len(jaxpr.outvars) == len(replaced) else None
    changed = [
        path
        for path in replaced
        # NNX's transformations replace every leaf, most of them by themselves.
        if outputs is None or not _is_input(jaxpr, next(outputs), jaxpr.invars[positions[path]])
    ]
    paths = ", ".join(f"params{jax.tree_util.keystr(path)}" for path in changed)
    if paths:
        message = (
            f"{name} changed the params in place, at {paths}; it must be pure: the change would be "
            "lost. Split what the network updates from what is trained, and return it as aux (NNX: "
            "graphdef, params, rest = nnx.split(model, nnx.Param, ...); in the loss, "
            "model = nnx.merge(graphdef, params, rest, copy=True) and, at its end, "
            "nnx.state(model, nnx.Not(nnx.Param)))"
        )
        raise TypeError(message)


def _is_input(jaxpr: core.Jaxpr, variable: Any, invar: Any) -> bool:
    """Tell whether a variable is an input that calls have handed through."""
    if variable is invar:
        return True
    for equation in jaxpr.eqns:
        if any(variable is outvar for outvar in equation.outvars):
            inner = equation.params.get("jaxpr")
            if inner is None:
                return False
            inner = getattr(inner, "jaxpr", inner)
            if len(inner.invars) != len(equation.invars):
                return True  # not a plain call: nothing is known, and nothing refused
            inner_variable = inner.outvars[equation.outvars.index(variable)]
            return any(
                _is_input(inner, inner_variable, inner_invar) and _is_input(jaxpr, outer, invar)
                for outer, inner_invar in zip(equation.invars, inner.invars, strict=True)
            )
    return False


_ARRAY = object()  # stands for an array among the leaves of the aux


def _describe(value: Any) -> str:
    kind = type(value).__name__
    return f"a {kind} of length {len(value)}" if isinstance(value, tuple | list) else f"a {kind}"


def _is_inexact_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jnp.inexact)
