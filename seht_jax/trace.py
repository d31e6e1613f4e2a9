"""Estimates of the trace of the Hessian, or of the Gauss-Newton matrix, without training.

Each of these has the shape of `regularize`: it takes a loss and returns a function of the same
arguments. Probes are taken one at a time (`jax.lax.map`), so memory is that of one Hessian-vector
product however many there are.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from seht_jax._compat import as_varying, varying_axes
from seht_jax.closed_loss import ClosedLoss, close_loss
from seht_jax.convolution import canonical_on_cpu
from seht_jax.curvature import (
    Curvature,
    check_outputs,
    gauss_newton_product,
    hvp,
    inner_product,
)
from seht_jax.penalty import (
    check_count,
    check_curvature,
    check_estimator,
    check_loss_fn,
    check_switch,
    shared_key,
)
from seht_jax.precision import accumulation_dtype
from seht_jax.probes import (
    LayerFunction,
    LayerTable,
    ProbeProbability,
    draw_layers,
    layer_table,
    module_layer,
    probe_probabilities,
    sample_probe,
)
from seht_jax.sharding import shaped_like


class TraceEstimate(NamedTuple):
    """An estimate of a trace.

    Attributes:
        mean: The mean of the samples.
        standard_error: Its standard error; nan for a single sample.
        samples: One value for each probe, independent of one another.
    """

    mean: Float[Array, ""]
    standard_error: Float[Array, ""]
    samples: Float[Array, " probes"]


def hutchinson_trace(
    loss_fn: Callable[..., Any],
    key: PRNGKeyArray,
    *,
    num_probes: int = 32,
    has_aux: bool = False,
    curvature: Curvature = "hessian",
    layers: LayerFunction = module_layer,
) -> Callable[..., TraceEstimate]:
    r"""Estimate tr(H) with Rademacher probes.

    $$\mathrm{tr}\, H = E[\sigma^T H \sigma], \qquad
        \mathrm{Var}[\sigma^T H \sigma] = 2 \Big(\|H\|_F^2 - \sum_i H_{ii}^2\Big)$$

    Args:
        loss_fn: `loss_fn(params, *args, **kwargs)` returns a real scalar, or `(scalar, aux)`.
        key: A PRNG key.
        num_probes: The number of probes; each costs one Hessian-vector product.
        has_aux: Whether the loss returns an aux; it is dropped.
        curvature: The matrix H: that of the loss, or of Gauss and Newton (see `regularize`).
        layers: From the path of a leaf to its layer (see `regularize`). Leaves for which it
            returns `None` are left out of the trace.

    Returns:
        A function of `loss_fn`'s signature that returns a `TraceEstimate`, in the dtype of the
        loss and at least float32.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If `num_probes` is less than 1.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> matrix = jnp.array([[2.0, 1.0], [1.0, 3.0]])
        >>> def loss_fn(params):
        ...     return 0.5 * params @ matrix @ params
        >>> estimate = hutchinson_trace(loss_fn, jax.random.key(0), num_probes=400)(jnp.ones(2))
        >>> bool(abs(estimate.mean - 5.0) < 4 * estimate.standard_error)
        True

    References:
        Eqs. (10) and (11) of Liu, Yu and Lin (2022); Hutchinson (1990).
    """
    return masked_trace(
        loss_fn,
        key,
        (1.0, 0.5),
        num_probes=num_probes,
        has_aux=has_aux,
        curvature=curvature,
        layers=layers,
    )


def masked_trace(
    loss_fn: Callable[..., Any],
    key: PRNGKeyArray,
    p: ProbeProbability,
    *,
    num_probes: int = 32,
    has_aux: bool = False,
    curvature: Curvature = "hessian",
    layers: LayerFunction = module_layer,
    rescale: bool = False,
) -> Callable[..., TraceEstimate]:
    r"""Estimate the trace as SEHT-D does, with layers drawn anew for each probe.

    With $q = 2 p_{entries}$, a sample has mean $p_{layers}\, q\, \mathrm{tr}\, H$, and
    $\mathrm{tr}\, H$ with `rescale=True`. The variance of the rescaled sample is

    $$\frac{1 - p_l}{p_l} \sum_L \mathrm{tr}(H_{LL})^2
        + \frac{1 - q}{p_l q} \sum_i H_{ii}^2
        + \frac{2}{p_l} \sum_{i \ne j \text{ in one layer}} H_{ij}^2
        + 2 \sum_{i, j \text{ in two layers}} H_{ij}^2$$

    Given the zeros of a probe, the sample is unbiased for the sum of the kept diagonal entries
    (Eqs. 12 and 13 of the paper).

    Args:
        loss_fn: See `hutchinson_trace`.
        key: A PRNG key.
        p: See `regularize`.
        num_probes: See `hutchinson_trace`.
        has_aux: See `hutchinson_trace`.
        curvature: See `hutchinson_trace`.
        layers: See `hutchinson_trace`.
        rescale: Whether to divide by $p_{layers}\, q$, which makes it unbiased.

    Returns:
        A function of `loss_fn`'s signature that returns a `TraceEstimate`.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of its range.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> def loss_fn(params):
        ...     return jnp.sum(params["a"] ** 2) + jnp.sum(params["b"] ** 2)
        >>> params = {"a": jnp.ones(3), "b": jnp.ones(5)}
        >>> trace = masked_trace(loss_fn, jax.random.key(0), (0.5, 0.5), num_probes=100)
        >>> [round(x) for x in sorted(set(trace(params).samples.tolist()))]  # which were drawn
        [0, 6, 10, 16]
    """
    check_estimator(loss_fn, key, curvature, num_probes)
    check_switch("rescale", rescale)
    p_layers, p_entries = probe_probabilities(p)
    scale = 1 / (p_layers * 2 * p_entries) if rescale else 1.0

    @functools.wraps(loss_fn, updated=())
    def estimate(params: PyTree, /, *args: Any, **kwargs: Any) -> TraceEstimate:
        loss, operands = close_loss(loss_fn, params, args, kwargs, has_aux=has_aux)
        table = layer_table(params, layers)
        product_with = curvature_product(curvature, loss, operands, table)
        leaves = loss.params_of(operands)
        dtype = accumulation_dtype(loss.dtype)

        def sample(key: PRNGKeyArray) -> Float[Array, ""]:
            key_layers, key_probe = jax.random.split(key)
            drawn = None if p_layers == 1 else draw_layers(key_layers, len(table.names), p_layers)
            probe = sample_probe(key_probe, leaves, table, p_entries, drawn)
            product = product_with(loss, operands, probe)
            return scale * inner_product(list(probe.values()), list(product.values()), dtype)

        return summarise(_map_probes(sample, shared_key(loss, operands, key), num_probes))

    return estimate


def layer_traces(
    loss_fn: Callable[..., Any],
    key: PRNGKeyArray,
    *,
    num_probes: int = 32,
    has_aux: bool = False,
    curvature: Curvature = "hessian",
    layers: LayerFunction = module_layer,
) -> Callable[..., dict[str, TraceEstimate]]:
    r"""Estimate the trace of each layer's own block of the Hessian.

    One Rademacher probe over all layers gives a sample for every layer,

    $$E[\sigma_L^T (H \sigma)_L] = \mathrm{tr}\, H_{LL}, \qquad
        \mathrm{Var} = 2 \sum_{i \ne j \in L} H_{ij}^2 + \sum_{i \in L, j \notin L} H_{ij}^2$$

    so that all layers together cost what `hutchinson_trace` does, and the samples of a probe add
    up to its sample.

    Args:
        loss_fn: See `hutchinson_trace`.
        key: A PRNG key.
        num_probes: See `hutchinson_trace`.
        has_aux: See `hutchinson_trace`.
        curvature: See `hutchinson_trace`.
        layers: See `hutchinson_trace`.

    Returns:
        A function of `loss_fn`'s signature that returns a `TraceEstimate` by the name of the
        layer.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If `num_probes` is less than 1.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> def loss_fn(params):
        ...     return jnp.sum(params["a"] ** 2) + 3 * jnp.sum(params["b"] ** 2)
        >>> params = {"a": jnp.ones(3), "b": jnp.ones(5)}
        >>> traces = layer_traces(loss_fn, jax.random.key(0), num_probes=2)(params)
        >>> {name: float(trace.mean) for name, trace in traces.items()}
        {'a': 6.0, 'b': 30.0}

    References:
        Eqs. (10) and (11) of Liu, Yu and Lin (2022), of which these are the parts by layer.
    """
    check_estimator(loss_fn, key, curvature, num_probes)

    @functools.wraps(loss_fn, updated=())
    def estimate(params: PyTree, /, *args: Any, **kwargs: Any) -> dict[str, TraceEstimate]:
        loss, operands = close_loss(loss_fn, params, args, kwargs, has_aux=has_aux)
        table = layer_table(params, layers)
        product_with = curvature_product(curvature, loss, operands, table)
        dtype = accumulation_dtype(loss.dtype)

        def sample(key: PRNGKeyArray) -> Float[Array, " layers"]:
            probe = sample_probe(key, loss.params_of(operands), table, 0.5, None)
            product = product_with(loss, operands, probe)
            return _sum_by_layer(table, probe, product, dtype)

        samples = _map_probes(sample, shared_key(loss, operands, key), num_probes)
        return {name: summarise(samples[:, i]) for i, name in enumerate(table.names)}

    return estimate


def exact_trace(
    loss_fn: Callable[..., Any],
    *,
    chunk_size: int = 32,
    has_aux: bool = False,
    curvature: Curvature = "hessian",
    layers: LayerFunction = module_layer,
) -> Callable[..., Float[Array, ""]]:
    r"""Compute tr(H) exactly, by one Hessian-vector product for each parameter.

    $$\mathrm{tr}\, H = \sum_i e_i^T H e_i$$

    For small networks, or one layer of a larger one: with a `layers` function that returns `None`
    for all other leaves, the products are those of that layer's block alone.

    Args:
        loss_fn: See `hutchinson_trace`.
        chunk_size: How many products are computed at a time (`jax.vmap`); memory grows with it.
        has_aux: See `hutchinson_trace`.
        curvature: See `hutchinson_trace`.
        layers: See `hutchinson_trace`.

    Returns:
        A function of `loss_fn`'s signature that returns the trace, in the dtype of the loss and
        at least float32.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If `chunk_size` is less than 1.

    Examples:
        >>> import jax.numpy as jnp
        >>> def loss_fn(params):
        ...     return params["a"] ** 2 * params["b"] ** 2
        >>> params = {"a": jnp.array(1.0), "b": jnp.array(3.0)}
        >>> float(exact_trace(loss_fn)(params))
        20.0
        >>> float(exact_trace(loss_fn, layers=lambda path: "a" if "a" in path else None)(params))
        18.0
    """
    check_loss_fn("loss_fn", loss_fn)
    check_curvature(curvature)
    check_count("chunk_size", chunk_size)

    @functools.wraps(loss_fn, updated=())
    def trace(params: PyTree, /, *args: Any, **kwargs: Any) -> Float[Array, ""]:
        loss, operands = close_loss(loss_fn, params, args, kwargs, has_aux=has_aux)
        table = layer_table(params, layers)
        product_with = curvature_product(curvature, loss, operands, table)
        leaves = loss.params_of(operands)
        dtype = accumulation_dtype(loss.dtype)

        def diagonal_entry(leaf: int, entry: Array) -> Array:
            flat = jnp.zeros(leaves[leaf].size, leaves[leaf].dtype).at[entry].set(1)
            basis = as_varying(shaped_like(flat, leaves[leaf]), varying_axes(leaves[leaf]))
            product = product_with(loss, operands, {leaf: basis})[leaf]
            # Devices that share the leaf would have to send it, were the entry looked up.
            return jnp.sum(jnp.where(basis == 1, product, 0)).astype(dtype)

        total = jnp.zeros((), dtype)
        for leaf in table.probed:
            if not leaves[leaf].size:
                continue
            entries = jnp.arange(leaves[leaf].size)
            diagonal = jax.lax.map(
                functools.partial(diagonal_entry, leaf), entries, batch_size=chunk_size
            )
            total += diagonal.sum()
        return total

    return trace


def output_trace(logits: Float[Array, "*batch classes"]) -> Float[Array, ""]:
    r"""Compute the trace of softmax cross-entropy's Hessian in the logits, Eq. (7) of the paper.

    $$\frac{1}{n} \mathrm{tr}\, H_{\ell, z} = \frac{1}{n} \sum_{i=1}^{n}
        \Big(1 - \sum_c \mathrm{softmax}(z_i)_c^2\Big)$$

    The labels do not enter. It is the trace of the Hessian of the mean loss by all its logits.

    Args:
        logits: One row of logits for each sample.

    Returns:
        The trace, at least float32.

    Raises:
        TypeError: If the logits are not floating-point numbers.
        ValueError: If there is no axis of classes.

    Examples:
        >>> import jax.numpy as jnp
        >>> float(output_trace(jnp.zeros((8, 4))))
        0.75
    """
    if not jnp.issubdtype(jnp.result_type(logits), jnp.floating):
        message = f"logits must be floating-point numbers, got dtype {jnp.result_type(logits)}"
        raise TypeError(message)
    if jnp.ndim(logits) < 1:
        message = f"logits must have an axis of classes, got shape {jnp.shape(logits)}"
        raise ValueError(message)
    probabilities = jax.nn.softmax(logits.astype(accumulation_dtype(logits.dtype)), axis=-1)
    return jnp.mean(1 - jnp.sum(probabilities**2, axis=-1))


def curvature_product(
    curvature: Curvature, loss: ClosedLoss, operands: Sequence[Array], table: LayerTable
) -> Callable[[ClosedLoss, Sequence[Array], Mapping[int, Array]], dict[int, Array]]:
    """Return the product of a matrix with a direction of some leaves, on these leaves.

    Args:
        curvature: Which matrix.
        loss: The closed loss.
        operands: Its operands.
        table: The layers of its params.

    Returns:
        A function of the loss, the operands and a direction, by the positions of the leaves, that
        returns the product at the same positions.

    Raises:
        TypeError: If the Gauss-Newton matrix is asked of a loss without a forward derivative.
        ValueError: If it is asked of a loss in which the outputs are not marked (`outputs`).
    """
    if curvature == "hessian":
        return hessian_vector_product
    check_outputs(loss, operands, table.probed)
    return _gauss_newton_vector_product


def summarise(samples: Float[Array, " probes"]) -> TraceEstimate:
    """Take mean and standard error of independent samples.

    Args:
        samples: The samples.

    Returns:
        The estimate.
    """
    num_probes = samples.shape[0]
    if num_probes == 1:  # one sample has no spread
        return TraceEstimate(samples[0], jnp.asarray(np.nan, samples.dtype), samples)
    standard_error = jnp.std(samples, ddof=1) / num_probes**0.5
    return TraceEstimate(jnp.mean(samples), standard_error, samples)


def hessian_vector_product(
    loss: ClosedLoss, operands: Sequence[Array], probe: Mapping[int, Array]
) -> dict[int, Array]:
    """Compute the product of the Hessian of a closed loss with a direction of some leaves.

    Args:
        loss: The closed loss.
        operands: Its operands.
        probe: The direction, by the positions of the leaves that it moves.

    Returns:
        The product on the probed leaves only, whose gradients are the only ones taken.
    """
    first_param = len(operands) - loss.num_params

    def loss_of(probed: dict[int, Array], operands: Sequence[Array]) -> Array:
        replaced = list(operands)
        for i, leaf in probed.items():
            replaced[first_param + i] = leaf
        return loss(replaced)[0]

    probed = {i: operands[first_param + i] for i in probe}
    product = canonical_on_cpu(
        lambda probe, probed, operands: hvp(loss_of, probe)(probed, operands)
    )
    return product(dict(probe), probed, list(operands))


def _product_with(
    curvature: Curvature, loss: ClosedLoss, operands: Sequence[Array], table: LayerTable
) -> Callable[[ClosedLoss, Sequence[Array], Mapping[int, Array]], dict[int, Array]]:
    """Return the product of a matrix with a direction of some leaves, on these leaves."""
    if curvature == "hessian":
        return hessian_vector_product
    check_outputs(loss, operands, table.probed)
    return _gauss_newton_vector_product


def _gauss_newton_vector_product(
    loss: ClosedLoss, operands: Sequence[Array], probe: Mapping[int, Array]
) -> dict[int, Array]:
    first_param = len(operands) - loss.num_params
    product = canonical_on_cpu(functools.partial(gauss_newton_product, loss))
    moved = product(list(operands), {first_param + i: leaf for i, leaf in probe.items()})
    return {i: moved[first_param + i] for i in probe}


def _map_probes(
    sample: Callable[[PRNGKeyArray], Array], key: PRNGKeyArray, num_probes: int
) -> Float[Array, "probes ..."]:
    return jax.lax.map(sample, jax.random.split(key, num_probes))


def _sum_by_layer(
    table: LayerTable, probe: Mapping[int, Array], product: Mapping[int, Array], dtype: Any
) -> Float[Array, " layers"]:
    totals = jnp.zeros(len(table.names), dtype)
    for i, direction in probe.items():
        index = table.indices[i]
        terms = direction.astype(dtype) * product[i].astype(dtype)
        others = [axis for axis in range(terms.ndim) if not index.ndim or index.shape[axis] == 1]
        totals = totals.at[index.ravel()].add(terms.sum(others))
    return totals
