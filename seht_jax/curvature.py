"""Second derivatives along directions: Hessian-vector products and quadratic forms."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PRNGKeyArray, PyTree, UInt32

from seht_jax.closed_loss import ClosedLoss


def hvp(
    loss_fn: Callable[..., Any], tangent: PyTree, *, has_aux: bool = False
) -> Callable[..., PyTree]:
    r"""Return the Hessian-vector product of a loss, forward over reverse.

    .. math:: H v = \left.\frac{d}{d\varepsilon} \nabla L(\theta + \varepsilon v)
        \right|_{\varepsilon = 0}

    computed as `jax.jvp` of `jax.grad`, for about two plain gradients' time and memory.

    Args:
        loss_fn: `loss_fn(params, *args, **kwargs)` returns a scalar, or `(scalar, aux)`.
        tangent: The direction v, a pytree like the params.
        has_aux: Whether the loss returns an aux; it is dropped.

    Returns:
        A function of `loss_fn`'s signature that returns `H v`, a pytree like the params.

    Example:
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


class QuadraticFormTerms(NamedTuple):
    """A loss, the mean quadratic form of its Hessian over some probes, and their gradients.

    Attributes:
        loss: The loss L.
        aux: The arrays of its aux.
        gradients: dL/dx for the chosen operands x.
        estimate: The mean over the probes of the quadratic form, at least float32.
        estimate_gradients: Its gradients by the chosen operands, at least float32: sums over many
            probes would stop growing in bfloat16.
    """

    loss: Float[Array, ""]
    aux: list[Array]
    gradients: list[Array]
    estimate: Float[Array, ""]
    estimate_gradients: list[Array]


def quadratic_form_terms(
    loss: ClosedLoss,
    operands: Sequence[Array],
    chosen: Sequence[int],
    sample_probe: Callable[[PRNGKeyArray], Mapping[int, Array]],
    keys: Key[Array, " probes"] | UInt32[Array, "probes words"],
) -> QuadraticFormTerms:
    r"""Compute a loss and the mean of :math:`\sigma^T H \sigma` together, with their gradients.

    Along one probe, two forward derivatives of the reverse-mode gradient hold everything:

    .. math:: \sigma^T H \sigma = \sigma^T \frac{d}{d\varepsilon} \nabla L(\theta +
        \varepsilon\sigma), \qquad \nabla_x\, \sigma^T H \sigma =
        \frac{d^2}{d\varepsilon^2} \nabla_x L(\theta + \varepsilon\sigma)

    at 3 to 4 plain steps a probe, where the reverse pass over a Hessian-vector product costs 20.
    For a loss with a `custom_vjp` inside, which has no other derivative than the gradient that its
    author wrote, this is the curvature of that gradient, and the plain part of the gradient is
    untouched. This function is where another engine takes the place of the nested derivatives.

    Args:
        loss: The closed loss.
        operands: Its operands.
        chosen: The positions of the operands whose gradients are wanted.
        sample_probe: From a key to a probe: directions by the positions of the probed operands.
        keys: One key for each probe, stacked.

    Returns:
        The terms; gradients in the order of `chosen`.
    """

    def along(key: PRNGKeyArray) -> QuadraticFormTerms:
        return _along_probe(loss, operands, chosen, sample_probe(key))

    def add(sums: Any, key: PRNGKeyArray) -> tuple[Any, None]:
        terms = along(key)
        return jax.tree.map(jnp.add, sums, (terms.estimate, terms.estimate_gradients)), None

    # The first probe stands outside of the loop: it brings loss, aux and gradient, and gives the
    # loop's carry its types.
    first = along(keys[0])
    num_probes = keys.shape[0]
    sums = (first.estimate, first.estimate_gradients)
    if num_probes > 1:
        sums, _ = jax.lax.scan(add, sums, keys[1:])
    estimate, estimate_gradients = jax.tree.map(lambda total: total / num_probes, sums)
    return first._replace(estimate=estimate, estimate_gradients=estimate_gradients)


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


def accumulation_dtype(dtype: np.dtype) -> np.dtype:
    """Return the dtype for sums over the parameters: the loss's, and at least float32.

    Args:
        dtype: The dtype of the loss.

    Returns:
        The dtype of the sums.
    """
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def _along_probe(
    loss: ClosedLoss,
    operands: Sequence[Array],
    chosen: Sequence[int],
    probe: Mapping[int, Array],
) -> QuadraticFormTerms:
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
    return QuadraticFormTerms(
        value,
        aux,
        [gradients[i] for i in chosen],
        estimate,
        [curvatures[i].astype(accumulation_dtype(curvatures[i].dtype)) for i in chosen],
    )
