"""A convolutional network without normalisation, for what must not depend on BatchNorm.

The form is that of Simonyan and Zisserman (2015) for small images: stages of 3x3 convolutions with
ReLU, a max-pooling at the end of each, and as many channels again in the next; the mean over what
is left of the image, and one dense layer. Without normalisation the size of the weights decides
that of the gradients, so kernels start from He's normal distribution, of variance 2/fan_in, and
biases from 0.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

NUM_STAGES = 3
CONVOLUTIONS_PER_STAGE = 2


class ConvNet(nn.Module):
    """Three stages of two convolutions, and a dense layer.

    Attributes:
        num_classes: Number of outputs.
        width: Channels of the first stage; the stages have 1, 2 and 4 times it.
        dtype: What the layers compute in; parameters stay float32.
        remat: Whether a convolution's activations are computed again when its gradient is.
        convolution: What convolves, called as `jax.lax.conv_general_dilated` is.
    """

    num_classes: int
    width: int = 8
    dtype: DTypeLike = jnp.float32
    remat: bool = False
    convolution: Callable[..., Any] = jax.lax.conv_general_dilated

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Compute the logits.

        Args:
            images: An array ``(batch, height, width, channels)`` of at least 8x8 pixels.
            train: Has no effect: nothing here differs between training and evaluation.

        Returns:
            Logits ``(batch, num_classes)``.
        """
        del train
        layer: Any = nn.remat(Convolution) if self.remat else Convolution
        features = images
        for stage in range(NUM_STAGES):
            for number in range(CONVOLUTIONS_PER_STAGE):
                name = f"stage{stage + 1}_conv{number + 1}"
                features = layer(self.width * 2**stage, self.dtype, self.convolution, name=name)(
                    features
                )
            features = nn.max_pool(features, (2, 2), strides=(2, 2))
        features = jnp.mean(features, axis=(1, 2))
        head = nn.Dense(
            self.num_classes, dtype=self.dtype, kernel_init=nn.initializers.he_normal(), name="head"
        )
        logits = head(features)
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


class Convolution(nn.Module):
    """A 3x3 convolution with bias and ReLU.

    Attributes:
        channels: Channels of the outputs.
        dtype: What it computes in.
        convolution: What convolves, called as `jax.lax.conv_general_dilated` is.
    """

    channels: int
    dtype: DTypeLike
    convolution: Callable[..., Any]

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        """Compute the activations.

        Args:
            features: An array ``(batch, height, width, channels)``.

        Returns:
            An array of the same size, with other channels.
        """
        convolution = nn.Conv(
            self.channels,
            (3, 3),
            dtype=self.dtype,
            kernel_init=nn.initializers.he_normal(),
            conv_general_dilated=self.convolution,
            name="conv",
        )
        return nn.relu(convolution(features))
