"""DropBlock: dropout of whole squares of a feature map.

Ghiasi, Lin and Le, *DropBlock: A regularization method for convolutional networks* (2018). Squares
lie wholly inside the map, each sample and channel has its own, and what is kept is scaled by the
share of the batch that is kept. On a map that is smaller than the block, the block is the largest
square that fits, in every part of the formula; some code for ImageNet, whose maps are never that
small, clamps it in one place alone and computes a negative probability.

As in the source, it acts in the last two stages of a network, in the one before the last with a
quarter of the rate: after the first convolution of a block with its normalisation and activation,
on the block's branch, and on its shortcut.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray

SHARES = (0.25, 1.0)  # of the rate, in the last two stages


def drop_block(
    key: PRNGKeyArray,
    features: Float[Array, "batch height width channels"],
    rate: ArrayLike,
    block_size: int,
) -> Float[Array, "batch height width channels"]:
    r"""Set squares of a feature map to zero and scale up the rest.

    The upper left corners of squares are drawn with probability

    $$\gamma = \frac{\text{rate}}{s^2} \cdot \frac{H W}{(H - s + 1)(W - s + 1)},
        \qquad s = \min(\text{block size}, H, W),$$

    at the places where a whole square fits. Squares may overlap, so that a little less than
    ``rate`` is dropped.

    Args:
        key: PRNG key.
        features: The map.
        rate: Share to drop, the source's 1 - keep_prob; may be traced.
        block_size: Side of a square.

    Returns:
        The map, multiplied by a mask of zeros and ones and divided by the mean of the mask.
    """
    batch, height, width, channels = features.shape
    size = min(block_size, height, width)
    places = (height - size + 1, width - size + 1)
    probability = rate / size**2 * (height * width / (places[0] * places[1]))
    corners = jax.random.bernoulli(key, probability, (batch, *places, channels))
    # The maximum over all corners whose square covers a pixel.
    dropped = jax.lax.reduce_window(
        corners.astype(features.dtype),
        jnp.zeros((), features.dtype),
        jax.lax.max,
        window_dimensions=(1, size, size, 1),
        window_strides=(1, 1, 1, 1),
        padding=((0, 0), (size - 1, size - 1), (size - 1, size - 1), (0, 0)),
    )
    kept = 1 - dropped
    return features * kept * (kept.size / jnp.maximum(jnp.sum(kept), 1))


def stage_share(stage: int, num_stages: int) -> float:
    """Return which share of the rate a stage has.

    Args:
        stage: Which stage, from 0.
        num_stages: Stages of the network.

    Returns:
        1 for the last stage, a quarter for the one before, 0 for the others.
    """
    from_the_end = num_stages - stage
    return SHARES[-from_the_end] if from_the_end <= len(SHARES) else 0.0


class DropBlock(nn.Module):
    """DropBlock as a layer; needs the random stream ``dropout`` where it drops anything.

    Attributes:
        block_size: Side of a square; 0 is no DropBlock.
        share: The layer's share of the network's rate.
    """

    block_size: int
    share: float

    @nn.compact
    def __call__(self, features: jax.Array, rate: ArrayLike) -> jax.Array:
        """Drop squares of a map ``(batch, height, width, channels)``.

        Args:
            features: The map.
            rate: Share to drop, of the whole network; may be traced. A Python 0 is no DropBlock.
        """
        if not (self.block_size and self.share) or (isinstance(rate, int | float) and rate == 0):
            return features
        return drop_block(self.make_rng("dropout"), features, self.share * rate, self.block_size)
