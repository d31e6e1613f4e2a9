r"""Linear stability of a dynamical system, and of gradient descent seen as one.

Section 3.4 of the paper takes gradient descent with a small learning rate for the flow
$d\omega/dt = -\nabla L(\omega)$ (Eq. 16), a special case of the autonomous system
$dx/dt = f(x)$ (Eq. 17). Its Jacobian at a minimum is -H, so sharp minima attract fast and
flat ones slowly. With a learning rate that is not small, a minimum that is too sharp does not
attract at all: `descent_stability`.

These functions look at values, and so run outside of `jax.jit`, all but `gradient_flow` and
`descent_stability`.
"""

import math
import numbers
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Complex, Float, Inexact, PyTree

from seht_jax.closed_loss import check_params
from seht_jax.penalty import as_scalar, check_loss_fn
from seht_jax.precision import accumulation_dtype

Field: TypeAlias = Callable[[PyTree], PyTree]
StabilityKind: TypeAlias = Literal[
    "asymptotically stable", "saddle", "unstable", "non-hyperbolic", "not an equilibrium"
]
# From the product v -> J v and the point to eigenvalues of J.
EigenvalueFunction: TypeAlias = Callable[[Field, PyTree], Any]


class Classification(NamedTuple):
    """What linear stability analysis says of a point.

    Attributes:
        kind: What the point is, see `classify`.
        speed: The Euclidean norm of f at the point; for gradient descent, of the gradient.
        eigenvalues: The eigenvalues of the Jacobian that were looked at, by falling real part.
        num_stable: How many of them have a real part below 0, by more than the tolerance.
        num_unstable: How many have one above 0.
        num_center: How many have one that can not be told from 0.
    """

    kind: StabilityKind
    speed: float
    eigenvalues: Complex[np.ndarray, " eigenvalues"]
    num_stable: int
    num_unstable: int
    num_center: int


class DescentStability(NamedTuple):
    """Whether the steps of gradient descent contract near a minimum.

    Attributes:
        multipliers: 1 - learning_rate * eigenvalue: by what a step multiplies a small displacement
            along each eigenvector.
        spectral_radius: The largest absolute value of them.
        stable: Whether that is below 1.
        max_learning_rate: The learning rates for which it is are those between 0 and this one; 0
            if there are none, since an eigenvalue has no positive real part.
    """

    multipliers: Inexact[Array, " eigenvalues"]
    spectral_radius: Float[Array, ""]
    stable: Bool[Array, ""]
    max_learning_rate: Float[Array, ""]


def gradient_flow(loss_fn: Callable[..., Any]) -> Callable[..., PyTree]:
    r"""Return the field of gradient descent with infinitely small steps, Eq. (16) of the paper.

    $$\frac{d\omega}{dt} = f(\omega) = -\nabla L(\omega)$$

    Args:
        loss_fn: `loss_fn(params, *args, **kwargs)` returns a real scalar.

    Returns:
        A function of `loss_fn`'s signature that returns f, a pytree like the params.

    Raises:
        TypeError: If `loss_fn` is no function.

    Examples:
        >>> import jax.numpy as jnp
        >>> flow = gradient_flow(lambda params: jnp.sum(params["w"] ** 2))
        >>> flow({"w": jnp.array([1.0, -3.0])})["w"].tolist()
        [-2.0, 6.0]
    """
    check_loss_fn("loss_fn", loss_fn)

    def field(params: PyTree, /, *args: Any, **kwargs: Any) -> PyTree:
        return jax.tree.map(jnp.negative, jax.grad(loss_fn)(params, *args, **kwargs))

    return field


def dense_jacobian(field: Field, point: PyTree) -> Float[np.ndarray, "size size"]:
    r"""Compute the Jacobian of a small system.

    $$J_{ij} = \frac{\partial f_i}{\partial x_j}$$

    Args:
        field: The function f, from a pytree of arrays to one of the same structure and shapes.
        point: The point x; `size` numbers in all. Memory grows with the square of that.

    Returns:
        The matrix in float64, rows and columns in the order of the leaves.

    Raises:
        TypeError: If a leaf of the point is not a real floating-point array.
        ValueError: If the field's value does not look like the point.

    Examples:
        >>> import jax.numpy as jnp
        >>> def pendulum(state):
        ...     return {"angle": state["speed"], "speed": -jnp.sin(state["angle"])}
        >>> dense_jacobian(pendulum, {"angle": jnp.zeros(()), "speed": jnp.zeros(())})
        array([[ 0., 1.],
               [-1., 0.]])

    References:
        Section 3.4 of Liu, Yu and Lin (2022), below Eq. (17).
    """
    point = _checked_point(field, point)
    leaves, structure = jax.tree.flatten(point)

    def flat_field(leaves: list[Array]) -> list[Array]:
        return jax.tree.leaves(field(structure.unflatten(leaves)))

    def column(position: int, leaves: list[Array]) -> list[Array]:
        before, after = leaves[:position], leaves[position + 1 :]
        return jax.jacfwd(lambda leaf: flat_field([*before, leaf, *after]))(leaves[position])

    # One leaf at a time, since `jax.jacfwd` takes leaves of one dtype.
    columns = jax.jit(lambda leaves: [column(i, leaves) for i in range(len(leaves))])(leaves)
    return np.block(
        [
            [
                np.asarray(columns[j][i], np.float64).reshape(row_leaf.size, column_leaf.size)
                for j, column_leaf in enumerate(leaves)
            ]
            for i, row_leaf in enumerate(leaves)
        ]
    )


def dense_eigenvalues(product: Field, point: PyTree) -> Complex[np.ndarray, " size"]:
    """Compute all eigenvalues of a small linear map.

    Args:
        product: The map v -> J v on pytrees that look like the point.
        point: A pytree that says what v looks like.

    Returns:
        The eigenvalues, in complex128.

    Raises:
        TypeError: If a leaf of the point is not a real floating-point array.
        ValueError: If the product does not look like the point.

    Examples:
        >>> import jax.numpy as jnp
        >>> rotation = jnp.array([[0.0, 1.0], [-1.0, 0.0]])
        >>> eigenvalues = dense_eigenvalues(lambda v: rotation @ v, jnp.zeros(2))
        >>> sorted(eigenvalues.imag.tolist())
        [-1.0, 1.0]
    """
    # The Jacobian of a linear map is its matrix, wherever it is taken.
    return np.linalg.eigvals(dense_jacobian(product, point)).astype(np.complex128)


def dense_symmetric_eigenvalues(product: Field, point: PyTree) -> Float[np.ndarray, " size"]:
    """Compute all eigenvalues of a small symmetric linear map, such as minus the Hessian.

    Args:
        product: See `dense_eigenvalues`. Of a map that is not symmetric the symmetric part is
            taken.
        point: See `dense_eigenvalues`.

    Returns:
        The eigenvalues, in rising order, in float64.

    Raises:
        TypeError: If a leaf of the point is not a real floating-point array.
        ValueError: If the product does not look like the point.

    Examples:
        >>> import jax.numpy as jnp
        >>> matrix = jnp.array([[2.0, 1.0], [1.0, 2.0]])
        >>> dense_symmetric_eigenvalues(lambda v: matrix @ v, jnp.zeros(2)).tolist()
        [1.0, 3.0]
    """
    matrix = dense_jacobian(product, point)
    return np.linalg.eigvalsh((matrix + matrix.T) / 2)


def classify(
    field: Field,
    point: PyTree,
    *,
    eigenvalues: EigenvalueFunction = dense_eigenvalues,
    speed_tolerance: float = 1e-5,
    eigenvalue_tolerance: float = 1e-5,
) -> Classification:
    r"""Classify a point of the autonomous system dx/dt = f(x), Eq. (17) of the paper.

    Where f vanishes, the eigenvalues $\kappa$ of the Jacobian of f decide:

    - ``"asymptotically stable"``: all real parts are below 0. What starts nearby comes back.
    - ``"saddle"``: some are below and some above 0, none is 0. Almost everything leaves.
    - ``"unstable"``: all are above 0. Everything leaves.
    - ``"non-hyperbolic"``: at least one is 0, and the linearisation alone does not say what happens
      along its eigenvector. If another is above 0 (`num_unstable`), the point is not stable all
      the same.

    Where f does not vanish, the point is ``"not an equilibrium"``; its eigenvalues are there to
    look at.

    Args:
        field: The function f, from a pytree of arrays to one of the same structure and shapes.
        point: The point x, a pytree of real floating-point arrays.
        eigenvalues: From the product v -> J v and the point to eigenvalues of J. The default
            computes all of them from the dense matrix, which is for some thousands of variables at
            most. For larger systems pass a function that computes those that decide, such as the
            ends of the spectrum of a symmetric J by a Lanczos method; the counts are then of what
            it returns.
        speed_tolerance: f vanishes where its norm is at most this.
        eigenvalue_tolerance: A real part counts as 0 where it is at most this times the largest
            absolute value of the eigenvalues, or times 1 if that is larger: eigenvalues are
            computed with an error of about the dtype's precision times the largest.

    Returns:
        The classification.

    Raises:
        TypeError: If a leaf of the point is not a real floating-point array.
        ValueError: If the field's value does not look like the point or is not finite there, if
            there are no finite eigenvalues, or if a tolerance is negative.

    Examples:
        >>> import jax.numpy as jnp
        >>> def pendulum(state, friction=0.2):
        ...     angle, speed = state
        ...     return jnp.stack([speed, -jnp.sin(angle) - friction * speed])
        >>> classify(pendulum, jnp.array([0.0, 0.0])).kind
        'asymptotically stable'
        >>> classify(pendulum, jnp.array([jnp.pi, 0.0])).kind
        'saddle'
        >>> classify(pendulum, jnp.array([1.0, 0.0])).kind
        'not an equilibrium'

    References:
        Section 3.4 of Liu, Yu and Lin (2022); Witelski and Bowen, *Methods of Mathematical
        Modelling* (2015), chapter 1.
    """
    _check_tolerance("speed_tolerance", speed_tolerance)
    _check_tolerance("eigenvalue_tolerance", eigenvalue_tolerance)
    point = _checked_point(field, point)
    value, product = jax.linearize(jax.jit(field), point)
    speed = float(optax.tree.norm(jax.tree.map(_accumulated, value)))
    if not math.isfinite(speed):
        message = f"field is not finite at the point: its norm is {speed}"
        raise ValueError(message)
    found = np.asarray(eigenvalues(product, point), np.complex128)
    if found.ndim != 1 or not found.size or not np.isfinite(found).all():
        message = (
            "eigenvalues must return a vector of at least one finite number, got "
            f"{found!r} of shape {found.shape}"
        )
        raise ValueError(message)
    found = found[np.argsort(-found.real, kind="stable")]
    smallest = eigenvalue_tolerance * max(1.0, np.abs(found).max())
    num_stable = int(np.sum(found.real < -smallest))
    num_unstable = int(np.sum(found.real > smallest))
    num_center = found.size - num_stable - num_unstable
    kind: StabilityKind
    if speed > speed_tolerance:
        kind = "not an equilibrium"
    elif num_center:
        kind = "non-hyperbolic"
    elif not num_unstable:
        kind = "asymptotically stable"
    else:
        kind = "saddle" if num_stable else "unstable"
    return Classification(kind, speed, found, num_stable, num_unstable, num_center)


def classify_params(
    loss_fn: Callable[[PyTree], Any],
    params: PyTree,
    *,
    eigenvalues: EigenvalueFunction = dense_symmetric_eigenvalues,
    speed_tolerance: float = 1e-5,
    eigenvalue_tolerance: float = 1e-5,
) -> Classification:
    r"""Classify params as a point of gradient descent with infinitely small steps.

    $$f = -\nabla L, \qquad J = \frac{\partial f}{\partial \omega} = -H$$

    The eigenvalues are those of J, minus those of the Hessian: asymptotically stable points are
    minima with a positive definite Hessian, unstable ones maxima with a negative definite one. The
    minima of a network with more params than data are ``"non-hyperbolic"``, since its loss does not
    change in some directions.

    Args:
        loss_fn: `loss_fn(params)` returns a real scalar.
        params: The params.
        eigenvalues: See `classify`; the product is v -> -H v.
        speed_tolerance: See `classify`; the speed is the norm of the gradient.
        eigenvalue_tolerance: See `classify`.

    Returns:
        The classification.

    Raises:
        TypeError: If `loss_fn` is no function, or a leaf of the params is not a real
            floating-point array.
        ValueError: See `classify`.

    Examples:
        >>> import jax.numpy as jnp
        >>> def loss_fn(params):
        ...     return (params["x"] ** 2 - 1) ** 2 + params["y"] ** 2
        >>> point = classify_params(loss_fn, {"x": jnp.array(1.0), "y": jnp.array(0.0)})
        >>> point.kind, point.eigenvalues.real.tolist()
        ('asymptotically stable', [-2.0, -8.0])
        >>> classify_params(loss_fn, {"x": jnp.array(0.0), "y": jnp.array(0.0)}).kind
        'saddle'

    References:
        Section 3.4 of Liu, Yu and Lin (2022), Eq. (16).
    """
    return classify(
        gradient_flow(loss_fn),
        params,
        eigenvalues=eigenvalues,
        speed_tolerance=speed_tolerance,
        eigenvalue_tolerance=eigenvalue_tolerance,
    )


def descent_stability(
    eigenvalues: Inexact[Array, " eigenvalues"] | Inexact[np.ndarray, " eigenvalues"],
    learning_rate: float | Float[Array, ""],
) -> DescentStability:
    r"""Say whether gradient descent with a given learning rate can stay at a minimum.

    Near a minimum, a step $\omega \leftarrow \omega - \eta \nabla L(\omega)$ (Eq. 14 of the
    paper) multiplies a displacement along an eigenvector of the Hessian with eigenvalue
    $\mu$ by $1 - \eta\mu$, so it contracts if and only if

    $$|1 - \eta \mu| < 1 \text{ for every } \mu, \quad\text{that is}\quad
        0 < \eta < \min_\mu \frac{2 \operatorname{Re} \mu}{|\mu|^2}$$

    which for real $\mu$ is $2 / \max \mu$. A learning rate thus keeps out of minima
    that are too sharp for it, as the penalty does. An eigenvalue of 0 contracts nothing.

    Args:
        eigenvalues: The eigenvalues of the Hessian at the minimum, minus those of
            `classify_params`; of a general system $x \leftarrow x + \eta f(x)$, minus those
            of the Jacobian of f, which may be complex.
        learning_rate: The learning rate $\eta$, a number or a scalar.

    Returns:
        The multipliers and what follows from them, in the precision of `eigenvalues`.

    Raises:
        TypeError: If the learning rate is not a real number.
        ValueError: If there are no eigenvalues, or the learning rate is not a scalar or a number
            that is not above 0.

    Examples:
        >>> import jax.numpy as jnp
        >>> eigenvalues = jnp.array([1.0, 20.0])
        >>> bool(descent_stability(eigenvalues, 0.09).stable)
        True
        >>> stability = descent_stability(eigenvalues, 0.11)
        >>> bool(stability.stable), round(float(stability.max_learning_rate), 6)
        (False, 0.1)

    References:
        Section 3.4 of Liu, Yu and Lin (2022), Eqs. (14) to (16).
    """
    if isinstance(learning_rate, numbers.Real) and not learning_rate > 0:
        message = f"learning_rate must be above 0, got {learning_rate}"
        raise ValueError(message)
    eigenvalues = jnp.asarray(eigenvalues)
    if not eigenvalues.size:
        message = f"eigenvalues must not be empty, got shape {eigenvalues.shape}"
        raise ValueError(message)
    real = eigenvalues.real
    rate = as_scalar("learning_rate", learning_rate).astype(real.dtype)
    multipliers = 1 - rate.astype(eigenvalues.dtype) * eigenvalues
    spectral_radius = jnp.max(jnp.abs(multipliers))
    attracting = real > 0
    size = jnp.abs(jnp.where(attracting, eigenvalues, jnp.ones_like(eigenvalues)))
    # Divided one after the other: the square of a tiny eigenvalue would be 0.
    bounds = jnp.where(attracting, 2 * (real / size) / size, jnp.zeros_like(real))
    return DescentStability(multipliers, spectral_radius, spectral_radius < 1, jnp.min(bounds))


def _checked_point(field: Field, point: PyTree) -> PyTree:
    """Return the point as arrays.

    Raises:
        TypeError: If a leaf is not a real floating-point array.
        ValueError: If the field's value does not look like the point.
    """
    check_loss_fn("field", field)
    check_params(point)
    point = jax.tree.map(jnp.asarray, point)
    value = jax.eval_shape(field, point)
    shapes, wanted = (jax.tree.map(lambda leaf: leaf.shape, tree) for tree in (value, point))
    if jax.tree.structure(value) != jax.tree.structure(point) or shapes != wanted:
        message = f"field must return what looks like the point, of shapes {wanted}, got {shapes}"
        raise ValueError(message)
    return point


def _accumulated(leaf: Array) -> Array:
    return leaf.astype(accumulation_dtype(leaf.dtype))


def _check_tolerance(name: str, value: float) -> None:
    """Check a tolerance.

    Raises:
        ValueError: If it is negative or not finite.
    """
    if not 0 <= value < math.inf:
        message = f"{name} must be finite and at least 0, got {value}"
        raise ValueError(message)
