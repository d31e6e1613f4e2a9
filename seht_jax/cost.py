"""What a computation costs, read off its jaxpr: operations, and which of them depend on what."""

import math
from collections.abc import Sequence
from typing import Any

from jax.extend import core
from jax.extend.core import primitives


def operations(equation: core.JaxprEqn) -> int:
    """Count the floating-point operations of one equation.

    Args:
        equation: The equation; its sub-jaxprs are not counted.

    Returns:
        Two for each multiplication and addition of a matrix product or convolution, and one for
        each element of the results of anything else.
    """
    size = sum(map(_size, equation.outvars))
    if equation.primitive is primitives.dot_general_p:
        (contracted, _), _ = equation.params["dimension_numbers"]
        return 2 * size * math.prod(_shape(equation.invars[0])[i] for i in contracted)
    if equation.primitive is primitives.conv_general_dilated_p:
        kernel = _shape(equation.invars[1])
        outputs = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
        return 2 * size * math.prod(kernel) // max(outputs, 1)
    return size


def elements(equation: core.JaxprEqn) -> int:
    """Count the elements of the operands and results of one equation.

    Args:
        equation: The equation.

    Returns:
        The number of elements.
    """
    return sum(map(_size, (*equation.invars, *equation.outvars)))


def dependent_operations(jaxpr: core.Jaxpr, sources: Sequence[int], num_sources: int) -> list[int]:
    """Count, for each of some sources, the operations that depend on it.

    This orders the layers of a network from the first to the last, also where all params are cast
    or normalised together at the top, where weights are tied, or where the network branches: a
    layer's first use says nothing there.

    Args:
        jaxpr: The computation.
        sources: For each input, the set of sources that it holds, as the bits of an integer.
        num_sources: The number of sources.

    Returns:
        The operations, by source; those of a loop's body as often as it runs, where that is known.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> def network(first, second):
        ...     return jnp.tanh(jnp.ones((1, 8)) @ first) @ second
        >>> closed = jax.make_jaxpr(network)(jnp.ones((8, 4)), jnp.ones((4, 2)))
        >>> dependent_operations(closed.jaxpr, [0b01, 0b10], 2)  # 64 + 4 + 16, and the last 16
        [84, 16]
    """
    totals = [0] * num_sources
    _count(jaxpr, sources, totals, 1)
    return totals


def _count(
    jaxpr: core.Jaxpr, sources: Sequence[int], totals: list[int], repetitions: int
) -> list[int]:
    """Add the operations of a jaxpr to the totals, and return the sources of its results."""
    known: dict[core.Var, int] = dict(zip(jaxpr.invars, sources, strict=True))

    def read(atom: Any) -> int:
        return 0 if isinstance(atom, core.Literal) else known.get(atom, 0)

    for equation in jaxpr.eqns:
        inputs = [read(atom) for atom in equation.invars]
        outputs = _count_equation(equation, inputs, totals, repetitions)
        known.update(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _count_equation(
    equation: core.JaxprEqn, inputs: list[int], totals: list[int], repetitions: int
) -> list[int]:
    params = equation.params
    bodies = list(core.jaxprs_in_params(params))
    match equation.primitive:
        case primitives.scan_p:
            first, last = params["num_consts"], params["num_consts"] + params["num_carry"]
            inputs = _settled(bodies[0], inputs, first, last)
            return _count(bodies[0], inputs, totals, repetitions * params["length"])
        case primitives.while_p:
            first = params["cond_nconsts"]
            inputs = inputs[first:]
            inputs = _settled(bodies[1], inputs, params["body_nconsts"], len(inputs))
            return _count(bodies[1], inputs, totals, repetitions)
        case primitives.cond_p:
            index, *operands = inputs
            results = [_count(body, operands, totals, repetitions) for body in bodies]
            return [_union([index, *masks]) for masks in zip(*results, strict=True)]
    if len(bodies) == 1 and len(bodies[0].invars) == len(inputs):
        return _count(bodies[0], inputs, totals, repetitions)
    union = _union(inputs)
    for source in range(len(totals)):
        if union >> source & 1:
            totals[source] += repetitions * operations(equation)
    return [union] * len(equation.outvars)


def _settled(body: core.Jaxpr, inputs: list[int], first: int, last: int) -> list[int]:
    """Return the sources of a loop's inputs; those of the carry grow from round to round."""
    while True:
        results = _count(body, inputs, [], 0)
        carry = [a | b for a, b in zip(inputs[first:last], results, strict=False)]
        if carry == inputs[first:last]:
            return inputs
        inputs = [*inputs[:first], *carry, *inputs[last:]]


def _size(atom: Any) -> int:
    return math.prod(_shape(atom))


def _shape(atom: Any) -> tuple[int, ...]:
    return getattr(atom.aval, "shape", ())  # a token has none


def _union(masks: Sequence[int]) -> int:
    union = 0
    for mask in masks:
        union |= mask
    return union
