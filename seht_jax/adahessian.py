"""AdaHessian as an optax gradient transformation."""

import numbers
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from seht_jax._compat import varying_axes
from seht_jax.closed_loss import ClosedLoss
from seht_jax.penalty import as_scalar, check_count, check_key, shared_key
from seht_jax.precision import accumulation_dtype
from seht_jax.probes import layer_table, leaf_paths, module_layer, sample_probe
from seht_jax.trace import hessian_vector_product
from seht_jax.transform import close_value_fn, complete_params

_NAME = "scale_by_adahessian"
_INSTEAD = "Wrap what stands before or after it in the chain"

# From the path of a leaf and its estimated diagonal to what broadcasts against the leaf.
SpatialAverage: TypeAlias = Callable[[tuple[str, ...], Float[Array, "..."]], Float[Array, "..."]]


class ScaleByAdaHessianState(NamedTuple):
    """State of `scale_by_adahessian`.

    Attributes:
        key: The key of the next step.
        count: The number of steps taken.
        mu: The moving average of the updates that came in, at least float32.
        nu: The moving average of the squared diagonal, at least float32.
    """

    key: PRNGKeyArray
    count: Int[Array, ""]  # pyright: ignore[reportIncompatibleMethodOverride] (optax's name for it)
    mu: PyTree
    nu: PyTree


def kernel_mean_magnitude(
    path: tuple[str, ...], diagonal: Float[Array, "..."]
) -> Float[Array, "..."]:
    r"""Average the magnitudes of a diagonal over the window of a convolution.

    $$D^{(s)}_{\cdot\cdot io} = \frac{1}{hw} \sum_{ab} |D_{abio}|$$

    as the authors' code of AdaHessian does. A leaf with four axes is taken for the kernel of a
    convolution as Flax and Haiku have it, (height, width, inputs, outputs); of other leaves the
    magnitudes are returned.

    Args:
        path: The path of the leaf, which does not matter here.
        diagonal: The estimated diagonal, of the leaf's shape.

    Returns:
        The average, which broadcasts against the leaf.

    Examples:
        >>> import jax.numpy as jnp
        >>> diagonal = jnp.array([1.0, -3.0]).reshape(2, 1, 1, 1)
        >>> kernel_mean_magnitude(("Conv_0", "kernel"), diagonal).ravel().tolist()
        [2.0]

    References:
        The authors' code of Yao et al., *AdaHessian* (2021).
    """
    return kernel_mean(path, jnp.abs(diagonal))


def kernel_mean(path: tuple[str, ...], diagonal: Float[Array, "..."]) -> Float[Array, "..."]:
    r"""Average a diagonal over the window of a convolution.

    $$D^{(s)}_{\cdot\cdot io} = \frac{1}{hw} \sum_{ab} D_{abio}$$

    as the paper of AdaHessian writes it. Unlike the mean of the magnitudes it is unbiased for the
    mean of the exact diagonal; entries of both signs cancel, and steps are long where they do.

    Args:
        path: The path of the leaf, which does not matter here.
        diagonal: The estimated diagonal, of the leaf's shape.

    Returns:
        The average, which broadcasts against the leaf; of leaves that have not four axes, the
        diagonal.

    Examples:
        >>> import jax.numpy as jnp
        >>> diagonal = jnp.array([1.0, -3.0]).reshape(2, 1, 1, 1)
        >>> kernel_mean(("Conv_0", "kernel"), diagonal).ravel().tolist()
        [-1.0]

    References:
        Yao et al., *AdaHessian* (2021), Algorithm 1.
    """
    del path
    return diagonal.mean((0, 1), keepdims=True) if diagonal.ndim == 4 else diagonal


def adahessian(
    learning_rate: optax.ScalarOrSchedule,
    key: PRNGKeyArray,
    b1: float | Float[Array, ""] = 0.9,
    b2: float | Float[Array, ""] = 0.999,
    eps: float | Float[Array, ""] = 1e-4,
    weight_decay: float | Float[Array, ""] = 0.0,
    *,
    hessian_power: float | Float[Array, ""] = 1.0,
    num_probes: int = 1,
    every: int = 1,
    spatial_average: SpatialAverage = kernel_mean_magnitude,
) -> optax.GradientTransformationExtraArgs:
    r"""AdaHessian: Adam with the diagonal of the Hessian in place of the gradient's square.

    $$\theta_{t+1} = \theta_t
        - \eta \Big(\frac{\hat m_t}{\bar D_t^k + \epsilon} + w \theta_t\Big)$$

    with the average gradient and diagonal of `scale_by_adahessian`. The defaults are those of the
    authors' code, whose learning rate is 0.15 and which this equals, given its random signs. A step
    costs a gradient and `num_probes` Hessian-vector products.

    `update` needs the loss of the step: `update(grads, state, params, value_fn=value_fn)`, with
    `value_fn(params)` the scalar loss on the batch.

    Args:
        learning_rate: The learning rate, a number or a schedule.
        key: See `scale_by_adahessian`.
        b1: See `scale_by_adahessian`.
        b2: See `scale_by_adahessian`.
        eps: See `scale_by_adahessian`.
        weight_decay: The strength w of the weight decay, which is decoupled as AdamW's is.
        hessian_power: See `scale_by_adahessian`.
        num_probes: See `scale_by_adahessian`.
        every: See `scale_by_adahessian`.
        spatial_average: See `scale_by_adahessian`.

    Returns:
        A gradient transformation whose `update` takes `value_fn`.

    Raises:
        TypeError: See `scale_by_adahessian`.
        ValueError: See `scale_by_adahessian`.

    Examples:
        >>> import jax, jax.numpy as jnp, optax
        >>> import seht_jax as seht
        >>> def value_fn(params):
        ...     return 0.5 * jnp.sum(jnp.array([1.0, 1000.0]) * params**2)
        >>> params = jnp.array([1.0, 1.0])
        >>> tx = seht.adahessian(0.5, jax.random.key(0), eps=0.0)
        >>> state = tx.init(params)
        >>> updates, state = tx.update(jax.grad(value_fn)(params), state, params, value_fn=value_fn)
        >>> optax.apply_updates(params, updates).tolist()  # half a step of Newton's method
        [0.5, 0.5]

    References:
        Yao, Gholami, Shen, Mustafa, Keutzer and Mahoney, *ADAHESSIAN: An Adaptive Second Order
        Optimizer for Machine Learning* (2021), Algorithm 1.
    """
    chain = optax.chain(
        scale_by_adahessian(
            key,
            b1,
            b2,
            eps,
            hessian_power=hessian_power,
            num_probes=num_probes,
            every=every,
            spatial_average=spatial_average,
        ),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(learning_rate),
    )
    return optax.with_extra_args_support(chain)


def scale_by_adahessian(
    key: PRNGKeyArray,
    b1: float | Float[Array, ""] = 0.9,
    b2: float | Float[Array, ""] = 0.999,
    eps: float | Float[Array, ""] = 1e-4,
    *,
    hessian_power: float | Float[Array, ""] = 1.0,
    num_probes: int = 1,
    every: int = 1,
    spatial_average: SpatialAverage = kernel_mean_magnitude,
) -> optax.GradientTransformationExtraArgs:
    r"""Rescale updates by the diagonal of the Hessian, as AdaHessian does.

    $$\begin{align*} D_t &= \frac{1}{K} \sum_k \sigma_k \odot H \sigma_k, \qquad
        \mathbb{E}[D_t] = \mathrm{diag}(H) \\
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t, \qquad
        \hat m_t = \frac{m_t}{1 - \beta_1^t} \\
        \nu_t &= \beta_2 \nu_{t-1} + (1 - \beta_2) D^{(s)}_t \odot D^{(s)}_t, \qquad
        \bar D_t = \sqrt{\frac{\nu_t}{1 - \beta_2^t}} \\
        u_t &= \frac{\hat m_t}{\bar D_t^k + \epsilon} \end{align*}$$

    with $D^{(s)}$ the average of D over each convolution's window. `update` needs `value_fn`,
    see `adahessian`.

    Args:
        key: The PRNG key of the first step; it is kept in the state.
        b1: The decay $\beta_1$ of the average of the updates that come in, in [0, 1).
        b2: The decay $\beta_2$ of the average of the squared diagonal, in [0, 1).
        eps: What is added to the denominator, 0 or more.
        hessian_power: The power k of the denominator, in [0, 1]. 1 is near to Newton's method; 0 is
            gradient descent with momentum.
        num_probes: The number K of Rademacher probes of a step.
        every: Estimate the diagonal on every so-many-th step, beginning with the first. The steps
            between use the average of the last one, and the average and its t count the estimates.
        spatial_average: From the path of a leaf (see `layer_names`) and the estimated diagonal D to
            its average, which must broadcast against the leaf. `kernel_mean_magnitude` is what the
            authors' code does, `kernel_mean` what their paper writes; both take kernels of
            convolutions as Flax and Haiku have them. For Equinox and PyTorch's order, average over
            the last two axes. `lambda path, diagonal: diagonal` does not average.

    Returns:
        A gradient transformation whose `update` takes `value_fn`. Under `jax.jit` with a sharded
        batch, the Hessian is that of the global mean loss. Under `shard_map`, `value_fn` has to
        return the mean over the devices (`jax.lax.pmean`), or their diagonals would differ; so it
        has under `check_vma=False`, where that can not be checked.

    Raises:
        TypeError: If an argument has the wrong type; in `update`, if `value_fn` or `params` is
            missing.
        ValueError: If an argument is out of its range, where it is a Python number; in `update`, if
            the average does not fit the leaf, or the loss differs over the devices of a
            `shard_map`.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> import seht_jax as seht
        >>> def value_fn(params):
        ...     return jnp.sum(params**4)
        >>> params = jnp.array([1.0, -2.0])
        >>> tx = seht.scale_by_adahessian(jax.random.key(0), eps=0.0)
        >>> state = tx.init(params)
        >>> updates, state = tx.update(jax.grad(value_fn)(params), state, params, value_fn=value_fn)
        >>> [round(x, 4) for x in updates.tolist()]  # 4 w^3 / 12 w^2
        [0.3333, -0.6667]

    References:
        Yao et al. (2021), Eqs. (7) to (11) and Algorithm 1.
    """
    check_key(key)
    check_count("num_probes", num_probes)
    check_count("every", every)
    decay_1 = _checked("b1", b1, below_1=True)
    decay_2 = _checked("b2", b2, below_1=True)
    offset = _checked("eps", eps)
    power = _checked("hessian_power", hessian_power, most=1.0)
    if not callable(spatial_average):
        message = (
            "spatial_average must be a function of the path and the diagonal of a leaf, got "
            f"{spatial_average!r}"
        )
        raise TypeError(message)

    def init(params: PyTree) -> ScaleByAdaHessianState:
        complete_params(_NAME, params, _INSTEAD)
        zeros = jax.tree.map(
            lambda leaf: jnp.zeros_like(leaf, dtype=accumulation_dtype(jnp.result_type(leaf))),
            params,
        )
        # Copies: a step that donates its state would delete the caller's key, or one of the two.
        return ScaleByAdaHessianState(
            jnp.copy(key), jnp.zeros((), jnp.int32), zeros, jax.tree.map(jnp.copy, zeros)
        )

    def update(
        updates: PyTree,
        state: Any,
        params: PyTree | None = None,
        *,
        value_fn: Callable[[PyTree], Array] | None = None,
        **_extra_args: Any,
    ) -> tuple[PyTree, ScaleByAdaHessianState]:
        loss, operands = close_value_fn(_NAME, value_fn, params, _INSTEAD)
        _check_shared(loss, params)
        next_key, step_key = jax.random.split(state.key)

        def measured(nu: list[Array]) -> list[Array]:
            diagonals = _diagonal(loss, operands, params, step_key, num_probes)
            averages = [
                _averaged(spatial_average, path, diagonal)
                for path, diagonal in zip(leaf_paths(params), diagonals, strict=True)
            ]
            return [_moved(old, new**2, decay_2) for old, new in zip(nu, averages, strict=True)]

        nu, structure = jax.tree.flatten(state.nu)
        if every == 1:
            nu = measured(nu)
        else:
            nu = jax.lax.cond(state.count % every == 0, measured, lambda nu: nu, nu)
        nu = structure.unflatten(nu)
        mu = jax.tree.map(lambda old, new: _moved(old, new, decay_1), state.mu, updates)
        num_estimates = state.count // every + 1

        def direction(update: Array, mu: Array, nu: Array) -> Array:
            mean = mu / _weight(decay_1, state.count + 1, mu.dtype)
            diagonal = jnp.sqrt(nu / _weight(decay_2, num_estimates, nu.dtype))
            denominator = diagonal ** power.astype(nu.dtype) + offset.astype(nu.dtype)
            return (mean / denominator).astype(update.dtype)

        directions = jax.tree.map(direction, updates, mu, nu)
        count = jnp.asarray(optax.safe_increment(state.count))
        return directions, ScaleByAdaHessianState(next_key, count, mu, nu)

    return optax.GradientTransformationExtraArgs(init, update)


def _diagonal(
    loss: ClosedLoss,
    operands: list[Array],
    params: PyTree,
    key: PRNGKeyArray,
    num_probes: int,
) -> list[Array]:
    """Estimate the diagonal of the Hessian, leaf by leaf, in at least float32."""
    table = layer_table(params, module_layer)
    leaves = loss.params_of(operands)

    def sample(key: PRNGKeyArray) -> list[Array]:
        probe = sample_probe(key, leaves, table, 0.5, None)
        product = hessian_vector_product(loss, operands, probe)
        dtypes = [accumulation_dtype(leaf.dtype) for leaf in leaves]
        return [probe[i].astype(dtype) * product[i].astype(dtype) for i, dtype in enumerate(dtypes)]

    keys = jax.random.split(shared_key(loss, operands, key), num_probes)
    return [samples.mean(0) for samples in jax.lax.map(sample, keys)]


def _averaged(spatial_average: SpatialAverage, path: tuple[str, ...], diagonal: Array) -> Array:
    """Average a diagonal.

    Raises:
        ValueError: If the average does not fit the leaf.
    """
    average = spatial_average(path, diagonal)
    try:
        return jnp.broadcast_to(average, diagonal.shape).astype(diagonal.dtype)
    except ValueError as error:
        message = (
            f"spatial_average must return what broadcasts against the leaf {'/'.join(path)} of "
            f"shape {diagonal.shape}, got shape {jnp.shape(average)}"
        )
        raise ValueError(message) from error


def _moved(old: Array, new: Array, decay: Array) -> Array:
    decay = decay.astype(old.dtype)
    return decay * old + (1 - decay) * new.astype(old.dtype)


def _weight(decay: Array, count: Array, dtype: Any) -> Array:
    """Return the sum of the weights in a moving average that began at 0."""
    return 1 - decay.astype(dtype) ** count.astype(dtype)


def _check_shared(loss: ClosedLoss, params: PyTree) -> None:
    """Check that devices that share the params share the loss.

    Raises:
        ValueError: If the loss differs over axes of a `shard_map` over which the params do not.
    """
    axes = varying_axes(loss.jaxpr.outvars[0].aval)
    axes -= frozenset().union(*map(varying_axes, jax.tree.leaves(params)))
    if axes:
        message = (
            f"value_fn differs over the mesh axes {sorted(axes)}, over which the params do not, so "
            "each device would step by the curvature of its own part of the batch: return "
            f"jax.lax.pmean(loss, {tuple(sorted(axes))})"
        )
        raise ValueError(message)


def _checked(name: str, value: Any, *, most: float = float("inf"), below_1: bool = False) -> Array:
    """Return a setting as a scalar.

    Raises:
        ValueError: If it is a Python number out of its range.
    """
    scalar = as_scalar(name, value)
    in_range = not isinstance(value, numbers.Real) or (
        0 <= float(value) <= most and not (below_1 and float(value) >= 1)
    )
    if not in_range:
        wanted = "in [0, 1)" if below_1 else "at least 0" if most > 1 else f"in [0, {most:g}]"
        message = f"{name} must be {wanted}, got {value}"
        raise ValueError(message)
    return scalar
