"""The few JAX names that are not stable yet, in one place.

Everything else in the library is written against JAX's public API. When a JAX release moves one of
these, this file is the only one to change. (`taylor`, `dataflow` and `cost` read the params of some
primitives by name, which JAX does not promise to keep either.)
"""

from collections.abc import Hashable, Sequence
from typing import Any

import jax
from jax._src.core import NamedAxisEffect  # no public name in jax 0.10 or 0.11
from jax._src.state.types import AbstractRef  # no public name in jax 0.10 or 0.11
from jax.core import AbstractValue
from jax.custom_derivatives import SymbolicZero
from jax.extend import core, source_info_util


def communicated_axes(jaxpr: core.Jaxpr) -> tuple[Hashable, ...]:
    """Return the named axes in scope that a jaxpr communicates over, sorted.

    Collectives carry the axis as an effect, and whatever binds an axis (a nested `shard_map` or
    `vmap`) takes it off again, so what is left is exactly what the caller's devices must do
    together.

    Args:
        jaxpr: An open jaxpr.

    Returns:
        Axis names; empty when every device can run the jaxpr by itself.
    """
    names = (effect.name for effect in jaxpr.effects if isinstance(effect, NamedAxisEffect))
    return tuple(sorted(names, key=str))


def varying_axes(value: Any) -> frozenset[str]:
    """Return the manual mesh axes over which a value differs (`shard_map` with `check_vma=True`).

    Args:
        value: An array, a tracer, or an abstract value.

    Returns:
        Axis names; empty outside of `shard_map`, under `check_vma=False`, and under `pmap`.
    """
    aval = value if isinstance(value, AbstractValue) else jax.typeof(value)
    manual_axis_type = getattr(aval, "manual_axis_type", None)
    return frozenset() if manual_axis_type is None else frozenset(manual_axis_type.varying)


def symbolic_zero(primal: Any) -> SymbolicZero:
    """Return the tangent of a value that has no derivative, such as an integer.

    Args:
        primal: The value.

    Returns:
        A zero that takes no memory.
    """
    return SymbolicZero(jax.typeof(primal).to_tangent_aval())


def has_reference(equation: core.JaxprEqn) -> bool:
    """Return whether an equation reads, writes or makes a mutable reference.

    Args:
        equation: The equation.

    Returns:
        Whether one of its operands or results is a reference.
    """
    atoms = (*equation.invars, *equation.outvars)
    return any(isinstance(atom.aval, AbstractRef) for atom in atoms)


def bind_equation(equation: core.JaxprEqn, inputs: Sequence[Any], **params: Any) -> list[Any]:
    """Apply the primitive of one equation, as `jax.core.eval_jaxpr` does.

    Args:
        equation: The equation.
        inputs: Its operands.
        **params: Parameters of the primitive that replace the equation's own.

    Returns:
        The results, as a list also where the primitive has one.
    """
    # The equation's context (dtype promotion, threefry flags) and name stack were set by the user
    # where the equation was traced; without the former, dropout masks can differ.
    name_stack = source_info_util.current_name_stack() + equation.source_info.name_stack
    bind_params = equation.primitive.get_bind_params({**equation.params, **params})
    with (
        source_info_util.user_context(equation.source_info.traceback, name_stack=name_stack),
        equation.ctx.manager,
    ):
        results = equation.primitive.bind(*inputs, **bind_params)
    return list(results) if equation.primitive.multiple_results else [results]


def as_varying(value: jax.Array, axes: frozenset[str]) -> jax.Array:
    """Mark an array as varying over manual mesh axes; the values stay as they are.

    Args:
        value: An array.
        axes: The axes over which the result is to vary; those that it varies over are skipped.

    Returns:
        The array, with a type that JAX accepts next to values that vary over `axes`.
    """
    missing = axes - varying_axes(value)
    return jax.lax.pcast(value, tuple(sorted(missing)), to="varying") if missing else value
