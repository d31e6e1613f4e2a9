"""Second derivatives along directions: Hessian-vector products and quadratic forms."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, PRNGKeyArray, PyTree, UInt32

from seht_jax.closed_loss import ClosedLoss
from seht_jax.jet import Jet, add
from seht_jax.outputs import LINEAR, UNREACHED, check_marked
from seht_jax.precision import accumulation_dtype
from seht_jax.taylor import propagate, propagates


def hvp(
    loss_fn: Callable[..., Any], tangent: PyTree, *, has_aux: bool = False
) -> Callable[..., PyTree]:
    r"""Return the Hessian-vector product of a loss, forward over reverse.

    $$H v = \left.\frac{d}{d\varepsilon} \nabla L(\theta + \varepsilon v)
        \right|_{\varepsilon = 0}$$

    computed as `jax.jvp` of `jax.grad`, for about two plain gradients' time and memory.

    Args:
        loss_fn: `loss_fn(params, *args, **kwargs)` returns a scalar, or `(scalar, aux)`.
        tangent: The direction v, a pytree like the params.
        has_aux: Whether the loss returns an aux; it is dropped.

    Returns:
        A function of `loss_fn`'s signature that returns `H v`, a pytree like the params.

    Examples:
        >>> import jax.numpy as jnp
        >>> def loss_fn(params):
        ...     return params["a"] ** 2 * params["b"]
        >>> params = {"a": jnp.array(1.0), "b": jnp.array(3.0)}
        >>> direction = {"a": jnp.array(1.0), "b": jnp.array(0.0)}
        >>> product = hvp(loss_fn, direction)(params)
        >>> float(product["a"]), float(product["b"])
        (6.0, 2.0)

    References:
        Pearlmutter, *Fast Exact Multiplication by the Hessian* (1994).
    """

    def product(params: PyTree, /, *args: Any, **kwargs: Any) -> PyTree:
        def gradient(params: PyTree) -> PyTree:
            gradients = jax.grad(loss_fn, has_aux=has_aux)(params, *args, **kwargs)
            return gradients[0] if has_aux else gradients

        return jax.jvp(gradient, (params,), (tangent,))[1]

    return product


class ObjectiveTerms(NamedTuple):
    """A loss, the mean quadratic form of its Hessian over some probes, and a gradient of both.

    Attributes:
        loss: The loss L.
        aux: The arrays of its aux.
        estimate: The mean over the probes of the quadratic form, at least float32.
        gradients: The gradients of an objective by the chosen operands, at least float32: sums
            over many probes would stop growing in bfloat16.
    """

    loss: Float[Array, ""]
    aux: list[Array]
    estimate: Float[Array, ""]
    gradients: list[Array]


Curvature: TypeAlias = Literal["hessian", "gauss_newton"]
Objective: TypeAlias = Callable[[Array, Array], Array]
Probe: TypeAlias = Mapping[int, Any]


def objective_terms(
    loss: ClosedLoss,
    operands: Sequence[Array],
    chosen: Sequence[int],
    sample_probe: Callable[[PRNGKeyArray], Probe],
    keys: Key[Array, " probes"] | UInt32[Array, "probes words"],
    *,
    curvature: Curvature,
    objective: Objective,
    conditions: Mapping[int, Bool[Array, ""]],
    probe_batch: int,
) -> ObjectiveTerms:
    r"""Compute a loss and the mean of $\sigma^T H \sigma$ together, with a gradient.

    The loss is propagated along the probes to second order (`taylor`), and one reverse pass gives
    the gradient of the objective, of loss and estimate together. A loss with a `custom_vjp` inside
    has no other derivative than the gradient that its author wrote: there the estimate is the
    curvature of that gradient, and the plain part of the gradient is untouched.

    Args:
        loss: The closed loss.
        operands: Its operands.
        chosen: The positions of the operands whose gradients are wanted.
        sample_probe: From a key to a probe: directions by the positions of the probed operands.
        keys: One key for each probe, stacked.
        curvature: The matrix H: that of the loss, or of Gauss and Newton (`outputs`), for which the
            loss must be one that `check_marked` accepts and that propagates.
        objective: From loss and estimate to the scalar whose gradients are wanted; linear in the
            estimate, if there are more probes than are propagated at once.
        conditions: By the positions of probed operands, flags without which their directions are
            zeros.
        probe_batch: How many probes are propagated at once, at most; memory grows with it.

    Returns:
        The terms; gradients in the order of `chosen`.
    """
    num_probes = keys.shape[0]
    num_batches = -(-num_probes // probe_batch)
    batch_size = -(-num_probes // num_batches)
    num_first = num_probes - (num_batches - 1) * batch_size
    propagating = propagates(loss.jaxpr)

    def batch(keys: Any, objective: Objective) -> ObjectiveTerms:
        probes = [sample_probe(key) for key in keys]

        def share(loss_value: Array, total: Array) -> Array:
            return objective(loss_value, total / num_probes)

        if propagating:
            # The derivative rule of a conditional layer takes derivatives by the layer itself.
            known = conditions if set(probes[0]) <= set(chosen) else {}
            return _along_curves(loss, operands, chosen, probes, curvature, known, share)
        return _along_gradients(loss, operands, chosen, probes, share)

    def add_batch(sums: Any, keys: Any) -> tuple[Any, None]:
        # The gradient of the loss is in the first batch.
        terms = batch(
            list(keys), lambda value, estimate: objective(jax.lax.stop_gradient(value), estimate)
        )
        return jax.tree.map(jnp.add, sums, (terms.estimate, terms.gradients)), None

    # The first batch stands outside of the loop: it brings loss, aux and gradient, and gives the
    # loop's carry its types.
    first = batch([keys[i] for i in range(num_first)], objective)
    sums = (first.estimate, first.gradients)
    if num_batches > 1:
        rest = keys[num_first:].reshape(num_batches - 1, batch_size, *keys.shape[1:])
        sums, _ = jax.lax.scan(add_batch, sums, rest)
    total, gradients = sums
    return first._replace(estimate=total / num_probes, gradients=gradients)


def gauss_newton_product(
    loss: ClosedLoss, operands: Sequence[Array], probe: Probe
) -> dict[int, Array]:
    r"""Compute the product of the Gauss-Newton matrix with a direction.

    $$G \sigma = \tfrac{1}{2} \nabla_\sigma\, \sigma^T G \sigma$$

    Args:
        loss: The closed loss, in which the outputs are marked.
        operands: Its operands.
        probe: The direction, by the positions of the operands.

    Returns:
        The product, at the same positions.
    """

    def half_form(probe: Probe) -> Array:
        result, *_ = _propagate_loss(loss, operands, [probe], "gauss_newton", {})
        return _acceleration(result) / 2

    return jax.grad(half_form)(dict(probe))


def check_outputs(loss: ClosedLoss, operands: Sequence[Array], probed: Sequence[int]) -> None:
    """Check that the outputs of a network are marked between some params and the loss.

    Args:
        loss: The closed loss.
        operands: Its operands.
        probed: Which of its params are probed.

    Raises:
        TypeError: If the loss has no forward derivative.
        ValueError: If there is no mark, it has no part in the curvature, or the loss has none.
    """
    check_marked(loss.jaxpr)
    if not propagates(loss.jaxpr):
        message = (
            "curvature='gauss_newton' needs a loss with a forward derivative: there is a "
            "jax.custom_vjp function or a mutable reference in it. Use jax.custom_jvp, or "
            "curvature='hessian', which takes the derivative of the gradient"
        )
        raise TypeError(message)
    first_param = len(operands) - loss.num_params
    probe = {first_param + i: operands[first_param + i] for i in probed}

    def streams(operands: Sequence[Array], probe: Probe) -> Jet:
        return _propagate_loss(loss, operands, [probe], "gauss_newton", {})[0]

    result = jax.eval_shape(streams, list(operands), probe)
    if not result.moves:
        raise ValueError(UNREACHED)
    if result.acceleration is None:
        raise ValueError(LINEAR)


def inner_product(left: Sequence[Array], right: Sequence[Array], dtype: Any) -> Float[Array, ""]:
    """Sum the products of two lists of arrays, accumulated in `dtype`.

    Args:
        left: Arrays.
        right: Arrays of the same shapes.
        dtype: The dtype of the products and of the sum.

    Returns:
        The inner product.
    """
    # Not jnp.vdot, which flattens its operands and so gathers the sharded ones.
    return sum(
        (jnp.sum(x.astype(dtype) * y.astype(dtype)) for x, y in zip(left, right, strict=True)),
        start=jnp.zeros((), dtype),
    )


def _along_curves(
    loss: ClosedLoss,
    operands: Sequence[Array],
    chosen: Sequence[int],
    probes: Sequence[Probe],
    curvature: Curvature,
    conditions: Mapping[int, Bool[Array, ""]],
    objective: Objective,
) -> ObjectiveTerms:
    """Compute the terms, with the sum over the probes as estimate, by Taylor propagation."""

    def objective_of(values: list[Array]) -> tuple[Array, tuple[Array, Array, list[Array]]]:
        replaced = dict(zip(chosen, values, strict=True))
        moved = [replaced.get(i, operand) for i, operand in enumerate(operands)]
        result, *aux = _propagate_loss(loss, moved, probes, curvature, conditions)
        value = jnp.asarray(result.value)
        estimate = _acceleration(result)
        arrays = [jnp.asarray(jet.value) for jet in aux]
        return objective(value, estimate), (value, estimate, arrays)

    (_, (value, estimate, aux)), gradients = jax.value_and_grad(objective_of, has_aux=True)(
        [operands[i] for i in chosen]
    )
    return ObjectiveTerms(value, aux, estimate, _at_least_float32(gradients))


def _propagate_loss(
    loss: ClosedLoss,
    operands: Sequence[Array],
    probes: Sequence[Probe],
    curvature: Curvature,
    conditions: Mapping[int, Bool[Array, ""]],
) -> list[Jet]:
    """Evaluate a loss and its aux on jets."""
    num_captured = len(loss.jaxpr.constvars)
    stream = {"hessian": "velocity", "gauss_newton": "tangent"}[curvature]
    jets = [
        Jet(operand, condition=conditions.get(i), **{stream: tuple(probe[i] for probe in probes)})
        if i in probes[0]
        else Jet(operand)
        for i, operand in enumerate(operands)
    ]
    captured = [jet.value for jet in jets[:num_captured]]
    return propagate(loss.jaxpr, captured, jets[num_captured:])


def _acceleration(result: Jet) -> Array:
    value = jnp.asarray(result.value)
    acceleration = jnp.zeros_like(value) if result.acceleration is None else result.acceleration
    return acceleration.astype(accumulation_dtype(value.dtype))


def _along_gradients(
    loss: ClosedLoss,
    operands: Sequence[Array],
    chosen: Sequence[int],
    probes: Sequence[Probe],
    objective: Objective,
) -> ObjectiveTerms:
    r"""Compute the same by two forward derivatives of the reverse-mode gradient.

    $$\sigma^T H \sigma = \sigma^T \frac{d}{d\varepsilon} \nabla L(\theta +
        \varepsilon\sigma), \qquad \nabla_x\, \sigma^T H \sigma =
        \frac{d^2}{d\varepsilon^2} \nabla_x L(\theta + \varepsilon\sigma)$$

    It takes any loss that has a gradient.
    """
    results = [_along_gradient(loss, operands, chosen, probe) for probe in probes]
    value, aux, gradients, *_ = results[0]
    total = sum((result[3] for result in results[1:]), start=results[0][3])
    total_gradients = [add(*streams) for streams in zip(*(r[4] for r in results), strict=True)]
    by_loss, by_estimate = jax.grad(objective, (0, 1))(value, total)
    return ObjectiveTerms(
        value,
        aux,
        total,
        [
            by_loss.astype(own.dtype) * own
            # No strength is no penalty, also where the curvature is infinite.
            + jnp.where(by_estimate == 0, 0, by_estimate.astype(other.dtype) * other)
            for own, other in zip(_at_least_float32(gradients), total_gradients, strict=True)
        ],
    )


def _at_least_float32(arrays: Sequence[Array]) -> list[Array]:
    return [array.astype(accumulation_dtype(array.dtype)) for array in arrays]


def _along_gradient(
    loss: ClosedLoss,
    operands: Sequence[Array],
    chosen: Sequence[int],
    probe: Mapping[int, Array],
) -> tuple[Array, list[Array], list[Array], Array, list[Array]]:
    probe = dict(probe)
    needed = sorted({*chosen, *probe})

    def gradient(probed: dict[int, Array]) -> tuple[dict[int, Array], Any]:
        values = {i: probed.get(i, operands[i]) for i in needed}

        def loss_of(values: dict[int, Array]) -> tuple[Array, list[Array]]:
            return loss([values.get(i, operand) for i, operand in enumerate(operands)])

        value_and_aux, gradients = jax.value_and_grad(loss_of, has_aux=True)(values)
        return gradients, value_and_aux

    def derivative(probed: dict[int, Array]) -> tuple[Any, Any]:
        gradients, slopes, value_and_aux = jax.jvp(gradient, (probed,), (probe,), has_aux=True)
        return (gradients, slopes), value_and_aux

    (gradients, slopes), (_, curvatures), (value, aux) = jax.jvp(
        derivative, ({i: operands[i] for i in probe},), (probe,), has_aux=True
    )
    estimate = inner_product(
        list(probe.values()), [slopes[i] for i in probe], accumulation_dtype(value.dtype)
    )
    return (
        value,
        aux,
        [gradients[i] for i in chosen],
        estimate,
        _at_least_float32([curvatures[i] for i in chosen]),
    )
