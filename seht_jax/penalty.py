"""One call of the penalty: its settings, its random choices, and the step that they cost.

`regularize` (a loss) and `add_hessian_trace` (a gradient transformation) are two forms of what is
here.
"""

import dataclasses
import functools
import math
import numbers
import operator
from collections.abc import Callable, Collection, Hashable, Sequence
from typing import Any, NamedTuple, TypeVar, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from seht_jax._compat import communicated_axes, varying_axes
from seht_jax.closed_loss import ClosedLoss
from seht_jax.convolution import canonical_on_cpu
from seht_jax.cost import dependent_operations
from seht_jax.curvature import (
    Curvature,
    Objective,
    ObjectiveTerms,
    check_outputs,
    objective_terms,
)
from seht_jax.precision import accumulation_dtype
from seht_jax.probes import (
    LayerFunction,
    LayerTable,
    ProbeProbability,
    check_layers,
    draw_layers,
    drawn_flags,
    probe_probabilities,
    sample_probe,
)
from seht_jax.taylor import propagates

Result = TypeVar("Result")

# How many probes are propagated at once by default. More gain little time, and each takes two plain
# steps' memory. SEHT-D has a program for each end of the network: with five probes in each, those
# of a ResNet-18 were not compiled after three quarters of an hour; with one, in a minute.
DENSE_PROBE_BATCH, SPARSE_PROBE_BATCH = 5, 1
NUM_BRANCHES = 4  # more gain some percent of SEHT-D's time, and each takes seconds to compile


@dataclasses.dataclass(frozen=True)
class Penalty:
    """The settings of the penalty, which are fixed when a step is compiled.

    Attributes:
        p_layers: The probability of a layer.
        p_entries: The probability of +1, and that of -1, in a drawn layer.
        num_probes: The number of probes.
        layers: From the path of a leaf to its layer.
        scale: What the mean quadratic form over the probes is multiplied by.
        probe_batch: How many probes are propagated at once, at most.
        num_branches: How many programs the step chooses from, at most, by the first drawn layer.
        curvature: The matrix whose trace is penalised.
    """

    p_layers: float
    p_entries: float
    num_probes: int
    layers: LayerFunction
    scale: float
    probe_batch: int
    num_branches: int
    curvature: Curvature


class Draw(NamedTuple):
    """The random choices of one call.

    Attributes:
        key: The key of the probes.
        drawn: Which layers are probed; `None` for all of them.
        active: Whether the penalty is computed at all; `None` for always.
    """

    key: PRNGKeyArray
    drawn: Bool[Array, " layers"] | None
    active: Bool[Array, ""] | None


def make_penalty(
    p: ProbeProbability,
    *,
    curvature: Any,
    layers: LayerFunction,
    num_probes: int = 1,
    rescale: bool = False,
    probe_batch: int | None = None,
    num_branches: int = NUM_BRANCHES,
) -> Penalty:
    """Check the settings of the penalty.

    Args:
        p: See `regularize`.
        curvature: See `regularize`.
        layers: See `regularize`.
        num_probes: See `regularize`.
        rescale: See `regularize`.
        probe_batch: See `regularize`.
        num_branches: See `regularize`.

    Returns:
        The settings.

    Raises:
        TypeError: If a setting has the wrong type.
        ValueError: If a setting is out of its range.
    """
    check_layers(layers)
    check_switch("rescale", rescale)
    p_layers, p_entries = probe_probabilities(p)
    if probe_batch is None:
        probe_batch = DENSE_PROBE_BATCH if p_layers == 1 else SPARSE_PROBE_BATCH
    return Penalty(
        p_layers=p_layers,
        p_entries=p_entries,
        num_probes=check_count("num_probes", num_probes),
        layers=layers,
        scale=1 / (p_layers * 2 * p_entries) if rescale else 1.0,
        probe_batch=check_count("probe_batch", probe_batch),
        num_branches=check_count("num_branches", num_branches),
        curvature=check_curvature(curvature),
    )


def check_curvature_of(
    penalty: Penalty, table: LayerTable, loss: ClosedLoss, operands: Sequence[Array]
) -> None:
    """Check that a loss has the matrix whose trace is penalised.

    Args:
        penalty: The settings.
        table: The layers of the params.
        loss: The closed loss.
        operands: Its operands.

    Raises:
        TypeError: If the loss has no forward derivative, which the Gauss-Newton form needs.
        ValueError: If the Gauss-Newton form lacks a mark of the outputs.
    """
    if penalty.curvature == "gauss_newton":
        check_outputs(loss, operands, table.probed)


def draw(
    penalty: Penalty,
    table: LayerTable,
    loss: ClosedLoss,
    operands: Sequence[Array],
    key: PRNGKeyArray,
    active: bool | Bool[Array, ""],
) -> Draw:
    """Make the random choices of one call.

    Args:
        penalty: The settings.
        table: The layers of the params.
        loss: The closed loss.
        operands: Its operands.
        key: The key of the call.
        active: Whether the penalty is wanted.

    Returns:
        The draw; layers and `active` are the same on all devices that the loss makes communicate,
        which would otherwise wait for one another in different branches.
    """
    axes = communicated_axes(loss.jaxpr)
    key_layers, key_probes = jax.random.split(shared_key(loss, operands, key))
    drawn = None
    if penalty.p_layers < 1:
        key_layers = _of_first_device(key_layers, axes)
        drawn = draw_layers(key_layers, len(table.names), penalty.p_layers)
    if not isinstance(active, bool):
        active = _of_first_device(active, axes)
    return Draw(key_probes, drawn, None if active is True else jnp.asarray(active))


def shared_key(loss: ClosedLoss, operands: Sequence[Array], key: PRNGKeyArray) -> PRNGKeyArray:
    """Return one key for devices that have one loss, so that they probe along one direction.

    Args:
        loss: The closed loss.
        operands: Its operands.
        key: A key, which may differ by device.

    Returns:
        The key of the first device along the axes over which, by their types, neither params nor
        loss differ; everywhere else the key as it is.
    """
    varying = frozenset().union(*map(varying_axes, loss.params_of(operands)))
    return _of_first_device(key, tuple(sorted(varying_axes(key) - varying)))


def layers_drawn(table: LayerTable, draw: Draw) -> Int[Array, ""]:
    """Count the layers that a call probes.

    Args:
        table: The layers of the params.
        draw: The random choices.

    Returns:
        The number of layers.
    """
    drawn = jnp.ones(len(table.names), bool) if draw.drawn is None else draw.drawn
    probed = drawn if draw.active is None else drawn & draw.active
    return jnp.sum(probed, dtype=jnp.int32)


def switch(
    penalty: Penalty,
    table: LayerTable,
    loss: ClosedLoss,
    draw: Draw,
    plain: Callable[..., Result],
    penalised: Callable[..., Result],
    *args: Any,
) -> Result:
    """Call `penalised(suffix, draw, *args)`, or `plain(draw, *args)` where nothing is to be probed.

    Args:
        penalty: The settings.
        table: The layers of the params.
        loss: The closed loss.
        draw: The random choices.
        plain: The step without a penalty.
        penalised: The step with one, for layers that are all within a suffix of the network; its
            results have the same types.
        *args: Pytrees of arrays.

    Returns:
        The results of the one that ran.
    """
    suffixes = network_suffixes(penalty, table, loss)
    branches = [canonical_on_cpu(functools.partial(penalised, suffix)) for suffix in suffixes]
    branch = 1
    if draw.drawn is not None:
        first_branch = np.zeros(len(table.names), np.int32)
        for number, suffix in enumerate(suffixes, start=1):
            first_branch[list(suffix)] = number  # shorter ones come later
        # The first drawn layer decides: 0 is the plain step, 1 the longest suffix.
        branch = jnp.min(jnp.where(draw.drawn, first_branch, len(branches) + 1))
        branch = jnp.where(branch > len(branches), 0, branch)
    if draw.active is not None:
        branch = jnp.where(draw.active, branch, 0)
    if isinstance(branch, int):
        return branches[0](draw, *args)
    return lax.switch(branch, [canonical_on_cpu(plain), *branches], draw, *args)


def network_suffixes(penalty: Penalty, table: LayerTable, loss: ClosedLoss) -> list[frozenset[int]]:
    """Choose the ends of the network for which a program is compiled.

    A step needs no derivatives before the first drawn layer, in the order of the operations that
    depend on a layer. The suffixes are those whose expected cost is least.

    Args:
        penalty: The settings.
        table: The layers of the params.
        loss: The closed loss.

    Returns:
        Sets of layers, each of which holds the next, the first being all layers.
    """
    num_layers = len(table.names)
    everything = frozenset(range(num_layers))
    if penalty.p_layers == 1 or penalty.num_branches == 1 or not propagates(loss.jaxpr):
        return [everything]
    sources = [0] * len(loss.jaxpr.invars)
    first_param = len(sources) - loss.num_params
    for leaf, layers in table.indices.items():
        for layer in np.unique(layers):
            sources[first_param + leaf] |= 1 << int(layer)
    costs = dependent_operations(loss.jaxpr, sources, num_layers)
    order = sorted(range(num_layers), key=lambda layer: -costs[layer])
    starts = _cheapest_starts([costs[layer] for layer in order], penalty)
    return [frozenset(order[start:]) for start in starts]


def _cheapest_starts(costs: Sequence[int], penalty: Penalty) -> list[int]:
    """Choose where suffixes start, by dynamic programming.

    Args:
        costs: The operations that depend on each layer, falling.
        penalty: The settings.

    Returns:
        Positions, the first of which is 0.
    """
    num_layers, p = len(costs), penalty.p_layers

    def cost(start: int, end: int) -> float:
        """Return the expected cost of draws whose first layer is in a range of positions."""
        return ((1 - p) ** start - (1 - p) ** end) * costs[start]

    # best[i]: the expected cost where a suffix starts at i and the first drawn layer is not before
    # it; following[n][i]: where the next one starts, if there may be n + 1 more.
    best = [cost(i, num_layers) for i in range(num_layers)]
    following: list[list[int]] = []
    for _ in range(penalty.num_branches - 1):
        choices = [
            min(
                [(best[i], num_layers)]
                + [(cost(i, j) + best[j], j) for j in range(i + 1, num_layers)]
            )
            for i in range(num_layers)
        ]
        best, starts = map(list, zip(*choices, strict=True))
        following.append(starts)
    chosen = [0]
    for starts in reversed(following):
        if starts[chosen[-1]] < num_layers:
            chosen.append(starts[chosen[-1]])
    return chosen


def penalty_terms(
    penalty: Penalty,
    table: LayerTable,
    loss: ClosedLoss,
    draw: Draw,
    operands: Sequence[Array],
    chosen: Sequence[int],
    *,
    suffix: Collection[int] | None = None,
    objective: Objective,
) -> ObjectiveTerms:
    """Compute a loss, the estimate of tr(H), and the gradient of an objective of both.

    Args:
        penalty: The settings.
        table: The layers of the params.
        loss: The closed loss.
        draw: The random choices.
        operands: The operands of the loss.
        chosen: The positions of the operands whose gradients are wanted.
        suffix: The layers among which are all that were drawn; `None` for all layers.
        objective: From loss and estimate to a scalar; linear in the estimate, if there are more
            probes than are propagated at once.

    Returns:
        The terms.
    """
    first_param = len(operands) - loss.num_params

    def sample(key: PRNGKeyArray) -> dict[int, Array]:
        leaves = loss.params_of(operands)
        probe = sample_probe(key, leaves, table, penalty.p_entries, draw.drawn, suffix)
        return {first_param + i: direction for i, direction in probe.items()}

    terms = objective_terms(
        loss,
        operands,
        chosen,
        sample,
        jax.random.split(draw.key, penalty.num_probes),
        curvature=penalty.curvature,
        objective=lambda value, estimate: objective(value, penalty.scale * estimate),
        conditions={first_param + i: flag for i, flag in drawn_flags(table, draw.drawn).items()},
        probe_batch=penalty.probe_batch,
    )
    return terms._replace(estimate=penalty.scale * terms.estimate)


def add_scaled(value: Array, lam: Array, estimate: Array) -> Array:
    """Add lambda times the estimate, or its gradient, to the loss, or its gradient.

    Args:
        value: An array.
        lam: The strength.
        estimate: An array of the same shape.

    Returns:
        The sum, computed in at least float32, in the dtype of `value`.
    """
    dtype = accumulation_dtype(value.dtype)
    estimate = estimate.astype(dtype)
    scaled = lam.astype(dtype) * estimate
    # No strength is no penalty, also where the curvature is infinite: 0 * inf would be nan.
    scaled = jnp.where((lam == 0) & ~jnp.isfinite(estimate), jnp.zeros_like(scaled), scaled)
    return (value.astype(dtype) + scaled).astype(value.dtype)


def check_estimator(loss_fn: Any, key: Any, curvature: Any, num_probes: Any) -> None:
    """Check the arguments that all estimators along probes have.

    Args:
        loss_fn: A function of the params.
        key: One PRNG key.
        curvature: The name of a matrix.
        num_probes: A whole number of at least 1.

    Raises:
        TypeError: If one has another type.
        ValueError: If one is out of its range.
    """
    check_loss_fn("loss_fn", loss_fn)
    check_key(key)
    check_curvature(curvature)
    check_count("num_probes", num_probes)


def check_loss_fn(name: str, loss_fn: Any) -> None:
    """Check that an argument is a function.

    Args:
        name: The name of the argument.
        loss_fn: Its value.

    Raises:
        TypeError: If it can not be called.
    """
    if not callable(loss_fn):
        message = f"{name} must be a function of the params, got {loss_fn!r}"
        raise TypeError(message)


def check_switch(name: str, value: Any) -> None:
    """Check that an argument is Python's True or False.

    Args:
        name: The name of the argument.
        value: Its value.

    Raises:
        TypeError: If it is anything else.
    """
    if not isinstance(value, bool):
        message = f"{name} must be True or False, got {value!r}"
        raise TypeError(message)


def check_curvature(curvature: Any) -> Curvature:
    """Check that an argument names a matrix.

    Args:
        curvature: The argument.

    Returns:
        The argument.

    Raises:
        ValueError: If it is not a name of one.
    """
    if curvature not in get_args(Curvature):
        names = " or ".join(map(repr, get_args(Curvature)))
        message = f"curvature must be {names}, got {curvature!r}"
        raise ValueError(message)
    return curvature


def check_key(key: Any) -> None:
    """Check that an argument is one PRNG key.

    Args:
        key: A typed key (`jax.random.key`) or a raw one (`jax.random.PRNGKey`).

    Raises:
        TypeError: If it is anything else.
    """
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", None)
    if dtype is not None:
        if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key) and shape == ():
            return
        if dtype == jnp.uint32 and shape is not None and len(shape) == 1:
            return
    got = repr(key) if dtype is None else f"an array of dtype {dtype} and shape {shape}"
    message = f"key must be one PRNG key, as made by jax.random.key or split, got {got}"
    raise TypeError(message)


def check_count(name: str, count: Any) -> int:
    """Check that an argument is a whole number of at least 1.

    Args:
        name: The name of the argument.
        count: Its value.

    Returns:
        The number.

    Raises:
        TypeError: If it is not a whole Python number.
        ValueError: If it is less than 1.
    """
    if isinstance(count, bool) or not isinstance(count, numbers.Integral):
        message = f"{name} must be a whole Python number, got {count!r} of type " + (
            type(count).__name__
        )
        raise TypeError(message)
    if count < 1:
        message = f"{name} must be at least 1, got {count}"
        raise ValueError(message)
    return operator.index(count)


def check_positive(name: str, value: Any) -> None:
    """Check that an argument is a finite Python number above 0.

    Args:
        name: The name of the argument.
        value: Its value.

    Raises:
        TypeError: If it is not a real Python number.
        ValueError: If it is not finite, or not above 0.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        message = f"{name} must be a Python number, got {value!r} of type {type(value).__name__}"
        raise TypeError(message)
    if not 0 < float(value) < math.inf:
        message = f"{name} must be finite and above 0, got {value!r}"
        raise ValueError(message)


def as_scalar(name: str, value: Any) -> Float[Array, ""]:
    """Check that an argument is a real scalar, a number or a traced array.

    Args:
        name: The name of the argument.
        value: Its value.

    Returns:
        The scalar, as an array of a floating-point dtype.

    Raises:
        TypeError: If it is not a real number.
        ValueError: If it is not a scalar, or a number that is not finite.
    """
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        if not math.isfinite(value):
            message = f"{name} must be finite, got {value}"
            raise ValueError(message)
        return jnp.asarray(float(value))
    dtype = getattr(value, "dtype", None)
    if dtype is None or not (
        jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)
    ):
        got = repr(value) if dtype is None else f"an array of dtype {dtype}"
        hint = "; if it is a schedule, call it with the step" if callable(value) else ""
        message = f"{name} must be a real scalar, got {got}{hint}"
        raise TypeError(message)
    if value.shape != ():
        message = f"{name} must be a scalar, got shape {value.shape}"
        raise ValueError(message)
    value = jnp.asarray(value)
    return value if jnp.issubdtype(dtype, jnp.floating) else value.astype(float)


def as_flag(name: str, value: Any) -> bool | Bool[Array, ""]:
    """Check that an argument is a flag, Python's or a traced one.

    Args:
        name: The name of the argument.
        value: Its value.

    Returns:
        The flag.

    Raises:
        TypeError: If it is not a boolean.
        ValueError: If it is not a scalar.
    """
    if isinstance(value, bool):
        return value
    dtype = getattr(value, "dtype", None)
    if dtype != jnp.bool_:
        got = repr(value) if dtype is None else f"an array of dtype {dtype}"
        message = f"{name} must be a boolean, got {got}"
        raise TypeError(message)
    if value.shape != ():
        message = f"{name} must be a scalar, got shape {value.shape}"
        raise ValueError(message)
    return jnp.asarray(value)


def _of_first_device(value: Array, axes: tuple[Hashable, ...]) -> Array:
    """Return the first device's value on all devices along some axes."""
    if not axes:
        return value
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        data = _of_first_device(jax.random.key_data(value), axes)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(value))
    first = lax.axis_index(axes) == 0
    integers = value.astype(jnp.uint32)
    return lax.psum(jnp.where(first, integers, jnp.zeros_like(integers)), axes).astype(value.dtype)
