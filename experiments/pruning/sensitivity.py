"""How much a network would miss each output channel of its convolutions.

A channel p is what belongs to one output channel in the kernel of a convolution, of shape (height,
width, inputs): |p| weights w_p. What a criterion returns, by the name of the convolution, has one
number for each channel; those with the lowest are pruned first.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

import seht_jax as seht

Kernels: TypeAlias = dict[str, Float[Array, "height width inputs channels"]]
"""Kernels of convolutions, by the path of the module: ``stage1_block1/conv1``."""

Scores: TypeAlias = dict[str, Float[np.ndarray, " channels"]]
"""A number for each channel, by the name of the convolution."""


class ChannelTraces(NamedTuple):
    """Estimates of the traces of the channels' blocks of the Hessian, of one convolution.

    Attributes:
        samples: A sample from each probe.
    """

    samples: Float[np.ndarray, "probes channels"]

    @property
    def mean(self) -> Float[np.ndarray, " channels"]:
        """The means over the probes."""
        return np.asarray(np.mean(self.samples, axis=0, dtype=np.float64))

    @property
    def standard_error(self) -> Float[np.ndarray, " channels"]:
        """The standard errors of the means, for at least two probes."""
        variance = np.var(self.samples, axis=0, ddof=1, dtype=np.float64)
        return np.asarray(np.sqrt(variance / len(self.samples)))


def convolutions(params: PyTree) -> Kernels:
    """Collect the kernels of all convolutions.

    Args:
        params: Parameters of a Flax network, nested dictionaries.

    Returns:
        The kernels, in the order of the leaves.
    """
    return {
        module_name(path): leaf
        for path, leaf in jax.tree.leaves_with_path(params)
        if path[-1].key == "kernel" and leaf.ndim == 4
    }


def module_name(path: tuple[Any, ...]) -> str:
    """Name the module of a leaf.

    Args:
        path: The path of the leaf, as JAX gives it: keys of dictionaries.

    Returns:
        The path of the module, with slashes.
    """
    return "/".join(str(each.key) for each in path[:-1])


def channel_samples(
    loss_fn: Callable[..., Any], key: PRNGKeyArray
) -> Callable[..., dict[str, Float[Array, " channels"]]]:
    r"""Estimate the trace of each channel's own block of the Hessian, by one Rademacher probe.

    $$E[\sigma_p^T (H \sigma)_p] = \mathrm{tr}\, H_{pp}, \qquad
        \mathrm{Var} = 2 \sum_{i \ne j \in p} H_{ij}^2 + \sum_{i \in p, j \notin p} H_{ij}^2$$

    It is the sum over the channel of a sample of `seht_jax.hutchinson_diagonal`, whose probe runs
    over all convolutions at once: all channels together cost one Hessian-vector product.

    Args:
        loss_fn: ``loss_fn(params, *args)`` returns a scalar.
        key: A PRNG key.

    Returns:
        A function of `loss_fn`'s signature that returns a sample for each channel, by the name of
        the convolution.
    """

    def samples(params: PyTree, *args: Any) -> dict[str, Float[Array, " channels"]]:
        def loss_of_kernels(kernels: Kernels) -> Float[Array, ""]:
            replaced = jax.tree.map_with_path(
                lambda path, leaf: (
                    kernels.get(module_name(path), leaf) if path[-1].key == "kernel" else leaf
                ),
                params,
            )
            return loss_fn(replaced, *args)

        diagonal = seht.hutchinson_diagonal(loss_of_kernels, key, num_probes=1)
        products = diagonal(convolutions(params)).mean
        return {name: jnp.sum(product, axis=(0, 1, 2)) for name, product in products.items()}

    return samples


def hessian_sensitivity(traces: Mapping[str, ChannelTraces], kernels: Kernels) -> Scores:
    r"""Compute how much the loss would rise if a channel were removed, to the second order.

    $$S_p = \frac{\mathrm{tr}\, H_{pp}}{2 |p|} \lVert w_p \rVert^2$$

    It is w_pᵀ H_pp w_p / 2 with the block replaced by its mean eigenvalue, at a minimum, where the
    gradient is 0. Yu, Yao, Gholami, Dong, Kim, Mahoney and Keutzer, *Hessian-Aware Pruning and
    Optimal Neural Implant* (2021), and the authors' code (`yaozhewei/HAP`), which leaves out the
    factor 1/2. A negative trace is taken as it is, as there.

    Args:
        traces: The traces of the channels.
        kernels: The kernels.

    Returns:
        The sensitivities.
    """
    sizes = {name: kernel[..., 0].size for name, kernel in kernels.items()}
    return {
        name: traces[name].mean / (2 * sizes[name]) * norm
        for name, norm in magnitude(kernels).items()
    }


def magnitude(kernels: Kernels) -> Scores:
    r"""Compute the squared length of each channel.

    $$\lVert w_p \rVert^2$$

    It orders channels as `hessian_sensitivity` does where H is a multiple of the identity, so that
    the two differ by what is known of the curvature alone.

    Args:
        kernels: The kernels.

    Returns:
        The squared lengths.
    """
    return {
        name: np.sum(np.square(np.asarray(kernel), dtype=np.float64), axis=(0, 1, 2))
        for name, kernel in kernels.items()
    }


def chance(seed: int, kernels: Kernels) -> Scores:
    """Draw a number for each channel, so that channels are pruned at random.

    Args:
        seed: Seed of the numbers.
        kernels: The kernels, for their shapes.

    Returns:
        Numbers in [0, 1).
    """
    random = np.random.default_rng(seed)
    return {name: random.random(kernel.shape[-1]) for name, kernel in kernels.items()}
