"""Recurrent language models: an embedding, LSTM or GRU layers, and a softmax over the vocabulary.

The form is that of Zaremba, Sutskever and Vinyals, *Recurrent Neural Network Regularization*
(2014): dropout acts on the inputs of each recurrent layer and on the last one's outputs, never on
the recurrent connections. Tied embeddings are those of Press and Wolf (2017): one matrix embeds the
tokens and computes the logits.

`Initialisation` says how the weights start. Flax's own way, the default here, has LeCun's normal
for kernels, orthogonal recurrent kernels, zero biases (the forget gate's too), and embeddings
normal with standard deviation 1/sqrt(embedding_size).
"""

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

Carry: TypeAlias = Any  # what a cell hands from one time step to the next

CELLS = {"lstm": nn.OptimizedLSTMCell, "gru": nn.GRUCell}

Initialisation: TypeAlias = Literal["flax", "uniform", "pytorch"]
"""How weights are drawn: Flax's way; all from [-0.1, 0.1]; or as PyTorch's example of a language
model has it, embedding and softmax from [-0.1, 0.1] with a bias of 0, and recurrent layers from
[-1/sqrt(n), 1/sqrt(n)] for n units."""

UNIFORM_BOUND = 0.1


class LanguageModel(nn.Module):
    """A recurrent language model.

    Attributes:
        vocabulary_size: Number of different tokens.
        embedding_size: Size of a token's embedding.
        hidden_size: Size of each layer's state.
        num_layers: Number of recurrent layers.
        cell: "lstm" or "gru".
        dropout_rate: Dropout between the layers, in training.
        tied_embeddings: Whether the embedding is the matrix of the softmax too, which then has no
            bias; the sizes of embedding and state must be equal.
        initialisation: How the weights are drawn.
        dtype: What the products are computed in; parameters and states stay what they are, and
            `None` is their dtype.
    """

    vocabulary_size: int
    embedding_size: int
    hidden_size: int
    num_layers: int = 2
    cell: str = "lstm"
    dropout_rate: float = 0.0
    tied_embeddings: bool = False
    initialisation: Initialisation = "flax"
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self, tokens: jax.Array, carries: Sequence[Carry] | None = None, *, train: bool
    ) -> tuple[jax.Array, tuple[Carry, ...]]:
        """Compute the logits of each next token.

        Args:
            tokens: Tokens ``(batch, time)``, int32.
            carries: The state in which each layer starts, as returned by a call on the tokens
                before; zeros if `None`.
            train: Whether dropout, which needs the random stream ``dropout``, is on.

        Returns:
            The logits ``(batch, time, vocabulary_size)``, at least float32, and the layers' last
            states.

        Raises:
            ValueError: If the cell is not known, the sizes do not allow tied embeddings, or the
                number of carries is not that of the layers.
        """
        if self.cell not in CELLS:
            raise ValueError(f"cell must be one of {', '.join(CELLS)}, not {self.cell!r}")
        if self.tied_embeddings and self.embedding_size != self.hidden_size:
            raise ValueError(
                "tied embeddings need hidden_size equal to embedding_size, which are "
                f"{self.hidden_size} and {self.embedding_size}"
            )
        if carries is not None and len(carries) != self.num_layers:
            raise ValueError(
                f"carries must hold one state for each of {self.num_layers} layers, "
                f"not {len(carries)}"
            )
        embedding = nn.Embed(
            self.vocabulary_size,
            self.embedding_size,
            dtype=self.dtype,
            name="embedding",
            **self._embedding_init(),
        )
        hidden = embedding(tokens)
        last_carries = []
        for i in range(self.num_layers):
            hidden = self._dropout(hidden, train=train)
            # The cell is passed where the network is built, so its params are named after it.
            cell = CELLS[self.cell](
                self.hidden_size,
                dtype=self.dtype,
                name=f"{self.cell}{i + 1}",
                **self._cell_init(),
            )
            carry, hidden = nn.RNN(cell, return_carry=True)(
                hidden, initial_carry=None if carries is None else carries[i]
            )
            last_carries.append(carry)
        hidden = self._dropout(hidden, train=train)
        if self.tied_embeddings:
            logits = embedding.attend(hidden)
        else:
            logits = nn.Dense(
                self.vocabulary_size, dtype=self.dtype, name="head", **self._head_init()
            )(hidden)
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32)), tuple(last_carries)

    def _embedding_init(self) -> dict[str, Any]:
        return {} if self.initialisation == "flax" else {"embedding_init": _uniform(UNIFORM_BOUND)}

    def _cell_init(self) -> dict[str, Any]:
        if self.initialisation == "flax":
            return {}
        bound = UNIFORM_BOUND if self.initialisation == "uniform" else self.hidden_size**-0.5
        names = ("kernel_init", "recurrent_kernel_init", "bias_init")
        return dict.fromkeys(names, _uniform(bound))

    def _head_init(self) -> dict[str, Any]:
        if self.initialisation == "flax":
            return {}
        uniform = _uniform(UNIFORM_BOUND)
        bias_init = uniform if self.initialisation == "uniform" else nn.initializers.zeros
        return {"kernel_init": uniform, "bias_init": bias_init}

    def _dropout(self, hidden: jax.Array, *, train: bool) -> jax.Array:
        return nn.Dropout(self.dropout_rate, deterministic=not train)(hidden)


def _uniform(bound: float) -> nn.initializers.Initializer:
    def init(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init
