"""Recurrent language models: an embedding, LSTM or GRU layers, and a softmax over the vocabulary.

The form is that of Zaremba, Sutskever and Vinyals, *Recurrent Neural Network Regularization*
(2014): dropout acts on the inputs of each recurrent layer and on the last one's outputs, never on
the recurrent connections. Tied embeddings are those of Press and Wolf (2017): one matrix embeds the
tokens and computes the logits.

Initialisation is Flax's default: LeCun's normal for kernels, orthogonal recurrent kernels, zero
biases (the forget gate's too), embeddings normal with standard deviation 1/sqrt(embedding_size).
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp

Carry: TypeAlias = Any  # what a cell hands from one time step to the next

CELLS = {"lstm": nn.OptimizedLSTMCell, "gru": nn.GRUCell}


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
    """

    vocabulary_size: int
    embedding_size: int
    hidden_size: int
    num_layers: int = 2
    cell: str = "lstm"
    dropout_rate: float = 0.0
    tied_embeddings: bool = False

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
            The logits ``(batch, time, vocabulary_size)``, float32, and the layers' last states.

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
        embedding = nn.Embed(self.vocabulary_size, self.embedding_size, name="embedding")
        hidden = embedding(tokens)
        last_carries = []
        for i in range(self.num_layers):
            hidden = self._dropout(hidden, train=train)
            # The cell is passed where the network is built, so its params are named after it.
            cell = CELLS[self.cell](self.hidden_size, name=f"{self.cell}{i + 1}")
            carry, hidden = nn.RNN(cell, return_carry=True)(
                hidden, initial_carry=None if carries is None else carries[i]
            )
            last_carries.append(carry)
        hidden = self._dropout(hidden, train=train)
        if self.tied_embeddings:
            logits = embedding.attend(hidden)
        else:
            logits = nn.Dense(self.vocabulary_size, name="head")(hidden)
        return logits.astype(jnp.float32), tuple(last_carries)

    def _dropout(self, hidden: jax.Array, *, train: bool) -> jax.Array:
        return nn.Dropout(self.dropout_rate, deterministic=not train)(hidden)
