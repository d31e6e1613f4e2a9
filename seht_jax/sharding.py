"""Arrays on a mesh of explicit axes, whose sharding is a part of their type.

There an array has to be given the sharding of the one beside which it is used; elsewhere nothing
has to be done.
"""

import math
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array


def gathered(array: Array) -> Array:
    """Gather an array, which could not be flattened where explicit axes share it.

    Args:
        array: The array.

    Returns:
        The same, replicated over explicit axes.
    """
    sharding: Any = jax.typeof(array).sharding
    if AxisType.Explicit not in sharding.mesh.axis_types:
        return array
    return jax.sharding.reshard(array, NamedSharding(sharding.mesh, PartitionSpec()))


def shaped_like(flat: Array, leaf: Array) -> Array:
    """Give the last axis of an array the shape, the dtype and the explicit sharding of another.

    Args:
        flat: The array, replicated over explicit axes; its last axis has the entries of the leaf.
        leaf: The other one.

    Returns:
        The array, with the leaf's axes in place of the last one.
    """
    stack = flat.shape[:-1]
    shaped = flat.reshape(*stack, *leaf.shape).astype(leaf.dtype)
    sharding: Any = jax.typeof(leaf).sharding
    if AxisType.Explicit not in sharding.mesh.axis_types:
        return shaped
    spec = PartitionSpec(*(None for _ in stack), *sharding.spec)
    return jax.sharding.reshard(shaped, NamedSharding(sharding.mesh, spec))


def num_explicit_shards(array: Array) -> int:
    """Count the parts into which explicit axes cut the first axis of an array.

    Args:
        array: An array that has axes.

    Returns:
        Their number, 1 if there are no explicit axes.
    """
    sharding: Any = jax.typeof(array).sharding
    names = sharding.spec[0] or ()
    return math.prod(
        sharding.mesh.shape[name] for name in ((names,) if isinstance(names, str) else names)
    )
