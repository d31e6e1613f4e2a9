"""A decoder-only transformer language model.

The form is that of GPT-2 (Radford et al., 2019): learnt positions, blocks that normalise before
attention and before the MLP, tanh-approximated GELU, a last LayerNorm; the matrix of the softmax is
not tied to the embedding, and there is no dropout. Kernels and embeddings start normal with
standard deviation 0.02, biases at 0. LayerNorm computes its variance as E[(x - E[x])^2], for the
reason given in `resnet.py`.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

_kernel_init = nn.initializers.normal(0.02)
_dense = partial(nn.Dense, kernel_init=_kernel_init)
_layer_norm = partial(nn.LayerNorm, epsilon=1e-5, use_fast_variance=False)


class Transformer(nn.Module):
    """A pre-norm decoder-only transformer.

    Attributes:
        vocabulary_size: Number of different tokens.
        max_length: Number of positions, the longest sequence that can be given.
        num_blocks: Number of blocks of attention and MLP.
        num_heads: Number of attention heads, which must divide `model_size`.
        model_size: Size of the residual stream.
        mlp_factor: Size of the MLPs' hidden layer, in multiples of `model_size`.
        dtype: What the layers compute in; parameters stay what they are, and `None` is their dtype.
        remat: Whether a block's activations are computed again when its gradient is.
    """

    vocabulary_size: int
    max_length: int
    num_blocks: int
    num_heads: int
    model_size: int
    mlp_factor: int = 4
    dtype: DTypeLike | None = None
    remat: bool = False

    @nn.compact
    def __call__(self, tokens: jax.Array, *, train: bool) -> jax.Array:
        """Compute the logits of each next token.

        Args:
            tokens: Tokens ``(batch, time)``, int32.
            train: Has no effect: nothing here differs between training and evaluation.

        Returns:
            Logits ``(batch, time, vocabulary_size)``, at least float32; those at a position depend
            on the tokens up to it.

        Raises:
            ValueError: If the sequences are longer than `max_length`, or the heads do not divide
                the model size.
        """
        del train
        length = tokens.shape[1]
        if length > self.max_length:
            raise ValueError(f"tokens must be at most max_length={self.max_length}, not {length}")
        if self.model_size % self.num_heads:
            raise ValueError(
                f"num_heads must divide model_size={self.model_size}, not {self.num_heads}"
            )
        embed = partial(
            nn.Embed, features=self.model_size, dtype=self.dtype, embedding_init=_kernel_init
        )
        hidden = embed(self.vocabulary_size, name="embedding")(tokens)
        hidden = hidden + embed(self.max_length, name="positions")(jnp.arange(length))
        make_block = nn.remat(DecoderBlock) if self.remat else DecoderBlock
        mlp_size = self.mlp_factor * self.model_size
        for i in range(self.num_blocks):
            block = make_block(self.num_heads, mlp_size, self.dtype, name=f"block{i + 1}")
            hidden = block(hidden)
        hidden = _layer_norm(dtype=self.dtype, name="head_norm")(hidden)
        head = _dense(self.vocabulary_size, use_bias=False, dtype=self.dtype, name="head")
        return _at_least_float32(head(hidden))


class DecoderBlock(nn.Module):
    """Causal self-attention and an MLP, each on a normalised copy of the residual stream.

    Attributes:
        num_heads: Number of attention heads.
        mlp_size: Size of the MLP's hidden layer.
        dtype: What is computed in.
    """

    num_heads: int
    mlp_size: int
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Apply the block: ``(batch, time, size)`` to the same shape."""
        size = inputs.shape[-1]
        dense, layer_norm = (partial(make, dtype=self.dtype) for make in (_dense, _layer_norm))
        attention = CausalSelfAttention(self.num_heads, self.dtype, name="attention")
        hidden = inputs + attention(layer_norm(name="norm1")(inputs))
        expanded = dense(self.mlp_size, name="mlp_in")(layer_norm(name="norm2")(hidden))
        return hidden + dense(size, name="mlp_out")(nn.gelu(expanded))


class CausalSelfAttention(nn.Module):
    """Multi-head attention of each position to itself and those before.

    Attributes:
        num_heads: Number of heads.
        dtype: What is computed in, but for the softmax.
    """

    num_heads: int
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Attend: ``(batch, time, size)`` to the same shape."""
        batch, length, size = inputs.shape
        dense = partial(_dense, dtype=self.dtype)
        projected = dense(3 * size, name="query_key_value")(inputs)
        projected = projected.reshape(batch, length, 3, self.num_heads, size // self.num_heads)
        query, key, value = projected[:, :, 0], projected[:, :, 1], projected[:, :, 2]
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) * (size // self.num_heads) ** -0.5
        causal = jnp.tril(jnp.ones((length, length), bool))
        scores = _at_least_float32(scores)
        weights = nn.softmax(jnp.where(causal, scores, jnp.finfo(scores.dtype).min))
        attended = jnp.einsum("bhqk,bkhd->bqhd", weights.astype(value.dtype), value)
        return dense(size, name="output")(attended.reshape(inputs.shape))


def _at_least_float32(array: jax.Array) -> jax.Array:
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))
