"""The penalty as an optax gradient transformation."""

import math
import numbers
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from seht_jax._compat import as_varying, varying_axes
from seht_jax.closed_loss import ClosedLoss, close_loss
from seht_jax.contribution import make_contribution
from seht_jax.curvature import Curvature
from seht_jax.penalty import (
    NUM_BRANCHES,
    Draw,
    add_scaled,
    as_scalar,
    check_count,
    check_curvature_of,
    check_key,
    check_loss_fn,
    draw,
    make_penalty,
    penalty_terms,
    switch,
)
from seht_jax.precision import accumulation_dtype
from seht_jax.probes import LayerFunction, ProbeProbability, layer_table, module_layer

_NAME = "add_hessian_trace"
_INSTEAD = "Choose what is probed with layers=, which returns None for a leaf that is not"


class AddHessianTraceState(NamedTuple):
    """State of `add_hessian_trace`.

    Attributes:
        key: The key of the next step.
        count: The number of steps taken.
        estimate: The last estimate of the trace, of the Hessian or of the Gauss-Newton matrix; 0
            before the first, and where no layer was drawn. Steps between the penalised ones keep
            it.
    """

    key: PRNGKeyArray
    count: Int[Array, ""]  # pyright: ignore[reportIncompatibleMethodOverride] (optax's name for it)
    estimate: Float[Array, ""]


def add_hessian_trace(
    p: ProbeProbability,
    lam: float | Float[Array, ""] | optax.Schedule,
    key: PRNGKeyArray,
    every: int = 1,
    *,
    relative: float | Float[Array, ""] | None = None,
    scale_free: bool = False,
    num_probes: int = 1,
    probe_batch: int | None = None,
    num_branches: int = NUM_BRANCHES,
    curvature: Curvature = "hessian",
    layers: LayerFunction = module_layer,
    rescale: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Add the gradient of the penalty to the updates.

    $$u \leftarrow u + \lambda \nabla_\theta \frac{1}{K} \sum_k \sigma_k^T H \sigma_k$$

    In front of the optimizer this is the paper's regularised loss (`regularize` computes the same
    gradient together with the loss's, and is cheaper). After an adaptive scaling and before the
    learning rate it is decoupled from it, as AdamW's weight decay is.

    Begin with ``p=None, curvature="gauss_newton", scale_free=True`` and the strength
    ``lambda step: 0.06 * (step / num_steps) ** 2``. The defaults are the paper's estimator, whose
    trace has no lower bound: minimising it seeks negative curvature, which destroys the training.

    `update` needs the loss of the step: `update(grads, state, params, value_fn=value_fn)`, with
    `value_fn(params)` the scalar loss on the batch.

    With `relative`, the penalty's gradient is at most that share of the updates that come in:

    $$\lambda \leftarrow \operatorname{sign}(\lambda) \min\Big(|\lambda|,
        r \frac{\|u\|}{\|\nabla_\theta \frac{1}{K} \sum_k \sigma_k^T H \sigma_k\|}\Big)$$

    in the norm over all params (with `scale_free`, the gradient is that of its penalty). Then no
    curvature can run away with the training: for r < 1 the
    loss still falls along the sum, to first order, where u is its gradient. It is no gradient of
    any value, which is why `regularize` does not have it.

    Args:
        p: See `regularize`.
        lam: The strength, a number, a scalar, or a schedule of the number of steps taken. With
            `relative` it may be infinite, and then the share is always the full one; without,
            an infinite number is refused, and the value of an array is not looked at.
        key: The PRNG key of the first step; it is kept in the state.
        every: Add the penalty on every so-many-th step, beginning with the first; its gradient is
            not multiplied to make up for the others.
        relative: The bound r on the penalty's gradient as a share of the updates; `None` for
            none; a number or a scalar; an array below 0 counts as 0. A schedule of it needs
            `optax.inject_hyperparams`. The norms are those of the arrays that `update` is given:
            global ones under `jax.jit`, also where they are sharded; those of one device under
            `shard_map`; those of one mini-step in front of `optax.MultiSteps`. A gradient of the
            penalty that is not finite is left out.
        scale_free: See `regularize`. The loss in it is that of `value_fn`.
        num_probes: See `regularize`.
        probe_batch: See `regularize`.
        num_branches: See `regularize`.
        curvature: See `regularize`.
        layers: See `regularize`. It takes the place of `optax.masked` and `optax.partition`, which
            hide a part of the params and so can not wrap this transformation: a loss needs all.
        rescale: See `regularize`.

    Returns:
        A gradient transformation whose `update` takes `value_fn`. Under `optax.MultiSteps`, which
        runs the inner transformation on every mini-step and drops all results but the last, put
        it before `MultiSteps` rather than inside.

    Raises:
        TypeError: If an argument has the wrong type; in `update`, if `value_fn` or `params` is
            missing.
        ValueError: If an argument is out of its range.

    Examples:
        >>> import jax, jax.numpy as jnp, optax
        >>> import seht_jax as seht
        >>> def value_fn(params):
        ...     return jnp.sum(params**4)
        >>> params = jnp.array([1.0, 2.0])
        >>> tx = optax.chain(seht.add_hessian_trace(None, 0.1, jax.random.key(0)), optax.sgd(1.0))
        >>> state = tx.init(params)
        >>> gradients = jax.grad(value_fn)(params)
        >>> updates, state = tx.update(gradients, state, params, value_fn=value_fn)
        >>> [round(x, 3) for x in updates.tolist()]  # -(4 w^3 + 0.1 * 24 w)
        [-6.4, -36.8]

    References:
        Eqs. (8)-(13), Algorithms 1 and 2 of Liu, Yu and Lin (2022).
    """
    penalty = make_penalty(
        p,
        num_probes=num_probes,
        curvature=curvature,
        layers=layers,
        rescale=rescale,
        probe_batch=probe_batch,
        num_branches=num_branches,
    )
    contribution = make_contribution(penalty, bound=None, scale_free=scale_free)
    check_key(key)
    check_count("every", every)
    if relative is not None:
        if isinstance(relative, numbers.Real) and relative <= 0:
            message = f"relative must be above 0, got {relative}"
            raise ValueError(message)
        if callable(relative):
            message = (
                "relative must be a number or a scalar, got a schedule: wrap the transformation in "
                "optax.inject_hyperparams, with relative=schedule"
            )
            raise TypeError(message)
        relative = as_scalar("relative", relative)

    def checked(lam: Any) -> Array:
        if relative is not None and isinstance(lam, numbers.Real) and math.isinf(lam):
            return jnp.asarray(float(lam))
        return as_scalar("lam", lam)

    strength = lam if callable(lam) else checked(lam)

    def init(params: PyTree) -> AddHessianTraceState:
        layer_table(complete_params(_NAME, params, _INSTEAD), penalty.layers)
        # A copy: a step that donates its state would delete the caller's key.
        return AddHessianTraceState(
            jnp.copy(key), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32)
        )

    def update(
        updates: PyTree,
        state: Any,
        params: PyTree | None = None,
        *,
        value_fn: Callable[[PyTree], Array] | None = None,
        **_extra_args: Any,
    ) -> tuple[PyTree, AddHessianTraceState]:
        loss, operands = close_value_fn(_NAME, value_fn, params, _INSTEAD)
        table = layer_table(params, penalty.layers)
        next_key, step_key = jax.random.split(state.key)
        active = True if every == 1 else state.count % every == 0
        check_curvature_of(penalty, table, loss, operands)
        choices = draw(penalty, table, loss, operands, step_key, active)
        chosen = range(len(operands) - loss.num_params, len(operands))
        axes = varying_axes(loss.jaxpr.outvars[0].aval)
        scale = checked(strength(state.count)) if callable(strength) else strength

        def penalised(
            suffix: Collection[int], choices: Draw, operands: list[Array]
        ) -> tuple[Array, list[Array]]:
            terms = penalty_terms(
                penalty,
                table,
                loss,
                choices,
                operands,
                chosen,
                suffix=suffix,
                objective=contribution,
            )
            return terms.estimate, terms.gradients

        def plain(_choices: Draw, operands: list[Array]) -> tuple[Array, list[Array]]:
            zero = as_varying(jnp.zeros((), accumulation_dtype(loss.dtype)), axes)
            zeros = [jnp.zeros_like(operands[i]) for i in chosen]
            return zero, [leaf.astype(accumulation_dtype(leaf.dtype)) for leaf in zeros]

        estimate, gradients = switch(penalty, table, loss, choices, plain, penalised, operands)
        if choices.active is not None:
            estimate = jnp.where(choices.active, estimate, state.estimate.astype(estimate.dtype))
        gradients = jax.tree.unflatten(jax.tree.structure(params), gradients)
        if relative is not None:
            scale, gradients = _bounded(scale, gradients, updates, relative)
        updates = jax.tree.map(
            lambda update, gradient: add_scaled(update, scale, gradient), updates, gradients
        )
        return updates, AddHessianTraceState(
            next_key, jnp.asarray(optax.safe_increment(state.count)), estimate.astype(jnp.float32)
        )

    return optax.GradientTransformationExtraArgs(init, update)


def complete_params(name: str, params: PyTree, instead: str) -> PyTree:
    """Return the params of an update, refusing those of which a wrapper hides a part.

    Args:
        name: The name of the transformation.
        params: The params.
        instead: What to do instead of wrapping it, a sentence.

    Returns:
        The params.

    Raises:
        TypeError: If a part is hidden.
    """
    hidden = [
        leaf
        for leaf in jax.tree.leaves(params, is_leaf=lambda leaf: isinstance(leaf, optax.MaskedNode))
        if isinstance(leaf, optax.MaskedNode)
    ]
    if hidden:
        message = (
            f"{name} was given params with optax.MaskedNode in them; optax.masked and "
            f"optax.partition can not wrap it, since the loss needs all params. {instead}"
        )
        raise TypeError(message)
    return params


def close_value_fn(
    name: str, value_fn: Callable[[PyTree], Any] | None, params: PyTree | None, instead: str
) -> tuple[ClosedLoss, list[Array]]:
    """Close the loss of an update (`close_loss`).

    Args:
        name: The name of the transformation.
        value_fn: What its `update` was given.
        params: What its `update` was given.
        instead: See `complete_params`.

    Returns:
        The closed loss, and its operands.

    Raises:
        TypeError: If one is missing or hidden in part, or `value_fn` is no function; see
            `close_loss`.
        ValueError: See `close_loss`.
    """
    if params is None or value_fn is None:
        missing = "params" if params is None else "value_fn"
        message = (
            f"{name} needs {missing}: call update(updates, state, params, value_fn=value_fn), with "
            "value_fn(params) the scalar loss on the batch"
        )
        raise TypeError(message)
    check_loss_fn("value_fn", value_fn)
    params = complete_params(name, params, instead)
    return close_loss(value_fn, params, (), {}, has_aux=False, name="value_fn")


def _bounded(
    scale: Array, gradients: PyTree, updates: PyTree, relative: Array
) -> tuple[Array, PyTree]:
    """Bound a scale so that the scaled gradients are no more than a share of the updates."""
    norm = optax.tree.norm(jax.tree.map(lambda g: g.astype(accumulation_dtype(g.dtype)), gradients))
    updates = jax.tree.map(lambda u: u.astype(accumulation_dtype(u.dtype)), updates)
    usable = jnp.isfinite(norm) & (norm > 0)
    # A traced share can not be checked; a negative one would reward curvature.
    limit = jnp.maximum(relative, 0) * optax.tree.norm(updates) / jnp.where(usable, norm, 1)
    gradients = jax.tree.map(lambda g: jnp.where(usable, g, jnp.zeros_like(g)), gradients)
    return jnp.clip(scale.astype(limit.dtype), -limit, limit), gradients
