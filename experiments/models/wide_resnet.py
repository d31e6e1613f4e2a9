"""Wide residual networks for small images.

The form is that of Zagoruyko and Komodakis, *Wide Residual Networks* (2016): pre-activation basic
blocks in three groups of widths 16k, 32k and 64k, a 3x3 stem of 16 channels, convolutions without
bias, global average pooling and one dense layer. A shortcut is a 1x1 convolution where the number
of channels changes, and the identity elsewhere. Dropout is between the two convolutions of a block,
after the normalisation and activation of what the second takes.

Convolutions start from He's normal initialisation by fan-out, as in the authors' Lua code
(`szagoruyko/wide-residual-networks`; their later PyTorch code has fan-in); the dense layer's
weights are uniform on +-1/sqrt(fan_in), Torch's default, and its bias is 0. BatchNorm computes its
variance as in `resnet.py`, for the reason given there.

The code that the SEHT paper's authors published has another form of the network: convolutions with
bias, dropout directly after the first convolution of a block, the stride in the second convolution,
and a last BatchNorm whose running statistics take on 90 % of each batch. Its number of parameters,
its cost and its results are therefore not quite those of this one.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from experiments.models.dropblock import DropBlock, stage_share
from experiments.models.resnet import batch_norm, torch_default_kernel_init

GROUP_WIDTHS = (16, 32, 64)
LAYERS_OUTSIDE_BLOCKS = 4  # the constant in the count of layers, 6n + 4


def wide_resnet(
    depth: int,
    widen_factor: int,
    num_classes: int,
    dropout_rate: float = 0.0,
    drop_block_size: int = 0,
    dtype: DTypeLike = jnp.float32,
    *,
    remat: bool = False,
) -> "WideResNet":
    """Build WRN-depth-widen_factor (WRN-16-4 has 2,748,890 parameters with 10 classes).

    Args:
        depth: The paper's d, 6n + 4: each of the three groups has n blocks of two convolutions.
        widen_factor: The paper's k, which multiplies the widths of the groups.
        num_classes: Number of outputs.
        dropout_rate: Dropout between the two convolutions of a block, in training.
        drop_block_size: Side of DropBlock's squares; 0 is no DropBlock.
        dtype: What the layers compute in; parameters stay float32.
        remat: Whether a block's activations are computed again when its gradient is.

    Returns:
        A module from images ``(batch, height, width, channels)`` to logits
        ``(batch, num_classes)``.

    Raises:
        ValueError: If the depth is not 6n + 4 with n at least 1.
    """
    return WideResNet(
        blocks_per_group(depth),
        widen_factor,
        num_classes,
        dropout_rate,
        drop_block_size,
        dtype,
        remat,
    )


def blocks_per_group(depth: int) -> int:
    """Compute how many blocks each of the three groups has.

    Args:
        depth: The paper's d, 6n + 4.

    Returns:
        The paper's n.

    Raises:
        ValueError: If the depth is not 6n + 4 with n at least 1.
    """
    blocks, rest = divmod(depth - LAYERS_OUTSIDE_BLOCKS, 2 * len(GROUP_WIDTHS))
    if rest != 0 or blocks < 1:
        raise ValueError(f"depth must be 6n + 4 (10, 16, 22, ...), not {depth}")
    return blocks


class PreActivationBlock(nn.Module):
    """Two 3x3 convolutions, each after a normalisation and an activation, and a shortcut.

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
        activated = nn.relu(self.norm(name="norm1")(inputs))
        hidden = self.conv(self.channels, (3, 3), self.stride, padding=1, name="conv1")(activated)
        hidden = nn.relu(self.norm(name="norm2")(hidden))
        hidden = self.dropout(name="dropout")(hidden)
        hidden = self.drop_block(name="drop_block1")(hidden, drop_block_rate)
        hidden = self.conv(self.channels, (3, 3), padding=1, name="conv2")(hidden)
        hidden = self.drop_block(name="drop_block2")(hidden, drop_block_rate)
        shortcut = inputs
        if inputs.shape[-1] != self.channels:
            # Where the width changes, the shortcut too starts from the activated inputs.
            shortcut = self.conv(
                self.channels, (1, 1), self.stride, padding=0, name="shortcut_conv"
            )(activated)
        shortcut = self.drop_block(name="drop_block_shortcut")(shortcut, drop_block_rate)
        return shortcut + hidden


class WideResNet(nn.Module):
    """A wide residual network of pre-activation blocks with BatchNorm.

    Attributes:
        blocks_per_group: Blocks in each of the three groups; the second and third halve the image.
        widen_factor: Multiplies the widths of the groups.
        num_classes: Number of outputs.
        dropout_rate: Dropout between the two convolutions of a block, in training.
        drop_block_size: Side of DropBlock's squares; 0 is no DropBlock.
        dtype: What the layers compute in.
        remat: Whether a block's activations are computed again when its gradient is.
    """

    blocks_per_group: int
    widen_factor: int
    num_classes: int
    dropout_rate: float = 0.0
    drop_block_size: int = 0
    dtype: DTypeLike = jnp.float32
    remat: bool = False

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
            kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
            dtype=self.dtype,
        )
        norm = batch_norm(train=train, dtype=self.dtype)
        dropout = partial(nn.Dropout, self.dropout_rate, deterministic=not train)
        hidden = conv(GROUP_WIDTHS[0], (3, 3), padding=1, name="stem_conv")(images)
        make_block = nn.remat(PreActivationBlock) if self.remat else PreActivationBlock
        for group, width in enumerate(GROUP_WIDTHS):
            share = stage_share(group, len(GROUP_WIDTHS))
            for block in range(self.blocks_per_group):
                hidden = make_block(
                    channels=width * self.widen_factor,
                    stride=2 if group > 0 and block == 0 else 1,
                    conv=conv,
                    norm=norm,
                    dropout=dropout,
                    drop_block=partial(DropBlock, self.drop_block_size, share),
                    name=f"group{group + 1}_block{block + 1}",
                )(hidden, drop_block_rate)
        hidden = nn.relu(norm(name="head_norm")(hidden))
        features = jnp.mean(hidden, axis=(1, 2))
        logits = nn.Dense(
            self.num_classes,
            kernel_init=torch_default_kernel_init(),
            dtype=self.dtype,
            name="head",
        )(features)
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
