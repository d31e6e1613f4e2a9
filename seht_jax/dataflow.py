"""What depends on what in a jaxpr: sets of sources that flow from its inputs to its outputs.

A set is an integer, whose bits are its members.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax.numpy as jnp
from jax.extend import core
from jax.extend.core import primitives

Visit: TypeAlias = Callable[[core.JaxprEqn, Sequence[int], int], Sequence[int]]


def flow(
    jaxpr: core.Jaxpr, sources: Sequence[int], visit: Visit, repetitions: int = 1
) -> list[int]:
    """Let sets flow through a jaxpr and the bodies of its control flow.

    Args:
        jaxpr: The computation.
        sources: For each input, the set of what it holds.
        visit: `visit(equation, inputs, repetitions)` returns the sets of the results of an equation
            without a body, from those of its operands. The body of a loop is visited several times
            with 0 repetitions, until the sets of its carry no longer grow, and once with the number
            of times that it runs, where that is known.
        repetitions: How often the computation is run.

    Returns:
        The sets of the outputs.
    """
    known: dict[core.Var, int] = dict(zip(jaxpr.invars, sources, strict=True))

    def read(atom: Any) -> int:
        return 0 if isinstance(atom, core.Literal) else known.get(atom, 0)

    for equation in jaxpr.eqns:
        inputs = [read(atom) for atom in equation.invars]
        outputs = _flow_through(equation, inputs, visit, repetitions)
        known.update(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def union(sets: Sequence[int]) -> int:
    """Unite sets.

    Args:
        sets: Sets.

    Returns:
        Their union.
    """
    united = 0
    for each in sets:
        united |= each
    return united


def is_inexact(variable: core.Var) -> bool:
    """Return whether a variable holds real or complex numbers, which have derivatives.

    Args:
        variable: The variable; a token has no dtype.

    Returns:
        Whether it does.
    """
    aval: Any = variable.aval
    return jnp.issubdtype(getattr(aval, "dtype", jnp.bool_), jnp.inexact)


def scan_counts(equation: core.JaxprEqn) -> tuple[int, int]:
    """Count the constants and the carried values among the inputs of a scan.

    They have as many axes in the body as outside of it, the sequences one less. The equation's
    parameters say it too, by names that differ between JAX 0.10 and 0.11.

    Args:
        equation: The scan.

    Returns:
        The number of constants, which come first, and that of carried values, which come next.
    """
    (body,) = core.jaxprs_in_params(equation.params)

    def num_axes(aval: Any) -> int:
        return len(getattr(aval, "shape", ()))  # a token has none

    def count_whole(outside: Sequence[Any], inside: Sequence[Any]) -> int:
        return sum(
            num_axes(one.aval) == num_axes(other.aval)
            for one, other in zip(outside, inside, strict=True)
        )

    num_carry = count_whole(equation.outvars, body.outvars)
    return count_whole(equation.invars, body.invars) - num_carry, num_carry


def _flow_through(
    equation: core.JaxprEqn, inputs: list[int], visit: Visit, repetitions: int
) -> Sequence[int]:
    params = equation.params
    bodies = list(core.jaxprs_in_params(params))
    match equation.primitive:
        case primitives.scan_p:
            num_consts, num_carry = scan_counts(equation)
            inputs = _settled(bodies[0], inputs, num_consts, num_consts + num_carry, visit)
            return flow(bodies[0], inputs, visit, repetitions * params["length"])
        case primitives.while_p:
            inputs = inputs[params["cond_nconsts"] :]
            body = params["body_jaxpr"].jaxpr
            inputs = _settled(body, inputs, params["body_nconsts"], len(inputs), visit)
            return flow(body, inputs, visit, repetitions)
        case primitives.cond_p:
            index, *operands = inputs
            results = [flow(body, operands, visit, repetitions) for body in bodies]
            return [union([index, *sets]) for sets in zip(*results, strict=True)]
    if len(bodies) == 1 and len(bodies[0].invars) == len(inputs):
        return flow(bodies[0], inputs, visit, repetitions)
    return visit(equation, inputs, repetitions)


def _settled(body: core.Jaxpr, inputs: list[int], first: int, last: int, visit: Visit) -> list[int]:
    """Return the sets of a loop's inputs; those of the carry grow from round to round."""
    while True:
        results = flow(body, inputs, visit, 0)
        carry = [a | b for a, b in zip(inputs[first:last], results, strict=False)]
        if carry == inputs[first:last]:
            return inputs
        inputs = [*inputs[:first], *carry, *inputs[last:]]
