"""A convolution as one matrix product, for networks whose kernels differ within one program."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def convolution_as_product(
    inputs: Float[Array, "batch height width channels"],
    kernel: Float[Array, "rows columns channels features"],
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    *,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    precision: Any = None,
) -> Float[Array, "batch new_height new_width features"]:
    """Convolve images in place of `jax.lax.conv_general_dilated`, where Flax calls it.

    The window's pixels are laid side by side and multiplied with the kernel. That moves more memory
    than a convolution does; mapped over several kernels it becomes a batched product, where a
    convolution becomes a grouped one, for which a GPU takes four to seven times as long.

    Args:
        inputs: The images.
        kernel: The kernel.
        window_strides: Strides along height and width.
        padding: ``"SAME"``, ``"VALID"``, or what is added before and behind each.
        lhs_dilation: Must be 1 or `None`.
        rhs_dilation: Must be 1 or `None`.
        dimension_numbers: Those of images with channels last; not looked at.
        feature_group_count: Must be 1.
        precision: That of the product.

    Returns:
        The images convolved.

    Raises:
        NotImplementedError: If the convolution is dilated or grouped.
    """
    del dimension_numbers
    dilations = (*(lhs_dilation or ()), *(rhs_dilation or ()))
    if feature_group_count != 1 or any(dilation != 1 for dilation in dilations):
        raise NotImplementedError("only convolutions without groups and dilations are products")
    rows, columns, channels, features = kernel.shape
    size = inputs.shape[1:3]
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(size, (rows, columns), window_strides, padding)
    padded = jnp.pad(inputs, [(0, 0), *(tuple(pad) for pad in padding), (0, 0)])
    ends = [
        length - extent + 1 for length, extent in zip(padded.shape[1:3], kernel.shape, strict=False)
    ]
    windows = [
        padded[
            :,
            row : row + ends[0] : window_strides[0],
            column : column + ends[1] : window_strides[1],
        ]
        for row in range(rows)
        for column in range(columns)
    ]
    flat_kernel = kernel.reshape(rows * columns * channels, features)
    return jnp.matmul(jnp.concatenate(windows, axis=-1), flat_kernel, precision=precision)
