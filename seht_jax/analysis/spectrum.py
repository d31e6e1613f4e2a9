"""Extreme eigenvalues and the spectral density, by Lanczos' method.

The iteration is matfree's, with full reorthogonalisation: the basis, as many vectors of the params'
size as there are products, is in memory.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, PRNGKeyArray, PyTree
from matfree import decomp

from seht_jax.analysis.operator import CurvatureOperator, curvature_operator
from seht_jax.curvature import Curvature
from seht_jax.penalty import check_count
from seht_jax.probes import LayerFunction, module_layer


class Eigenpairs(NamedTuple):
    r"""Some eigenvalues with their eigenvectors.

    Attributes:
        values: The eigenvalues, the most extreme first.
        vectors: The eigenvectors, of length 1: a pytree like the params, whose leaves have the
            pairs along their first axis.
        residuals: $\|Hv - \mu v\|$, in exact arithmetic: there is an eigenvalue of H no
            farther from the value than that.
    """

    values: Float[Array, " pairs"]
    vectors: PyTree
    residuals: Float[Array, " pairs"]


class ExtremeEigenpairs(NamedTuple):
    """Both ends of a spectrum.

    Attributes:
        largest: The greatest eigenvalues, descending.
        smallest: The least ones (for a Hessian, the most negative), ascending.
    """

    largest: Eigenpairs
    smallest: Eigenpairs


class SpectralQuadrature(NamedTuple):
    r"""A spectrum as each of several random vectors sees it.

    For a function f, the mean over the probes of $\sum_j w_j f(x_j)$ estimates the mean of f
    over all eigenvalues, $\mathrm{tr} f(H) / n$.

    Attributes:
        nodes: The nodes x of Gauss' quadrature, one row for each probe.
        weights: Their weights w, which add up to 1 in each row.
    """

    nodes: Float[Array, "probes nodes"]
    weights: Float[Array, "probes nodes"]


class DensityEstimate(NamedTuple):
    """A density at some points.

    Attributes:
        mean: The mean over the probes.
        standard_error: Its standard error; nan for a single probe.
    """

    mean: Float[Array, " points"]
    standard_error: Float[Array, " points"]


def extreme_eigenpairs(
    loss_fn: Callable[..., Any],
    key: PRNGKeyArray,
    *,
    num_pairs: int = 1,
    num_products: int = 64,
    has_aux: bool = False,
    curvature: Curvature = "hessian",
    layers: LayerFunction = module_layer,
    progress: Callable[[], Any] | None = None,
) -> Callable[..., ExtremeEigenpairs]:
    r"""Compute the greatest and the least eigenvalues of H, and their eigenvectors.

    Lanczos' method, from a random vector, finds the eigenvalues of H on the Krylov space

    $$\mathrm{span}(v, Hv, H^2 v, \dots)$$

    whose extreme ones come close to those of H first. How close is in the residuals: take more
    products where one is too large. An eigenvalue of which there are several is found once. If the
    space is exhausted, because H has few different eigenvalues, there may be fewer pairs than are
    asked for: the others are nan.

    Args:
        loss_fn: `loss_fn(params, *args, **kwargs)` returns a real scalar, or `(scalar, aux)`. For
            a data set, wrap it in `seht_jax.mean_over_batches`.
        key: A PRNG key, for the first vector.
        num_pairs: How many pairs there are of each end.
        num_products: How many matrix-vector products are made; at most as many as there are
            parameters. Memory grows with it.
        has_aux: Whether the loss returns an aux; it is dropped.
        curvature: The matrix H: that of the loss, or of Gauss and Newton (see
            `seht_jax.regularize`).
        layers: From the path of a leaf to its layer. Leaves for which it returns `None` are left
            out: the matrix is the block of the others, and their parts of the eigenvectors are 0.
        progress: Called on the host after each product, such as the `update` of a progress bar.

    Returns:
        A function of `loss_fn`'s signature that returns `ExtremeEigenpairs`: values in the dtype
        of the loss and at least float32; vectors in the params' dtypes and, outside of `jax.jit`,
        shardings.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If `num_pairs` is less than 1 or greater than the number of products.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> def loss_fn(params):
        ...     return 2 * params["a"] ** 2 + params["b"] ** 2 - params["c"] ** 2
        >>> params = {name: jnp.array(1.0) for name in "abc"}
        >>> largest, smallest = extreme_eigenpairs(loss_fn, jax.random.key(0))(params)
        >>> round(float(largest.values[0]), 4), round(float(smallest.values[0]), 4)
        (4.0, -2.0)
        >>> [round(abs(float(largest.vectors[name][0])), 3) for name in "abc"]
        [1.0, 0.0, 0.0]

    References:
        Lanczos (1950), in matfree's implementation. Ghorbani, Krishnan and Xiao, *An Investigation
        into Neural Net Optimization via Hessian Eigenvalue Density* (2019).
    """
    check_count("num_pairs", num_pairs)
    check_count("num_products", num_products)
    operator = curvature_operator(
        loss_fn, key, has_aux=has_aux, curvature=curvature, layers=layers, progress=progress
    )

    @functools.wraps(loss_fn, updated=())
    def eigenpairs(params: PyTree, /, *args: Any, **kwargs: Any) -> ExtremeEigenpairs:
        matrix = operator(params, *args, **kwargs)
        dimension = min(num_products, matrix.size)
        if num_pairs > dimension:
            message = (
                f"num_pairs must be at most the number of products, {dimension} (num_products = "
                f"{num_products}, {matrix.size} parameters), got {num_pairs}"
            )
            raise ValueError(message)
        start = jax.random.normal(matrix.key, (matrix.size,), matrix.dtype)
        ritz = _ritz_pairs(matrix, start, dimension)

        def first(order: Array) -> Eigenpairs:
            chosen = order[:num_pairs]
            vectors = ritz.coordinates[:, chosen].T @ ritz.basis
            values = ritz.values[chosen]
            return Eigenpairs(values, matrix.to_params(vectors), ritz.residuals[chosen])

        # Sorting puts nan last.
        return ExtremeEigenpairs(first(jnp.argsort(-ritz.values)), first(jnp.argsort(ritz.values)))

    return eigenpairs


def spectral_quadrature(
    loss_fn: Callable[..., Any],
    key: PRNGKeyArray,
    *,
    num_probes: int = 8,
    num_products: int = 64,
    has_aux: bool = False,
    curvature: Curvature = "hessian",
    layers: LayerFunction = module_layer,
    progress: Callable[[], Any] | None = None,
) -> Callable[..., SpectralQuadrature]:
    r"""Estimate how the eigenvalues of H are distributed, by stochastic Lanczos quadrature.

    With a Rademacher vector v over n parameters, and f any function,

    $$\frac{1}{n} \mathrm{tr} f(H) = \frac{1}{n} E[v^T f(H)\, v]
        \approx E\Big[\sum_j w_j f(x_j)\Big]$$

    where nodes and weights are those of the Gauss quadrature that Lanczos' method gives: exact, for
    each v, if f is a polynomial of a degree less than twice the number of products.
    `smoothed_density` makes a curve of it.

    Args:
        loss_fn: See `extreme_eigenpairs`.
        key: A PRNG key.
        num_probes: The number of random vectors.
        num_products: How many matrix-vector products are made for each; at most as many as there
            are parameters. It is the number of nodes. Memory grows with it.
        has_aux: See `extreme_eigenpairs`.
        curvature: See `extreme_eigenpairs`.
        layers: See `extreme_eigenpairs`.
        progress: See `extreme_eigenpairs`.

    Returns:
        A function of `loss_fn`'s signature that returns a `SpectralQuadrature`, in the dtype of
        the loss and at least float32. The sum of `weights * nodes`, times the number of
        parameters, is a sample of `seht_jax.hutchinson_trace`.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a number is less than 1.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> def loss_fn(params):
        ...     return 2 * params["a"] ** 2 + params["b"] ** 2 - params["c"] ** 2
        >>> params = {name: jnp.array(1.0) for name in "abc"}
        >>> quadrature = spectral_quadrature(loss_fn, jax.random.key(0), num_probes=1)(params)
        >>> [round(x, 3) for x in quadrature.nodes[0].tolist()]
        [-2.0, 2.0, 4.0]
        >>> [round(x, 3) for x in quadrature.weights[0].tolist()]
        [0.333, 0.333, 0.333]

    References:
        Ubaru, Chen and Saad, *Fast Estimation of tr(f(A)) via Stochastic Lanczos Quadrature*
        (2017). Ghorbani, Krishnan and Xiao (2019).
    """
    check_count("num_probes", num_probes)
    check_count("num_products", num_products)
    operator = curvature_operator(
        loss_fn, key, has_aux=has_aux, curvature=curvature, layers=layers, progress=progress
    )

    @functools.wraps(loss_fn, updated=())
    def quadrature(params: PyTree, /, *args: Any, **kwargs: Any) -> SpectralQuadrature:
        matrix = operator(params, *args, **kwargs)
        dimension = min(num_products, matrix.size)

        def of_probe(key: PRNGKeyArray) -> SpectralQuadrature:
            ritz = _ritz_pairs(matrix, matrix.signs(key), dimension)
            found = ~jnp.isnan(ritz.values)
            # A node without weight, wherever it is, where the Krylov space is exhausted.
            nodes = jnp.where(found, ritz.values, ritz.mean)
            return SpectralQuadrature(nodes, jnp.where(found, ritz.coordinates[0] ** 2, 0))

        return jax.lax.map(of_probe, jax.random.split(matrix.key, num_probes))

    return quadrature


def smoothed_density(
    quadrature: SpectralQuadrature,
    points: Float[Array, " points"],
    width: float | Float[Array, ""],
) -> DensityEstimate:
    r"""Smooth a spectrum with a Gaussian.

    $$\phi(t) = \frac{1}{n} \sum_i \mathcal N(t;\, \mu_i, s^2)
        \approx \sum_j w_j\, \mathcal N(t;\, x_j, s^2)$$

    Args:
        quadrature: The spectrum.
        points: Where the density is computed, t.
        width: The standard deviation of the Gaussian, s, in units of the eigenvalues.

    Returns:
        The density, whose integral is 1.

    Raises:
        ValueError: If the width is known and not positive.

    Examples:
        >>> import jax.numpy as jnp
        >>> quadrature = SpectralQuadrature(jnp.array([[0.0, 9.0]]), jnp.array([[0.5, 0.5]]))
        >>> density = smoothed_density(quadrature, jnp.array([0.0]), width=1.0)
        >>> round(float(density.mean[0]), 4)  # half of 1 / sqrt(2 pi)
        0.1995

    References:
        Ghorbani, Krishnan and Xiao (2019), section 2.
    """
    if not isinstance(width, Tracer) and not width > 0:
        message = f"width must be positive, got {width}"
        raise ValueError(message)
    nodes, weights = quadrature
    points = jnp.asarray(points, nodes.dtype)

    def at(point: Array) -> Array:
        return jnp.sum(weights * jax.scipy.stats.norm.pdf(point, nodes, width), axis=1)

    samples = jax.lax.map(at, points)  # (points, probes)
    num_probes = nodes.shape[0]
    if num_probes == 1:
        error = jnp.full_like(points, jnp.nan)
    else:
        error = jnp.std(samples, axis=1, ddof=1) / num_probes**0.5
    return DensityEstimate(jnp.mean(samples, axis=1), error)


class _RitzPairs(NamedTuple):
    """The eigenvalues of a matrix on a Krylov space.

    Attributes:
        basis: The orthonormal basis of the space, in rows.
        values: The eigenvalues; nan where the space has fewer dimensions than there are rows.
        coordinates: The eigenvectors in this basis, in columns.
        residuals: What is missing from each to be a pair of the matrix itself.
        mean: The mean of the eigenvalues, weighted as the first vector sees them.
    """

    basis: Float[Array, "dimension size"]
    values: Float[Array, " dimension"]
    coordinates: Float[Array, "dimension dimension"]
    residuals: Float[Array, " dimension"]
    mean: Float[Array, ""]


def _ritz_pairs(matrix: CurvatureOperator, start: Array, dimension: int) -> _RitzPairs:
    # Not matfree's `tridiag_sym`, which is this with the entries on both sides of the diagonal
    # averaged: below it are the norms by which an exhausted space is recognised.
    decompose: Any = decomp.hessenberg(dimension, reortho="full", custom_vjp=False)
    basis, hessenberg, rest, _ = decompose(matrix.product, start)
    diagonal, lower = jnp.diagonal(hessenberg), jnp.diagonal(hessenberg, -1)
    finite = [jnp.where(jnp.isfinite(x), jnp.abs(x), 0) for x in (diagonal, lower)]
    scale = jnp.max(jnp.concatenate(finite))
    # What comes after a norm of 0, or of rounding errors, is no part of the Krylov space.
    goes_on = (lower > 10 * jnp.finfo(matrix.dtype).eps * scale) & jnp.isfinite(diagonal[1:])
    inside = jnp.concatenate([jnp.ones(1, bool), jnp.cumprod(goes_on, dtype=int).astype(bool)])
    # Beyond the space, a block of its own with eigenvalues that H on the space can not have.
    outside = jnp.where(scale > 0, 4 * scale, 1)
    off_diagonal = jnp.where(inside[1:], lower, 0)
    tridiagonal = (
        jnp.diag(jnp.where(inside, diagonal, outside))
        + jnp.diag(off_diagonal, 1)
        + jnp.diag(off_diagonal, -1)
    )
    values, coordinates = jnp.linalg.eigh(tridiagonal)
    in_space = jnp.sum(jnp.where(inside[:, None], coordinates**2, 0), axis=0) > 0.5
    nothing = jnp.asarray(np.nan, matrix.dtype)
    beyond = jnp.where(inside[-1], jnp.linalg.norm(rest), 0)
    return _RitzPairs(
        jnp.where(inside[:, None], basis, 0),
        jnp.where(in_space, values, nothing),
        coordinates,
        jnp.where(in_space, jnp.abs(beyond * coordinates[-1]), nothing),
        diagonal[0],
    )
