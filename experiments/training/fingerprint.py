"""A checksum of arrays that does not depend on how they are laid out over devices."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree, UInt32

# Odd numbers, by which multiplication modulo 2^32 can be undone.
_POSITION, _MIX = np.uint32(0x9E3779B1), np.uint32(0x85EBCA6B)


@jax.jit
def fingerprint(tree: PyTree) -> UInt32[Array, ""]:
    """Compute a checksum of all bits of a tree of arrays.

    A sum modulo 2^32 over all words, each mixed with its position: whole numbers, so that it is the
    same for every sharding of the arrays and every order of the summation. One flipped bit always
    changes it.

    Args:
        tree: Arrays of any dtype, PRNG keys too.

    Returns:
        The checksum.
    """
    total = jnp.zeros((), jnp.uint32)
    for leaf in jax.tree.leaves(tree):
        total = total * _MIX + _checksum(_words(leaf))
    return total


def _words(leaf: Array) -> UInt32[Array, "..."]:
    """Write the bits of each entry as whole numbers of 32 bits."""
    leaf = jnp.asarray(leaf)
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return _words(jax.random.key_data(leaf))
    if leaf.dtype == jnp.bool_:
        return leaf.astype(jnp.uint32)
    width = min(8 * leaf.dtype.itemsize, 32)
    return jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{width}")).astype(jnp.uint32)


def _checksum(words: UInt32[Array, "..."]) -> UInt32[Array, ""]:
    position = jnp.zeros(words.shape, jnp.uint32)
    for axis, size in enumerate(words.shape):
        position = position * jnp.uint32(size) + jax.lax.broadcasted_iota(
            jnp.uint32, words.shape, axis
        )
    mixed = (words ^ (position * _POSITION)) * _MIX
    return jnp.sum(mixed ^ (mixed >> 13), dtype=jnp.uint32)
