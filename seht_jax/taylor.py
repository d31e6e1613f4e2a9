r"""Second-order Taylor propagation: a function's second derivative along many directions at once.

Along a direction $\sigma$, every variable x of a computation is a curve
$x(\varepsilon)$, $\varepsilon$ being the size of the step in the inputs. Three arrays
describe it near 0 (a `Jet`): the value $x_0$, the velocity $x_1 = x'(0)$ and the
acceleration $x_2 = x''(0)$. (Its other two fields are for special cases: the *tangent* of the
Gauss-Newton form, below, and the *condition* of a layer that is probed in some steps alone, of
which `products` makes use.) An operation $y = f(x)$ maps the three by

$$y_0 = f(x_0), \qquad y_1 = Df[x_1], \qquad y_2 = D^2f[x_1, x_1] + Df[x_2],$$

so that one pass through the computation, operation by operation, ends with
$\sigma^T H \sigma$, the acceleration of the loss. Only $D^2f$ depends on the direction
twice; the rest is linear in $x_2$. So K directions need one value, K velocities and, where
the sum over the directions is all that is asked for, **one** acceleration:

$$y_2^{\Sigma} = \sum_k D^2f[x_{1,k}, x_{1,k}] + Df[x_2^{\Sigma}].$$

What makes it fast:

- *Shared streams*. Nested derivatives of the gradient carry copies of what the others compute too;
  here everything is computed once, and one reverse pass differentiates all of it.
- *Few products*. Convolutions and matrix products are where the time goes; `products` makes them
  from evaluations. A step with its gradient takes (6 + 5 K) / 3 times the products of a plain one.
- *Structural zeros*. A velocity or an acceleration that is zero is `None` and costs nothing: there
  is neither before the first probed layer, and no acceleration after operations that are linear,
  or linear in pieces, until the first product of two velocities.
- *Entered programs*. The bodies of `jit`, `cond`, `while`, `scan` and `checkpoint` carry all
  streams themselves.

The Gauss-Newton form drops what the curvature of the network itself adds: up to its outputs, which
`seht_jax.outputs` marks, a variable has a first derivative alone, its *tangent*; the mark makes a
velocity of it. So a step takes (3 + 5 K) / 3 times the products of a plain one: for each layer
three as before, and for each direction two forward, and three backward that pull the tangent's
cotangent back. Behind the mark, what still has a tangent (weights that reach the loss beside the
outputs) is taken for a constant.

Every other operation is differentiated by its own JVP rule, so that none is missing, and a
`custom_jvp` is followed by its rule. What has no forward derivative (a `custom_vjp`) or keeps state
is refused (`propagates`), and the caller falls back on nested derivatives.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import eval_jaxpr
from jax.extend import core
from jax.extend.core import primitives
from jaxtyping import Array

from seht_jax._compat import bind_equation, has_reference
from seht_jax.dataflow import is_inexact, scan_counts
from seht_jax.jet import Jet, add
from seht_jax.outputs import is_mark
from seht_jax.products import multiply, multiply_to_first_order

Rule: TypeAlias = Callable[[core.JaxprEqn, Sequence[Jet]], Sequence[Jet]]


def propagate(jaxpr: core.Jaxpr, consts: Sequence[Any], inputs: Sequence[Jet]) -> list[Jet]:
    """Evaluate a jaxpr on jets.

    Args:
        jaxpr: The computation; see `propagates`.
        consts: The values of its constants.
        inputs: One jet for each of its inputs; all velocities along the same directions.

    Returns:
        One jet for each of its outputs.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> closed = jax.make_jaxpr(lambda x, y: x**3 * y)(1.0, 1.0)
        >>> directions = (jnp.array(1.0), jnp.array(2.0))
        >>> (output,) = propagate(
        ...     closed.jaxpr, closed.consts, [Jet(jnp.array(2.0), directions), Jet(jnp.array(5.0))]
        ... )
        >>> (
        ...     float(output.value),
        ...     [float(v) for v in output.velocity],
        ... )  # x^3 y, and 3 x^2 y times both
        (40.0, [60.0, 120.0])
        >>> float(output.acceleration)  # 6 x y, times 1^2 + 2^2
        300.0
    """
    environment: dict[core.Var, Jet] = dict(
        zip((*jaxpr.constvars, *jaxpr.invars), (*map(Jet, consts), *inputs), strict=True)
    )

    def read(atom: Any) -> Jet:
        return Jet(atom.val) if isinstance(atom, core.Literal) else environment[atom]

    for equation in jaxpr.eqns:
        outputs = _apply(equation, [read(atom) for atom in equation.invars])
        environment.update(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def propagates(jaxpr: core.Jaxpr) -> bool:
    """Return whether a jaxpr can be evaluated on jets.

    The exceptions are a `custom_vjp`, whose author wrote a gradient and no forward derivative, and
    mutable references.

    Args:
        jaxpr: The computation.

    Returns:
        Whether it is free of these.
    """
    return not any(
        equation.primitive is primitives.custom_vjp_call_p or has_reference(equation)
        for equation in jaxpr.eqns
    ) and all(map(propagates, core.subjaxprs(jaxpr)))


def _apply(equation: core.JaxprEqn, inputs: Sequence[Jet]) -> list[Jet]:
    """Evaluate one equation on jets; the rules by primitive stand further below."""
    moves = any(jet.moves for jet in inputs)
    has_tangent = any(jet.tangent is not None for jet in inputs)
    # What returns no real or complex numbers (a comparison, a print) has nothing to derive.
    if not (moves or has_tangent) or not any(map(is_inexact, equation.outvars)):
        return [Jet(value) for value in bind_equation(equation, [jet.value for jet in inputs])]
    if equation.primitive in _RULES_OF_BODIES:
        outputs = _RULES_OF_BODIES[equation.primitive](equation, inputs)
    elif moves:
        moving = [jet._replace(tangent=None) for jet in inputs]
        outputs = _RULES.get(equation.primitive, _differentiated)(equation, moving)
    else:
        outputs = _to_first_order(equation, inputs)
    outputs = [
        jet if is_inexact(variable) else Jet(jet.value)
        for jet, variable in zip(outputs, equation.outvars, strict=True)
    ]
    condition = _kept_condition(equation, inputs)
    return outputs if condition is None else [jet._replace(condition=condition) for jet in outputs]


def _kept_condition(equation: core.JaxprEqn, inputs: Sequence[Jet]) -> Any:
    """Return the flag without which the derivatives of the outputs are zero, if one is known.

    A linear operation of one moving operand (a cast, a transposition of a kernel) hands it on: its
    derivative is a constant too, and zero where the operand's is.
    """
    if equation.primitive not in _LINEAR:
        return None
    sources = [jet for jet in inputs if jet.moves or jet.tangent is not None]
    return sources[0].condition if len(sources) == 1 else None


def _to_first_order(equation: core.JaxprEqn, inputs: Sequence[Jet]) -> list[Jet]:
    """Propagate tangents, to which the mark of the outputs puts an end."""
    inputs = [Jet(jet.value, jet.tangent, None, jet.condition) for jet in inputs]
    results = _FIRST_ORDER_RULES.get(equation.primitive, _first_differentiated)(equation, inputs)
    if is_mark(equation):
        return list(results)
    return [Jet(jet.value, tangent=jet.velocity) for jet in results]


# Rules for kinds of operations. Each computes the three streams of the outputs.


def _linear(equation: core.JaxprEqn, inputs: Sequence[Jet]) -> list[Jet]:
    """Propagate through what is linear, or linear in pieces: it has no second derivative."""
    values = [jet.value for jet in inputs]
    derivative = functools.partial(_derivative, lambda *x: bind_equation(equation, x), values)
    return list(
        map(
            Jet,
            bind_equation(equation, values),
            _along_each(derivative, [jet.velocity for jet in inputs]),
            derivative([jet.acceleration for jet in inputs]),
        )
    )


def _elementwise(equation: core.JaxprEqn, inputs: Sequence[Jet]) -> list[Jet]:
    """Propagate through a smooth function of one variable, applied to each element.

    f' and f'' are computed once for all streams: y_1 = f' x_1, y_2 = f'' sum_k x_1k^2 + f' x_2.
    """
    (x,) = inputs
    ones = jnp.ones_like(x.value)

    def function(value: Array) -> Array:
        return bind_equation(equation, [value])[0]

    def slope_at(value: Array) -> Array:
        return jax.jvp(function, (value,), (ones,))[1]

    slope, curvature = jax.jvp(slope_at, (x.value,), (ones,))
    velocity, by_velocity = None, None
    if x.velocity is not None:
        velocity = tuple(slope * v for v in x.velocity)
        by_velocity = curvature * add(*(v * v for v in x.velocity))
    by_acceleration = None if x.acceleration is None else slope * x.acceleration
    return [Jet(function(x.value), velocity, add(by_velocity, by_acceleration))]


def _product(equation: core.JaxprEqn, inputs: Sequence[Jet]) -> list[Jet]:
    """Propagate through a product: (ab)'' = a''b + 2a'b' + ab''."""
    a, b = inputs
    product = multiply(equation, a, b)

    def accelerated(left: Any, right: Any) -> Any:
        if left is None or right is None:
            return None
        return bind_equation(equation, [left, right])[0]

    acceleration = add(
        None if product.cross is None else 2 * product.cross,
        accelerated(a.acceleration, b.value),
        accelerated(a.value, b.acceleration),
    )
    return [Jet(product.value, product.velocity, acceleration)]


def _absolute(equation: core.JaxprEqn, inputs: Sequence[Jet]) -> list[Jet]:
    """Propagate through |x|, which is linear in pieces for real numbers alone."""
    real = jnp.issubdtype(jnp.result_type(inputs[0].value), jnp.floating)
    return (_linear if real else _differentiated)(equation, inputs)


def _quotient(equation: core.JaxprEqn, inputs: Sequence[Jet]) -> list[Jet]:
    """Propagate through y = a / b, by the derivatives of a = y b."""
    a, b = inputs
    if b.velocity is None and b.acceleration is None:
        return _linear(equation, inputs)
    value = bind_equation(equation, [a.value, b.value])[0]

    def divided(*terms: Any) -> Any:
        total = add(*terms)
        return None if total is None else total / b.value

    velocity, by_velocities = a.velocity, None
    if b.velocity is not None:
        velocity = tuple(
            divided(own, -value * v)
            for own, v in zip(a.velocity or [None] * len(b.velocity), b.velocity, strict=True)
        )
        by_velocities = -2 * add(*(y * v for y, v in zip(velocity, b.velocity, strict=True)))
    elif velocity is not None:
        velocity = tuple(map(divided, velocity))
    by_acceleration = None if b.acceleration is None else -value * b.acceleration
    acceleration = divided(a.acceleration, by_velocities, by_acceleration)
    return [Jet(value, velocity, acceleration)]


def _differentiated(equation: core.JaxprEqn, inputs: Sequence[Jet]) -> list[Jet]:
    """Propagate through any operation by its JVP rule, applied twice."""
    if equation.primitive is primitives.linear_solve_p:
        # Its rule does not take tangents for a part of the operands.
        inputs = _with_all_streams(inputs)
    values = [jet.value for jet in inputs]
    velocities = [jet.velocity for jet in inputs]

    def derivative_at(tangents: Sequence[Any], *values: Any) -> list[Any]:
        return _derivative(lambda *x: bind_equation(equation, x), values, tangents)

    def first(tangents: Sequence[Any]) -> list[Any]:
        return derivative_at(tangents, *values)

    def second(tangents: Sequence[Any]) -> list[Any]:
        return _derivative(functools.partial(derivative_at, tangents), values, tangents)

    results = bind_equation(equation, values)
    slopes = _along_each(first, velocities)
    curvatures = _along_each(second, velocities)
    accelerations = first([jet.acceleration for jet in inputs])
    return [
        Jet(result, slope, add(*(curvature or ()), acceleration))
        for result, slope, curvature, acceleration in zip(
            results, slopes, curvatures, accelerations, strict=True
        )
    ]


# Rules for tangents: the same, where nothing but the first derivative is asked for.


def _first_elementwise(equation: core.JaxprEqn, inputs: Sequence[Jet]) -> list[Jet]:
    (x,) = inputs
    value, slope = jax.jvp(
        lambda value: bind_equation(equation, [value])[0], (x.value,), (jnp.ones_like(x.value),)
    )
    return [Jet(value, tuple(slope * v for v in x.velocity))]


def _first_product(equation: core.JaxprEqn, inputs: Sequence[Jet]) -> list[Jet]:
    return [Jet(*multiply_to_first_order(equation, *inputs)[:2])]


def _first_differentiated(equation: core.JaxprEqn, inputs: Sequence[Jet]) -> list[Jet]:
    if equation.primitive is primitives.linear_solve_p:
        inputs = _with_all_streams(inputs)
    return _linear(equation, inputs)


# Rules for operations that hold other computations. Jets are pytrees, so that JAX's own control
# flow carries them; a `None` that is not one in every branch, or in every round, becomes zeros.


def _inlined(equation: core.JaxprEqn, inputs: Sequence[Jet]) -> list[Jet]:
    (body,) = (p for p in equation.params.values() if isinstance(p, core.ClosedJaxpr))
    return propagate(body.jaxpr, body.consts, inputs)


def _checkpoint(equation: core.JaxprEqn, inputs: Sequence[Jet]) -> list[Jet]:
    params = equation.params

    @functools.partial(jax.checkpoint, prevent_cse=params["prevent_cse"], policy=params["policy"])
    def body(inputs: Sequence[Jet]) -> list[Jet]:
        return propagate(params["jaxpr"], (), inputs)

    return body(list(inputs))


def _cond(equation: core.JaxprEqn, inputs: Sequence[Jet]) -> list[Jet]:
    index, *operands = _without_condition(inputs)
    leaves, structure = jax.tree.flatten(operands)
    bodies = [
        functools.partial(propagate, branch.jaxpr, branch.consts)
        for branch in equation.params["branches"]
    ]
    union = functools.reduce(_union, (jax.eval_shape(body, operands) for body in bodies))

    def traced(body: Callable[[Sequence[Jet]], list[Jet]]) -> core.ClosedJaxpr:
        def flat(*leaves: Any) -> list[Any]:
            return jax.tree.leaves(_with_zeros(body(structure.unflatten(leaves)), union))

        return jax.make_jaxpr(flat)(*leaves)

    # Not by lax.switch: the branches of a `lax.platform_dependent` are chosen when it is lowered.
    closed = [traced(body) for body in bodies]
    consts = [const for branch in closed for const in branch.consts]
    results = bind_equation(
        equation, [index.value, *consts, *leaves], branches=_with_shared_consts(closed)
    )
    return jax.tree.unflatten(jax.tree.structure(union), results)


def _while(equation: core.JaxprEqn, inputs: Sequence[Jet]) -> list[Jet]:
    params = equation.params
    inputs = _without_condition(inputs)
    num_condition, num_body = params["cond_nconsts"], params["body_nconsts"]
    condition, body = params["cond_jaxpr"], params["body_jaxpr"]
    condition_consts = [jet.value for jet in inputs[:num_condition]]
    body_consts = list(inputs[num_condition : num_condition + num_body])

    def holds(carry: list[Jet]) -> Any:
        values = (jet.value for jet in carry)
        return eval_jaxpr(condition.jaxpr, condition.consts, *condition_consts, *values)[0]

    def advance(carry: list[Jet]) -> list[Jet]:
        return propagate(body.jaxpr, body.consts, body_consts + carry)

    def proceed(carry: list[Jet]) -> Any:
        return jnp.any(holds(carry))

    def step(carry: list[Jet]) -> list[Jet]:
        following = _with_zeros(advance(carry), carry)
        if not condition.out_avals[0].ndim:
            return following
        # `vmap` leaves one condition for each example, along leading axes of all that is carried.
        going = holds(carry)
        return jax.tree.map(
            lambda new, old: jnp.where(
                jnp.expand_dims(going, range(going.ndim, new.ndim)), new, old
            ),
            following,
            carry,
        )

    carry = _carried(advance, list(inputs[num_condition + num_body :]))
    return lax.while_loop(proceed, step, carry)


def _scan(equation: core.JaxprEqn, inputs: Sequence[Jet]) -> list[Jet]:
    params = equation.params
    inputs = _without_condition(inputs)
    body = params["jaxpr"]
    num_consts, num_carry = scan_counts(equation)
    if params["length"] == 0:
        results = bind_equation(equation, [jet.value for jet in inputs])
        carry = inputs[num_consts : num_consts + num_carry]
        return [*carry, *map(Jet, results[num_carry:])]
    consts = list(inputs[:num_consts])
    sequences = list(inputs[num_consts + num_carry :])

    def step(carry: list[Jet], x: list[Jet]) -> tuple[list[Jet], list[Jet]]:
        outputs = propagate(body.jaxpr, body.consts, consts + carry + x)
        return outputs[:num_carry], outputs[num_carry:]

    def advance(carry: list[Jet]) -> list[Jet]:
        return step(carry, jax.tree.map(lambda array: array[0], sequences))[0]

    carry = _carried(advance, list(inputs[num_consts : num_consts + num_carry]))

    def carrying_step(carry: list[Jet], x: list[Jet]) -> tuple[list[Jet], list[Jet]]:
        following, y = step(carry, x)
        return _with_zeros(following, carry), y

    carry, ys = lax.scan(
        carrying_step,
        carry,
        sequences,
        length=params["length"],
        reverse=params["reverse"],
        unroll=params["unroll"],
    )
    return [*carry, *ys]


def _carried(advance: Callable[[list[Jet]], list[Jet]], carry: list[Jet]) -> list[Jet]:
    """Make zeros of those streams of a loop's carry that do not stay structurally zero."""
    while True:
        union = _union(carry, jax.eval_shape(advance, carry))
        if jax.tree.structure(union) == jax.tree.structure(carry):
            return carry
        carry = _with_zeros(carry, union)


def _without_condition(jets: Sequence[Jet]) -> list[Jet]:
    """Forget the conditions: a branch in every round of a loop would save less than it costs."""
    return [jet._replace(condition=None) for jet in jets]


def _union(left: Sequence[Jet], right: Sequence[Jet]) -> list[Jet]:
    """Return jets that have the streams of both."""
    return [
        Jet(
            x.value,
            y.velocity if x.velocity is None else x.velocity,
            y.acceleration if x.acceleration is None else x.acceleration,
            tangent=y.tangent if x.tangent is None else x.tangent,
        )
        for x, y in zip(left, right, strict=True)
    ]


def _with_zeros(jets: Sequence[Jet], like: Sequence[Jet]) -> list[Jet]:
    """Make zeros of the streams that others have."""

    def filled(stream: Any, model: Any, value: Any) -> Any:
        if stream is not None:
            return stream
        return jax.tree.map(lambda x: jnp.zeros_like(value, dtype=x.dtype), model)

    return [
        Jet(
            jet.value,
            filled(jet.velocity, model.velocity, jet.value),
            filled(jet.acceleration, model.acceleration, jet.value),
            tangent=filled(jet.tangent, model.tangent, jet.value),
        )
        for jet, model in zip(jets, like, strict=True)
    ]


def _with_shared_consts(branches: Sequence[core.ClosedJaxpr]) -> tuple[core.ClosedJaxpr, ...]:
    """Give all branches the constants of all of them as leading operands."""
    avals = [variable.aval for branch in branches for variable in branch.jaxpr.constvars]
    starts = [sum(len(b.consts) for b in branches[:i]) for i in range(len(branches))]

    def shared(start: int, branch: core.ClosedJaxpr) -> core.ClosedJaxpr:
        def call(*operands: Any) -> list[Any]:
            consts = operands[start : start + len(branch.consts)]
            return eval_jaxpr(branch.jaxpr, consts, *operands[len(avals) :])

        return jax.make_jaxpr(call)(*avals, *branch.in_avals)

    return tuple(map(shared, starts, branches))


# The rule of each operation. All others are `_differentiated`, and for tangents
# `_first_differentiated`.

_LINEAR = (
    lax.split_p,
    primitives.add_jaxvals_p,
    primitives.add_p,
    primitives.all_gather_p,
    primitives.all_to_all_p,
    primitives.broadcast_in_dim_p,
    primitives.complex_p,
    primitives.concatenate_p,
    primitives.conj_p,
    primitives.convert_element_type_p,
    primitives.copy_p,
    primitives.cumsum_p,
    primitives.device_put_p,
    primitives.dynamic_slice_p,
    primitives.dynamic_update_slice_p,
    primitives.fft_p,
    primitives.gather_p,
    primitives.imag_p,
    primitives.name_p,
    primitives.neg_p,
    primitives.pad_p,
    primitives.ppermute_p,
    primitives.psum_p,
    primitives.real_p,
    primitives.reduce_precision_p,
    primitives.reduce_sum_p,
    primitives.reduce_window_sum_p,
    primitives.reshape_p,
    primitives.rev_p,
    primitives.scatter_add_p,
    primitives.select_n_p,
    primitives.sharding_constraint_p,
    primitives.slice_p,
    primitives.squeeze_p,
    primitives.sub_p,
    primitives.transpose_p,
)
_LINEAR_IN_PIECES = (
    primitives.clamp_p,
    primitives.max_p,
    primitives.min_p,
    primitives.reduce_max_p,
    primitives.reduce_min_p,
    primitives.reduce_window_max_p,
    primitives.reduce_window_min_p,
    primitives.sort_p,
)
_ELEMENTWISE = (
    primitives.cos_p,
    primitives.cosh_p,
    primitives.erf_p,
    primitives.erfc_p,
    primitives.exp2_p,
    primitives.exp_p,
    primitives.expm1_p,
    primitives.integer_pow_p,
    primitives.log1p_p,
    primitives.log_p,
    primitives.logistic_p,
    primitives.rsqrt_p,
    primitives.sin_p,
    primitives.sinh_p,
    primitives.sqrt_p,
    primitives.square_p,
    primitives.tanh_p,
)
_RULES: dict[core.Primitive, Rule] = {
    **dict.fromkeys((*_LINEAR, *_LINEAR_IN_PIECES), _linear),
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    primitives.abs_p: _absolute,
    primitives.div_p: _quotient,
    primitives.mul_p: _product,
    primitives.dot_general_p: _product,
    primitives.conv_general_dilated_p: _product,
}
_FIRST_ORDER_RULES: dict[core.Primitive, Rule] = {
    **dict.fromkeys(_ELEMENTWISE, _first_elementwise),
    primitives.mul_p: _first_product,
    primitives.dot_general_p: _first_product,
    primitives.conv_general_dilated_p: _first_product,
}
_RULES_OF_BODIES: dict[core.Primitive, Rule] = {
    primitives.jit_p: _inlined,
    primitives.closed_call_p: _inlined,
    primitives.remat_p: _checkpoint,
    primitives.cond_p: _cond,
    primitives.while_p: _while,
    primitives.scan_p: _scan,
}


# Helpers


def _derivative(
    function: Callable[..., list[Any]], values: Sequence[Any], tangents: Sequence[Any]
) -> list[Any]:
    """Return the derivatives of a function's results along tangents, of which `None` is zero."""
    active = [i for i, tangent in enumerate(tangents) if tangent is not None]
    if not active:
        return [None] * len(jax.eval_shape(function, *values))
    results, derivatives = jax.jvp(
        functools.partial(_with_operands, function, values, active),
        [values[i] for i in active],
        [tangents[i] for i in active],
    )
    return [
        None if result is None or not jnp.issubdtype(result.dtype, jnp.inexact) else derivative
        for result, derivative in zip(results, derivatives, strict=True)
    ]


# No function inside `_derivative`: the tests' type checks would decorate it anew for each equation.
def _with_operands(
    function: Callable[..., list[Any]], values: Sequence[Any], indices: Sequence[int], *moved: Any
) -> list[Any]:
    operands = list(values)
    for i, operand in zip(indices, moved, strict=True):
        operands[i] = operand
    return function(*operands)


def _along_each(
    derivative: Callable[[Sequence[Any]], list[Any]], velocities: Sequence[tuple[Any, ...] | None]
) -> list[tuple[Any, ...] | None]:
    """Take a derivative along each direction, in one trace; `None` for zeros.

    A JVP rule does not say which of its results are zero (a first derivative may be, and second
    ones often are): it returns zeros that it makes, which are found in its program. Not to find
    one costs time, and nothing else.
    """
    directions = [
        [None if velocity is None else velocity[k] for velocity in velocities]
        for k in range(max(len(velocity or ()) for velocity in velocities))
    ]
    if not directions:
        return [None] * len(derivative([None] * len(velocities)))
    closed, shapes = jax.make_jaxpr(derivative, return_shape=True)(directions[0])
    places = itertools.count()
    outputs = [None if shape is None else next(places) for shape in shapes]
    along = [
        eval_jaxpr(closed.jaxpr, closed.consts, *jax.tree.leaves(direction))
        for direction in directions
    ]
    return [
        None
        if i is None or _is_zero(closed.jaxpr, closed.jaxpr.outvars[i])
        else tuple(results[i] for results in along)
        for i in outputs
    ]


def _is_zero(jaxpr: core.Jaxpr, atom: Any) -> bool:
    """Return whether a result is zeros that the program makes."""
    if isinstance(atom, core.Literal):
        return not np.any(atom.val)
    return any(
        equation.primitive is primitives.broadcast_in_dim_p and _is_zero(jaxpr, equation.invars[0])
        for equation in jaxpr.eqns
        if atom in equation.outvars
    )


def _with_all_streams(inputs: Sequence[Jet]) -> list[Jet]:
    """Make zeros of the streams that some of the inputs have and others do not."""
    num_directions = max(len(jet.velocity or ()) for jet in inputs)
    accelerated = any(jet.acceleration is not None for jet in inputs)

    def model(value: Any) -> Jet:
        zeros = jax.ShapeDtypeStruct(jnp.shape(value), jnp.result_type(value))
        if not jnp.issubdtype(zeros.dtype, jnp.inexact):
            return Jet(value)
        velocity = (zeros,) * num_directions if num_directions else None
        return Jet(value, velocity, zeros if accelerated else None)

    return _with_zeros(inputs, [model(jet.value) for jet in inputs])
