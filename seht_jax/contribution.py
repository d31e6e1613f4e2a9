"""What lambda multiplies: the estimate of the trace, or a function of it and of the loss."""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from seht_jax.penalty import Penalty, check_positive, check_switch
from seht_jax.precision import accumulation_dtype

Contribution: TypeAlias = Callable[[Float[Array, ""], Float[Array, ""]], Float[Array, ""]]
"""From loss and estimate to what lambda multiplies; its derivative is by the estimate alone."""


def make_contribution(penalty: Penalty, *, bound: float | None, scale_free: bool) -> Contribution:
    """Choose what lambda multiplies.

    Args:
        penalty: The settings of the estimate.
        bound: See `regularize`.
        scale_free: See `regularize`.

    Returns:
        The function.

    Raises:
        TypeError: If a setting has the wrong type.
        ValueError: If a setting is out of its range, or does not go with another.
    """
    check_switch("scale_free", scale_free)
    if bound is not None:
        check_positive("bound", bound)
    if bound is None and not scale_free:
        return lambda _, estimate: estimate
    name = "scale_free" if bound is None else "bound"
    if penalty.num_probes > penalty.probe_batch:
        message = (
            f"{name} needs all probes at once: raise probe_batch, which is {penalty.probe_batch}, "
            f"to num_probes, which is {penalty.num_probes}"
        )
        raise ValueError(message)
    if bound is not None:
        if scale_free:
            message = f"bound={bound} and scale_free=True exclude each other"
            raise ValueError(message)
        return lambda _, estimate: saturated(estimate, bound)
    if penalty.curvature != "gauss_newton":
        message = (
            'scale_free=True needs curvature="gauss_newton": an estimate of the trace of the '
            "Hessian may have any sign, and can not be divided by"
        )
        raise ValueError(message)
    if penalty.p_layers < 1:
        message = (
            "scale_free=True needs all layers (p=None, SEHT-H): most draws of SEHT-D are of no "
            f"layer or a few, and no measure of the trace; p is {penalty.p_layers}. Divide lam by "
            "a trace instead"
        )
        raise ValueError(message)
    return relative_to_itself


def saturated(estimate: Float[Array, ""], bound: float) -> Float[Array, ""]:
    r"""Let an estimate t go smoothly where it leaves the bound b.

    $$t / \sqrt{1 + (t / b)^2}$$

    Args:
        estimate: The estimate.
        bound: The bound.

    Returns:
        The saturated estimate.
    """
    # Clipped where it is the bound to all digits, and its square would overflow.
    ratio = jnp.clip(estimate / bound, -1e18, 1e18)
    return bound * ratio * jax.lax.rsqrt(1 + jnp.square(ratio))


def relative_to_itself(loss: Float[Array, ""], estimate: Float[Array, ""]) -> Float[Array, ""]:
    r"""Free an estimate t of its scale, in units of the fourth root of the loss L.

    $$\left[L^{1/4} / t\right] t, \qquad
        \text{with the gradient } L^{1/4}\, \nabla \log t$$

    The bracket is a constant. The root is what small networks agree on: without the loss in it the
    penalty is too strong where the data are learnt by heart, and with a square root too weak.

    Args:
        loss: The loss.
        estimate: The estimate.

    Returns:
        The fourth root of the loss as a function of the estimate; 0 where one of both is not above
        0.
    """
    usable = (loss > 0) & (estimate > 0)
    positive = jnp.where(usable, loss, 1).astype(accumulation_dtype(loss.dtype))
    ratio = jnp.where(usable, jnp.sqrt(jnp.sqrt(positive)) / jnp.where(usable, estimate, 1), 0)
    return jax.lax.stop_gradient(ratio).astype(estimate.dtype) * estimate
