"""What a computation costs, read off its jaxpr: operations, and which of them depend on what."""

import math
from collections.abc import Sequence
from typing import Any

from jax.extend import core
from jax.extend.core import primitives

from seht_jax.dataflow import flow, union


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

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> def network(first, second):
        ...     return jnp.tanh(jnp.ones((1, 8)) @ first) @ second
        >>> closed = jax.make_jaxpr(network)(jnp.ones((8, 4)), jnp.ones((4, 2)))
        >>> dependent_operations(closed.jaxpr, [0b01, 0b10], 2)  # 64 + 4 + 16, and the last 16
        [84, 16]
    """
    totals = [0] * num_sources

    def count(equation: core.JaxprEqn, inputs: Sequence[int], repetitions: int) -> list[int]:
        sources = union(inputs)
        for source in range(num_sources):
            if sources >> source & 1:
                totals[source] += repetitions * operations(equation)
        return [sources] * len(equation.outvars)

    flow(jaxpr, sources, count)
    return totals


def _size(atom: Any) -> int:
    return math.prod(_shape(atom))


def _shape(atom: Any) -> tuple[int, ...]:
    return getattr(atom.aval, "shape", ())  # a token has none
