"""What is probed: the layers of a pytree, the draw of layers, and the random directions.

A *probe* is a random direction in parameter space, the paper's sigma. SEHT-H draws one random sign
per parameter; SEHT-D draws some of the layers and, in them, some of the entries (distribution
Q(p)). A *layer* is a group of leaves, or of slices of leaves, that is drawn together.
"""

import collections
import dataclasses
import functools
import numbers
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from seht_jax._compat import as_varying, varying_axes

ProbeProbability: TypeAlias = float | tuple[float, float] | None


@dataclasses.dataclass(frozen=True)
class Stacked:
    """A leaf that holds one layer for each index of an axis, as `nn.scan` and `vmap` stack them.

    Returned by a `layers` function instead of a name. The layers are called `name[0]`, `name[1]`,
    and so on; leaves with the same name are drawn together, slice by slice.

    Attributes:
        name: The name of the stack.
        axis: The axis of the leaf that counts the layers.
    """

    name: str
    axis: int = 0


LayerFunction: TypeAlias = Callable[[tuple[str, ...]], "str | Stacked | None"]


def module_layer(path: tuple[str, ...]) -> str:
    """Name the layer of a leaf after its module: the parent of the leaf's path.

    Kernel and bias of one module are one layer; a leaf at the root is a layer of its own. This is
    the default of every `layers` argument.

    Args:
        path: The names on the way from the root of the params to the leaf. The `value` that
            boxes (an NNX variable, a Linen partitioned parameter) add at the end is left out.

    Returns:
        The name of the layer.

    Examples:
        >>> module_layer(("Block_0", "Dense_0", "kernel")), module_layer(("scale",))
        ('Block_0/Dense_0', 'scale')
    """
    return "/".join(path[:-1] or path) or "params"  # params that are one bare array


def layer_names(params: PyTree, layers: LayerFunction = module_layer) -> tuple[str, ...]:
    """List the layers of a params pytree, in the order in which they are drawn.

    Args:
        params: A pytree of arrays.
        layers: A function from the path of a leaf to its layer, `Stacked`, or `None` for a leaf
            that is not probed.

    Returns:
        The names, in order of first appearance.

    Raises:
        TypeError: If `layers` returns anything else.
        ValueError: If no layer is left to probe, or a stacked axis does not fit its leaf.

    Examples:
        >>> import jax.numpy as jnp
        >>> params = {
        ...     "Dense_0": {"bias": jnp.zeros(3), "kernel": jnp.zeros((2, 3))},
        ...     "scale": jnp.ones(()),
        ... }
        >>> layer_names(params)
        ('Dense_0', 'scale')
        >>> layer_names(params, lambda path: None if path[-1] == "bias" else path[-1])
        ('kernel', 'scale')
    """
    return layer_table(params, layers).names


@dataclasses.dataclass(frozen=True)
class LayerTable:
    """Which layer each leaf belongs to.

    Attributes:
        names: The names of the layers.
        indices: For each leaf that is probed, by its position, integers into `names` that
            broadcast against the leaf.
    """

    names: tuple[str, ...]
    indices: Mapping[int, np.ndarray]

    @property
    def probed(self) -> tuple[int, ...]:
        """The positions of the leaves that are probed."""
        return tuple(self.indices)


def layer_table(params: PyTree, layers: LayerFunction) -> LayerTable:
    """Assign every leaf, or slice of a leaf, to its layer.

    Args:
        params: A pytree of arrays.
        layers: See `layer_names`.

    Returns:
        The table.

    Raises:
        TypeError: If `layers` returns anything but a name, `Stacked` or `None`.
        ValueError: If no layer is left to probe, or a stacked axis does not fit its leaf.
    """
    check_layers(layers)
    ids: dict[str, int] = {}
    indices: dict[int, np.ndarray] = {}
    leaves = jax.tree.leaves(params)
    for position, (path, leaf) in enumerate(zip(leaf_paths(params), leaves, strict=True)):
        layer: Any = layers(path)
        match layer:
            case None:
                pass
            case str(name):
                indices[position] = np.asarray(ids.setdefault(name, len(ids)))
            case Stacked(name=name, axis=axis):
                shape = np.shape(leaf)
                if not -len(shape) <= axis < len(shape):
                    message = (
                        f"layers: {'/'.join(path)} has shape {shape}, which has no axis "
                        f"{axis} to take as the stack of layers {name!r}"
                    )
                    raise ValueError(message)
                names = [f"{name}[{i}]" for i in range(shape[axis])]
                stack = np.asarray([ids.setdefault(name, len(ids)) for name in names], int)
                others = [i for i in range(len(shape)) if i != axis % len(shape)]
                indices[position] = np.expand_dims(stack, others)
            case _:
                message = (
                    "layers must return the name of a layer, seht_jax.Stacked, or None for a leaf "
                    f"that is not probed; for {'/'.join(path)} it returned {layer!r}"
                )
                raise TypeError(message)
    if not ids:
        message = (
            "no layer is left to probe: the params have no leaves, or layers returned None for "
            "every one of them"
        )
        raise ValueError(message)
    return LayerTable(tuple(ids), indices)


def leaf_paths(params: PyTree) -> list[tuple[str, ...]]:
    """List the paths of the leaves, as `module_layer` takes them.

    Args:
        params: A pytree.

    Returns:
        For each leaf the names on the way to it, without boxes.
    """
    key_paths = [key_path for key_path, _ in jax.tree_util.tree_leaves_with_path(params)]
    siblings = collections.Counter(key_path[:-1] for key_path in key_paths)
    return [_path_names(key_path, alone=siblings[key_path[:-1]] == 1) for key_path in key_paths]


def check_layers(layers: Any) -> None:
    """Check that an argument can name layers.

    Args:
        layers: The argument.

    Raises:
        TypeError: If it is no function.
    """
    if not callable(layers):
        message = (
            "layers must be a function from the path of a leaf to the name of its layer, got "
            f"{layers!r}"
        )
        raise TypeError(message)


def probe_probabilities(p: ProbeProbability) -> tuple[float, float]:
    """Split the argument `p` into the probabilities of layers and of entries.

    Args:
        p: `None` for SEHT-H, a number, or a pair of numbers.

    Returns:
        `(p_layers, p_entries)`; `(1.0, 0.5)` for SEHT-H, since Q(0.5) is Rademacher.

    Raises:
        TypeError: If `p` is not made of Python numbers.
        ValueError: If a probability is out of its range.
    """
    if p is None:
        return 1.0, 0.5
    if isinstance(p, tuple | list):
        if len(p) != 2:
            message = f"p must be None, a number, or a pair (p_layers, p_entries), got {p!r}"
            raise ValueError(message)
        p_layers, p_entries = p
    else:
        p_layers = p_entries = p
    for name, value in (("p_layers", p_layers), ("p_entries", p_entries)):
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            message = (
                f"p must be made of Python numbers, which are fixed when the step is compiled; "
                f"{name} is {value!r} of type {type(value).__name__}"
            )
            raise TypeError(message)
    if not 0 < p_layers <= 1:
        message = f"p_layers, the probability of a layer, must be in (0, 1], got {p_layers!r}"
        raise ValueError(message)
    if not 0 < p_entries <= 0.5:
        message = (
            "p_entries, the probability of +1 and that of -1, must be in (0, 0.5], got "
            f"{p_entries!r}; a pair p=(p_layers, p_entries) sets the two apart"
        )
        raise ValueError(message)
    return float(p_layers), float(p_entries)


def draw_layers(key: PRNGKeyArray, num_layers: int, p_layers: float) -> Bool[Array, " layers"]:
    """Draw each layer with probability `p_layers`.

    Args:
        key: A PRNG key.
        num_layers: The number of layers.
        p_layers: The probability.

    Returns:
        Which layers were drawn.
    """
    return jax.random.bernoulli(key, p_layers, (num_layers,))


def sparse_signs(
    key: PRNGKeyArray,
    shape: Sequence[int] = (),
    dtype: Any = float,
    *,
    p: float,
    out_sharding: Any = None,
) -> Float[Array, "..."]:
    r"""Sample from Q(p): +1 and -1 with probability p each, 0 with probability 1 - 2p.

    An entry is kept with probability 2p. (The prose of the paper says "ignore parameters with
    probability 1 - p2"; its definition of Q(p), which is followed here, keeps 2 p2 of them.)
    Q(0.5) is the Rademacher distribution. Given the zeros, $E[\sigma\sigma^T]$ is the
    identity on the kept entries.

    Args:
        key: A PRNG key.
        shape: The shape of the sample.
        dtype: The dtype of the sample.
        p: The probability of +1, and that of -1; in (0, 0.5].
        out_sharding: The sharding of the sample, as in `jax.random`.

    Returns:
        The sample.

    Raises:
        TypeError: If `p` is not a Python number.
        ValueError: If `p` is out of its range.

    Examples:
        >>> import jax
        >>> sample = sparse_signs(jax.random.key(0), (100_000,), p=0.1)
        >>> [round(float((sample == value).mean()), 2) for value in (-1, 0, 1)]
        [0.1, 0.8, 0.1]

    References:
        Liu, Yu and Lin, *Regularizing Deep Neural Networks with Stochastic Estimators of Hessian
        Trace* (2022), section 3.3 and Eq. (12).
    """
    _, p = probe_probabilities((1.0, p))
    key_signs, key_kept = jax.random.split(key)
    signs = _signs(key_signs, tuple(shape), dtype, out_sharding)
    if p == 0.5:
        return signs
    kept = jax.random.bernoulli(key_kept, 2 * p, tuple(shape), out_sharding=out_sharding)
    return signs * kept.astype(dtype)


def sample_probe(
    key: PRNGKeyArray,
    leaves: Sequence[Array],
    table: LayerTable,
    p_entries: float,
    drawn: Bool[Array, " layers"] | None,
    suffix: Collection[int] | None = None,
) -> dict[int, Array]:
    """Sample one probe: signs on the drawn layers, zeros elsewhere.

    Args:
        key: A PRNG key.
        leaves: The leaves of the params.
        table: Their layers.
        p_entries: The probability of +1, and that of -1, in a drawn layer.
        drawn: Which layers were drawn; `None` for all.
        suffix: The layers among which are all that were drawn; `None` for all layers.

    Returns:
        From the positions of the probed leaves (of the suffix) to directions of the leaves'
        shapes, dtypes and shardings.
    """
    sampler = functools.partial(sparse_signs, p=p_entries)
    keys = jax.random.split(key, len(table.probed))
    probe = {}
    for i, leaf_key in zip(table.probed, keys, strict=True):
        if suffix is not None and not np.isin(table.indices[i], list(suffix)).any():
            continue
        leaf, axes = leaves[i], varying_axes(leaves[i])

        def signs(leaf: Array, key: Any = leaf_key, axes: Any = axes) -> Array:
            return as_varying(cast(Array, optax.tree.random_like(key, leaf, sampler)), axes)

        if drawn is None:
            probe[i] = signs(leaf)
        elif table.indices[i].ndim == 0:
            # Random numbers are not free: nothing is sampled for a layer that was not drawn.
            probe[i] = lax.cond(drawn[table.indices[i]], signs, jnp.zeros_like, leaf)
        else:
            probe[i] = signs(leaf) * as_varying(drawn, axes)[table.indices[i]].astype(leaf.dtype)
    return probe


def drawn_flags(
    table: LayerTable, drawn: Bool[Array, " layers"] | None
) -> dict[int, Bool[Array, ""]]:
    """Return, for each leaf that belongs to one layer, whether it was drawn.

    Args:
        table: The layers.
        drawn: Which layers were drawn; `None` for all, of which nothing has to be said.

    Returns:
        Flags by the positions of the leaves.
    """
    if drawn is None:
        return {}
    return {i: drawn[index] for i, index in table.indices.items() if index.ndim == 0}


def _signs(key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any, out_sharding: Any) -> Array:
    """Sample signs, one random bit each where the last axis is long enough for whole words."""
    if out_sharding is not None or not shape or shape[-1] < _WORD:
        return jax.random.rademacher(key, shape, dtype, out_sharding=out_sharding)
    num_words = -(-shape[-1] // _WORD)
    words = jax.random.bits(key, (*shape[:-1], num_words), jnp.uint32)
    bits = lax.shift_right_logical(
        words[..., None], lax.broadcasted_iota(jnp.uint32, (*words.shape, _WORD), words.ndim)
    ) & jnp.uint32(1)
    bits = bits.reshape(*shape[:-1], num_words * _WORD)[..., : shape[-1]]
    return (2 * bits.astype(jnp.int8) - 1).astype(dtype)


_WORD = 32


def _path_names(key_path: tuple[Any, ...], *, alone: bool) -> tuple[str, ...]:
    # A box holds nothing but its value; next to a query and a key, `value` is a leaf's own name.
    is_value = len(key_path) > 1 and key_path[-1] == jax.tree_util.GetAttrKey("value")
    boxed = is_value and alone
    return tuple(
        jax.tree_util.keystr((entry,), simple=True)
        for entry in (key_path[:-1] if boxed else key_path)
    )
