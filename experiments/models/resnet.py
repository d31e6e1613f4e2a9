"""Residual networks for small images, in the form that most CIFAR results are reported with.

The form is that of He et al. (2016) as adapted to 32x32 images in the widely used ``pytorch-cifar``
code: a 3x3 stem with stride 1 and no max pooling, post-activation basic blocks, four stages whose
widths double, convolutions without bias, global average pooling and one dense layer.

Two choices matter for reproduction and for curvature:

- Initialisation is PyTorch's default for ``Conv2d`` and ``Linear``: uniform on
  +-1/sqrt(fan_in) for weights *and* for the dense layer's bias. It is smaller than He's by a factor
  of sqrt(6).
- BatchNorm computes its variance as E[(x - E[x])^2]. Flax's faster E[x^2] - E[x]^2 loses digits to
  cancellation, which second derivatives amplify.

Dropout, which the form does not have, is where wide residual networks have it: before the second
convolution of a block, after its normalisation and activation. `dropblock.py` says where DropBlock
acts.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from experiments.models.dropblock import DropBlock, stage_share

NUM_STAGES_RESNET18 = 4
BLOCKS_PER_STAGE_RESNET18 = 2


def resnet18(
    num_classes: int,
    width: int = 64,
    dropout_rate: float = 0.0,
    drop_block_size: int = 0,
    dtype: DTypeLike = jnp.float32,
    *,
    remat: bool = False,
) -> "ResNet":
    """Build the CIFAR ResNet-18 (11,173,962 parameters at width 64 with 10 classes).

    Args:
        num_classes: Number of outputs.
        width: Channels of the stem and of the first stage; the stages have 1, 2, 4 and 8 times it.
        dropout_rate: Dropout between the two convolutions of a block, in training.
        drop_block_size: Side of DropBlock's squares; 0 is no DropBlock.
        dtype: What the layers compute in; parameters stay float32.
        remat: Whether a block's activations are computed again when its gradient is.

    Returns:
        A module from images ``(batch, height, width, channels)`` to logits
        ``(batch, num_classes)``.
    """
    stage_sizes = (BLOCKS_PER_STAGE_RESNET18,) * NUM_STAGES_RESNET18
    return ResNet(stage_sizes, num_classes, width, dropout_rate, drop_block_size, dtype, remat)


def digits_resnet(
    num_classes: int,
    width: int = 8,
    dropout_rate: float = 0.0,
    drop_block_size: int = 0,
    dtype: DTypeLike = jnp.float32,
    *,
    remat: bool = False,
) -> "ResNet":
    """Build a residual network for 8x8 images: the same blocks, two stages of one block each.

    Args:
        num_classes: Number of outputs.
        width: Channels of the stem and of the first stage; the second stage has twice it.
        dropout_rate: Dropout between the two convolutions of a block, in training.
        drop_block_size: Side of DropBlock's squares; 0 is no DropBlock.
        dtype: What the layers compute in; parameters stay float32.
        remat: Whether a block's activations are computed again when its gradient is.

    Returns:
        A module from images ``(batch, 8, 8, channels)`` to logits ``(batch, num_classes)``.
    """
    return ResNet((1, 1), num_classes, width, dropout_rate, drop_block_size, dtype, remat)


def torch_default_kernel_init() -> nn.initializers.Initializer:
    """Return PyTorch's default weight initialiser: uniform on +-1/sqrt(fan_in)."""
    # PyTorch writes it as kaiming_uniform(a=sqrt(5)): variance 1 / (3 fan_in).
    return nn.initializers.variance_scaling(1.0 / 3.0, "fan_in", "uniform")


def torch_default_bias_init(fan_in: int) -> nn.initializers.Initializer:
    """Return PyTorch's default bias initialiser: uniform on +-1/sqrt(fan_in).

    Args:
        fan_in: Number of inputs of the layer, which a bias's own shape does not tell.
    """
    bound = fan_in**-0.5

    def init(key: jax.Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, minval=-bound, maxval=bound)

    return init


def batch_norm(*, train: bool, dtype: DTypeLike) -> Callable[..., nn.Module]:
    """Return the BatchNorm module of these networks, ready to be named and called.

    Args:
        train: Whether it uses the batch's statistics rather than the running ones.
        dtype: What it computes in.
    """
    return partial(
        nn.BatchNorm,
        use_running_average=not train,
        momentum=0.9,
        epsilon=1e-5,
        use_fast_variance=False,
        dtype=dtype,
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, activated after the sum.

    Attributes:
        channels: Output channels.
        stride: Stride of the first convolution, and of the shortcut's.
        conv: Convolution module with everything but features, kernel size and stride filled in.
        norm: Normalisation module, ready to call.
        dropout: Dropout module, ready to call.
        drop_block: DropBlock module, ready to call.
    """

    channels: int
    stride: int
    conv: Callable[..., Any]
    norm: Callable[..., Any]
    dropout: Callable[..., Any]
    drop_block: Callable[..., Any]

    @nn.compact
    def __call__(self, inputs: jax.Array, drop_block_rate: ArrayLike) -> jax.Array:
        """Apply the block: ``(batch, h, w, in)`` to ``(batch, h / stride, w / stride, out)``."""
        hidden = self.conv(self.channels, (3, 3), self.stride, padding=1, name="conv1")(inputs)
        hidden = nn.relu(self.norm(name="norm1")(hidden))
        hidden = self.dropout(name="dropout")(hidden)
        hidden = self.drop_block(name="drop_block1")(hidden, drop_block_rate)
        hidden = self.conv(self.channels, (3, 3), padding=1, name="conv2")(hidden)
        hidden = self.norm(name="norm2")(hidden)
        hidden = self.drop_block(name="drop_block2")(hidden, drop_block_rate)
        shortcut = inputs
        if inputs.shape != hidden.shape:
            shortcut = self.conv(
                self.channels, (1, 1), self.stride, padding=0, name="shortcut_conv"
            )(inputs)
            shortcut = self.norm(name="shortcut_norm")(shortcut)
        shortcut = self.drop_block(name="drop_block_shortcut")(shortcut, drop_block_rate)
        return nn.relu(hidden + shortcut)


class ResNet(nn.Module):
    """A residual network of basic blocks with BatchNorm.

    Attributes:
        stage_sizes: Blocks per stage; every stage after the first halves the image.
        num_classes: Number of outputs.
        width: Channels of the stem; stage ``i`` has ``width * 2**i``.
        dropout_rate: Dropout between the two convolutions of a block, in training.
        drop_block_size: Side of DropBlock's squares; 0 is no DropBlock.
        dtype: What the layers compute in.
        remat: Whether a block's activations are computed again when its gradient is.
        convolution: What convolves, called as `jax.lax.conv_general_dilated` is.
    """

    stage_sizes: Sequence[int]
    num_classes: int
    width: int = 64
    dropout_rate: float = 0.0
    drop_block_size: int = 0
    dtype: DTypeLike = jnp.float32
    remat: bool = False
    convolution: Callable[..., Any] = jax.lax.conv_general_dilated

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool, drop_block_rate: ArrayLike = 0.0
    ) -> jax.Array:
        """Compute the logits.

        Args:
            images: Normalised images ``(batch, height, width, channels)``.
            train: Whether BatchNorm uses the batch's statistics rather than the running ones
                (which it updates if the collection ``batch_stats`` is mutable), and whether
                dropout, which needs the random stream ``dropout``, is on.
            drop_block_rate: Share that DropBlock drops, from the random stream ``dropout``.

        Returns:
            Logits ``(batch, num_classes)``, at least float32 whatever ``dtype`` is.
        """
        conv = partial(
            nn.Conv,
            use_bias=False,
            kernel_init=torch_default_kernel_init(),
            dtype=self.dtype,
            conv_general_dilated=self.convolution,
        )
        norm = batch_norm(train=train, dtype=self.dtype)
        dropout = partial(nn.Dropout, self.dropout_rate, deterministic=not train)
        hidden = conv(self.width, (3, 3), padding=1, name="stem_conv")(images)
        hidden = nn.relu(norm(name="stem_norm")(hidden))
        make_block = nn.remat(BasicBlock) if self.remat else BasicBlock
        for stage, num_blocks in enumerate(self.stage_sizes):
            share = stage_share(stage, len(self.stage_sizes))
            for block in range(num_blocks):
                hidden = make_block(
                    channels=self.width * 2**stage,
                    stride=2 if stage > 0 and block == 0 else 1,
                    conv=conv,
                    norm=norm,
                    dropout=dropout,
                    drop_block=partial(DropBlock, self.drop_block_size, share),
                    name=f"stage{stage + 1}_block{block + 1}",
                )(hidden, drop_block_rate)
        features = jnp.mean(hidden, axis=(1, 2))
        logits = nn.Dense(
            self.num_classes,
            kernel_init=torch_default_kernel_init(),
            bias_init=torch_default_bias_init(features.shape[-1]),
            dtype=self.dtype,
            name="head",
        )(features)
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
