r"""The generalisation bound that motivates the penalty, Eqs. (5) and (6) of the paper.

For a linear model z = W x under softmax cross-entropy, the gap between expected and empirical loss
is bounded by a sum of terms that grow with the norm of the loss's Jacobian and the trace of its
Hessian, both *with respect to the outputs* z. The bound holds up to constants that the paper does
not state: compare its values with one another, and do not read them as losses.
"""

import math
import numbers
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from seht_jax.penalty import as_scalar, check_positive
from seht_jax.precision import accumulation_dtype
from seht_jax.trace import output_trace


class GapBound(NamedTuple):
    """The terms of Eq. (5), in its order; `total` is their sum.

    Attributes:
        jacobian: The term with mu, the mean norm of the Jacobian.
        hessian: The term with the square root of v, the mean trace of the Hessian.
        logarithmic: The third term, in which v is inside the logarithm.
        zeta: The last term, which depends on the confidence and not on the model.
    """

    jacobian: Float[Array, ""]
    hessian: Float[Array, ""]
    logarithmic: Float[Array, ""]
    zeta: Float[Array, ""]

    @property
    def total(self) -> Float[Array, ""]:
        """The right-hand side of Eq. (5)."""
        return self.jacobian + self.hessian + self.logarithmic + self.zeta


class LinearModelBound(NamedTuple):
    """Eq. (5) for a linear model and a training set, and what goes into it.

    Attributes:
        gap: The terms of the right-hand side.
        empirical_loss: The mean of min(loss, B) over the training set, which enters the left-hand
            side 1.01 times.
        norm_bound: A, the bound on the (2, 1) norm of the transpose of W.
        mu: The mean norm of the Jacobian of the loss in the outputs.
        v: The mean trace of the Hessian of the loss in the outputs.
        theta: The third power of log(n M), times the largest squared norm of an input.
    """

    gap: GapBound
    empirical_loss: Float[Array, ""]
    norm_bound: Float[Array, ""]
    mu: Float[Array, ""]
    v: Float[Array, ""]
    theta: Float[Array, ""]


def norm_2_1(matrix: Float[Array, "rows columns"]) -> Float[Array, ""]:
    r"""Compute the (2, 1) norm of a matrix, the sum of the norms of its columns.

    $$\|W\|_{2,1} = \sum_j \sqrt{\sum_i W_{ij}^2}$$

    Args:
        matrix: The matrix.

    Returns:
        The norm.

    Examples:
        >>> import jax.numpy as jnp
        >>> matrix = jnp.array([[3.0, 0.0], [4.0, 2.0]])
        >>> float(norm_2_1(matrix)), round(float(norm_2_1(matrix.T)), 4)
        (7.0, 7.4721)

    References:
        Eq. (6) of Liu, Yu and Lin (2022).
    """
    return jnp.sum(jnp.linalg.norm(matrix, axis=0))


def gap_bound(
    *,
    norm_bound: float | Float[Array, ""],
    mu: float | Float[Array, ""],
    v: float | Float[Array, ""],
    theta: float | Float[Array, ""],
    num_examples: int,
    loss_bound: float = 1.0,
    delta: float = 0.05,
) -> GapBound:
    r"""Compute the terms of Eq. (5).

    $$\mathbb{E}[\bar\ell] - 1.01\, \hat{\mathbb{E}}[\bar\ell] \lesssim
        \frac{(A\mu)^{2/3} (\theta B)^{1/3}}{n^{1/3}} + \frac{A \sqrt{B v \theta}}{\sqrt n}
        + \frac{B A^2 \theta}{n \left(\log^2\left(\frac{B A^2 \theta}{v n}\right) + 1\right)}
        + \zeta, \qquad
        \zeta = \frac{B (\log(1/\delta) + \log\log n)}{n}$$

    with $\bar\ell = \min\{\ell, B\}$. The sum rises with v for every v > 0, which is why a
    smaller trace gives a smaller bound. The third term alone does so only up to
    $v = B A^2 \theta / n$. At v = 0 it has its limit, 0.

    Args:
        norm_bound: A, at least the (2, 1) norm of the transpose of W, 0 or more.
        mu: The mean norm of the Jacobian in the outputs, 0 or more.
        v: The mean trace of the Hessian in the outputs, 0 or more.
        theta: See `LinearModelBound`; 0 or more.
        num_examples: n, at least 2: log log n is not defined for less.
        loss_bound: B, at which the loss is cut off.
        delta: The bound fails with at most this probability over the training set.

    Returns:
        The terms, by name.

    Raises:
        TypeError: If an argument is not a number.
        ValueError: If an argument is out of its range, or is no scalar.

    Examples:
        >>> terms = gap_bound(
        ...     norm_bound=2.0, mu=0.5, v=0.25, theta=8.0, num_examples=8, loss_bound=1.0
        ... )
        >>> [round(float(term), 4) for term in terms]
        [1.0, 1.0, 0.4604, 0.466]
        >>> round(float(terms.total), 4)
        2.9264

    References:
        Eqs. (5) and (6) of Liu, Yu and Lin (2022), who take them from Wei, Kakade and Ma, *The
        Implicit and Explicit Regularization Effects of Dropout* (2020).
    """
    _check_num_examples(num_examples)
    check_positive("loss_bound", loss_bound)
    _check_delta(delta)
    n, b = float(num_examples), float(loss_bound)
    scalars = {"norm_bound": norm_bound, "mu": mu, "v": v, "theta": theta}
    for name, value in scalars.items():
        if isinstance(value, numbers.Real) and value < 0:
            message = f"{name} must be at least 0, got {value}"
            raise ValueError(message)
    a, mu, v, theta = _of_one_dtype([as_scalar(name, value) for name, value in scalars.items()])
    zeta = jnp.full_like(a, b * (math.log(1 / delta) + math.log(math.log(n))) / n)
    scale = b * a**2 * theta / n
    # Where v or the scale is 0 the logarithm is infinite, and the term's limit is 0.
    finite = (v > 0) & (scale > 0)
    one = jnp.ones_like(v)
    logarithm = jnp.log(jnp.where(finite, scale, one)) - jnp.log(jnp.where(finite, v, one))
    return GapBound(
        jacobian=jnp.cbrt((a * mu) ** 2 * theta * b / n),
        hessian=a * jnp.sqrt(b * v * theta / n),
        logarithmic=jnp.where(finite, scale / (logarithm**2 + 1), jnp.zeros_like(scale)),
        zeta=zeta,
    )


def linear_model_bound(
    weights: Float[Array, "classes features"],
    inputs: Float[Array, "examples features"],
    labels: Int[Array, " examples"],
    *,
    loss_bound: float = 1.0,
    delta: float = 0.05,
    norm_bound: float | Float[Array, ""] | None = None,
) -> LinearModelBound:
    r"""Compute Eq. (5) for a linear model z = W x under softmax cross-entropy.

    With n examples, M classes and $p_i = \mathrm{softmax}(W x_i)$,

    $$\mu = \frac{1}{n} \sum_i \left\|\frac{\partial \ell_i}{\partial z_i}\right\|_2
        = \frac{1}{n} \sum_i \|p_i - e_{y_i}\|_2, \qquad
        v = \frac{1}{n} \sum_i \mathrm{tr} \frac{\partial^2 \ell_i}{\partial z_i^2}
        = \frac{1}{n} \sum_i \Big(1 - \sum_c p_{ic}^2\Big),$$

    $$\theta = \log^3(n M) \max_i \|x_i\|_2^2, \qquad
        A \ge \|W^T\|_{2,1} = \sum_c \sqrt{\sum_j W_{cj}^2}.$$

    The theorem is about a bound A that is fixed before the training set is seen.

    Args:
        weights: W, a row for each class: the transpose of the kernel of a Flax `Dense` layer. A
            bias is a column, and a feature that is always 1.
        inputs: The training inputs, one x in each row; at least 2.
        labels: The class of each.
        loss_bound: B, at which the loss is cut off.
        delta: The bound fails with at most this probability over the training set.
        norm_bound: A; `None` for the norm of these weights.

    Returns:
        The terms of the bound and what they are made of.

    Raises:
        TypeError: If an argument is not a number.
        ValueError: If shapes do not match, a label is none of the classes, `norm_bound` is below
            the norm, or another argument is out of its range. Traced values are not looked at.

    Examples:
        >>> import jax.numpy as jnp
        >>> weights = jnp.array([[3.0, 4.0], [0.0, 2.0], [0.0, 0.0]])
        >>> bound = linear_model_bound(weights, jnp.eye(2), jnp.array([0, 0]), loss_bound=2.0)
        >>> float(bound.norm_bound)
        7.0
        >>> sorted(bound.gap._asdict())
        ['hessian', 'jacobian', 'logarithmic', 'zeta']

    References:
        Eqs. (5) and (6) of Liu, Yu and Lin (2022).
    """
    num_examples, num_classes = _checked_sizes(weights, inputs, labels)
    check_positive("loss_bound", loss_bound)
    norm = norm_2_1(weights.T)
    if norm_bound is None:
        norm_bound = norm
    elif _below(norm_bound, norm):
        message = (
            f"norm_bound must be at least the (2, 1) norm of the transposed weights, {norm}, got "
            f"{norm_bound}"
        )
        raise ValueError(message)
    weights, inputs = _of_one_dtype([weights, inputs])
    logits = inputs @ weights.T
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    jacobians = jax.nn.softmax(logits) - jax.nn.one_hot(labels, num_classes, dtype=logits.dtype)
    mu = jnp.mean(jnp.linalg.norm(jacobians, axis=-1))
    v = output_trace(logits)
    theta = math.log(num_examples * num_classes) ** 3 * jnp.max(jnp.sum(inputs**2, axis=-1))
    gap = gap_bound(
        norm_bound=norm_bound,
        mu=mu,
        v=v,
        theta=theta,
        num_examples=num_examples,
        loss_bound=loss_bound,
        delta=delta,
    )
    empirical_loss = jnp.mean(jnp.minimum(losses, loss_bound))
    return LinearModelBound(gap, empirical_loss, as_scalar("norm_bound", norm_bound), mu, v, theta)


def _checked_sizes(weights: Array, inputs: Array, labels: Array) -> tuple[int, int]:
    """Return the numbers of examples and classes.

    Raises:
        ValueError: If shapes do not match, or a label is none of the classes.
    """
    shapes = f"weights of shape {weights.shape}, inputs of {inputs.shape}, labels of {labels.shape}"
    if (weights.ndim, inputs.ndim, labels.ndim) != (2, 2, 1):
        message = f"weights and inputs must be matrices and labels a vector, got {shapes}"
        raise ValueError(message)
    if weights.shape[1] != inputs.shape[1] or inputs.shape[0] != labels.shape[0]:
        message = (
            "weights must have a column, and labels an entry, for each column and row of inputs; "
            f"got {shapes}"
        )
        raise ValueError(message)
    _check_num_examples(inputs.shape[0])
    num_classes = weights.shape[0]
    if not isinstance(labels, Tracer) and not (
        bool(jnp.all((labels >= 0) & (labels < num_classes)))
    ):
        message = (
            f"labels must be in 0 ... {num_classes - 1}, one for each row of weights, got labels "
            f"from {jnp.min(labels)} to {jnp.max(labels)}"
        )
        raise ValueError(message)
    return inputs.shape[0], num_classes


def _below(bound: Any, norm: Array) -> bool:
    """Return whether a bound is known to be below the norm, by more than rounding."""
    if isinstance(bound, Tracer) or isinstance(norm, Tracer):
        return False
    return float(bound) < float(norm) * (1 - 4 * float(jnp.finfo(norm.dtype).eps))


def _check_num_examples(num_examples: int) -> None:
    if num_examples < 2:
        message = (
            f"num_examples must be at least 2, since log log n is in the bound; got {num_examples}"
        )
        raise ValueError(message)


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        message = f"delta must be between 0 and 1, got {delta}"
        raise ValueError(message)


def _of_one_dtype(arrays: list[Array]) -> list[Array]:
    """Return arrays in the widest of their dtypes, and at least float32."""
    dtype = max((array.dtype for array in arrays), key=lambda dtype: jnp.finfo(dtype).bits)
    return [array.astype(accumulation_dtype(dtype)) for array in arrays]
