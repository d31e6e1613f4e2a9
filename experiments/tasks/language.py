"""Language modelling: the next token of a text, in strands that are read side by side.

A text is cut into strands of one length, and a step takes the next few tokens of each. A recurrent
network starts in the states that the step before left, which are constants in its gradient
(truncated backpropagation through time); at the beginning of an epoch they are 0. A transformer
sees the tokens of the step alone.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

import seht_jax as seht
from experiments.data.corpus import Corpus, Tokens
from experiments.errors import SettingError
from experiments.models.rnn_lm import LanguageModel
from experiments.regularizers import Batch, LossFunction, NetworkFunction, Regularizer
from experiments.tasks.base import (
    SPLITS,
    Evaluator,
    Metrics,
    Task,
    confidence_of,
    estimate_trace,
    make_training_loss,
    trace_sample,
)
from seht_jax.curvature import Curvature
from seht_jax.probes import LayerFunction

EVALUATION_STRANDS = 10


# Jitted: run eagerly, every operation is compiled for itself, which takes longer.
@partial(jax.jit, static_argnames="model")
def _init_params(model: nn.Module, key: PRNGKeyArray) -> PyTree:
    return model.init(key, jnp.zeros((1, 1), jnp.int32), train=False)["params"]


@dataclasses.dataclass(frozen=True)
class LanguageModelling(Task):
    """Modelling of a text, whose network state is the last state of each recurrent layer.

    Attributes:
        length: Tokens of each strand in a step.
    """

    unit: ClassVar[str] = "tokens"
    network_state_spec: ClassVar[PartitionSpec] = PartitionSpec("data")

    dataset: Corpus
    length: int

    @property
    def layers(self) -> LayerFunction:
        """A recurrent layer is one, not the dense modules of its cell; else a module is."""
        return top_level_layer if isinstance(self.model, LanguageModel) else seht.module_layer

    @property
    def train_data(self) -> Int[Array, "strands time"]:
        """The training text in strands."""
        return cut_into_strands(self.dataset.train.tokens, self.batch_size)

    @property
    def steps_per_epoch(self) -> int:
        """Steps of full length; the last token of a strand has no next one."""
        return (self.size("train") // self.batch_size - 1) // self.length

    @property
    def units_per_step(self) -> int:
        """Tokens of a step."""
        return self.batch_size * self.length

    @property
    def num_examples(self) -> int:
        """Windows of a step's length in the training text."""
        return (self.size("train") - 1) // self.length

    def size(self, split: str) -> int:
        """Count tokens."""
        return len(getattr(self.dataset, split).tokens)

    def init(self, key: PRNGKeyArray) -> tuple[PyTree, PyTree]:
        """Draw initial weights; the states are 0."""
        params = _init_params(self.model, key)
        return params, zero_states(self.model, params, self.batch_size)

    def epoch_order(self, key: PRNGKeyArray, epoch: int) -> None:
        """Read the text from its beginning in every epoch."""
        del key, epoch

    def batch(
        self, data: Int[Array, "strands time"], order: None, step: Int[Array, ""], key: PRNGKeyArray
    ) -> Batch:
        """Take the next tokens of each strand."""
        del order, key
        start = self._position(step) * self.length
        return _window(data, start, self.length)

    def initial_batch(self) -> Batch:
        """Take the batch of the first step."""
        return _window(self.train_data, 0, self.length)

    def network(
        self,
        network_state: PyTree,
        step: Int[Array, ""],
        dropout_key: PRNGKeyArray,
        call_arguments: Mapping[str, Any],
    ) -> NetworkFunction:
        """Build the network of one training step."""
        begins = self._position(step) == 0
        states = jax.tree.map(
            lambda state: jnp.where(begins, jnp.zeros_like(state), state), network_state
        )
        return make_network(self.model, states, dropout_key, call_arguments)

    def state_of_part(self, network_state: PyTree, one_in: int) -> PyTree:
        """Choose the states of each so-many-th strand."""
        return jax.tree.map(lambda states: states[::one_in], network_state)

    def loss_fn(
        self, network: NetworkFunction, method: Sequence[Regularizer], batch: Batch
    ) -> LossFunction:
        """Build the training loss of one batch."""
        return make_loss_fn(network, method, batch)

    def evaluator(self) -> "TextEvaluator":
        """Prepare the evaluation."""
        return TextEvaluator(self.model, self.length)

    def first_examples(self, number: int) -> Tokens:
        """Take the text of the first windows."""
        return Tokens(self.dataset.train.tokens[: number * self.length + 1])

    def examples(self, number: int) -> Batch:
        """Take the first windows, and their next tokens."""
        return windows(self.first_examples(number).tokens, self.length)

    def evaluation_loss(
        self, params: PyTree, examples: Batch, network_state: PyTree
    ) -> Float[Array, ""]:
        """Compute the mean cross-entropy of the next token; each window begins in state 0."""
        del network_state
        logits, _ = apply_network(self.model, params, examples.inputs, None, train=False)
        return jnp.mean(_cross_entropies(seht.outputs(logits), examples.labels))

    def check_fit(self, method: Sequence[Regularizer]) -> None:
        """Check that the text is long enough; `check_methods` has looked at the methods.

        Args:
            method: The regularizers.

        Raises:
            SettingError: If a text is too short.
        """
        del method
        if self.steps_per_epoch < 1:
            raise SettingError(
                f"the {self.size('train')} training tokens are too few for a step: "
                f"--batch-size {self.batch_size} strands of --length {self.length} and one token "
                "more"
            )
        for split in SPLITS:
            if 0 < self.size(split) < 2 * EVALUATION_STRANDS:
                raise SettingError(
                    f"the {split} text must have at least {2 * EVALUATION_STRANDS} tokens, or "
                    f"none, not {self.size(split)}"
                )

    def _position(self, step: Int[Array, ""]) -> Int[Array, ""]:
        return step % self.steps_per_epoch


class Evaluation(NamedTuple):
    """How a language model does on a text.

    Attributes:
        loss: Mean cross-entropy of the next token, in nats.
        perplexity: Its exponential.
    """

    loss: float
    perplexity: float


def check_methods(method: Sequence[Regularizer]) -> None:
    """Check that no method makes sense for images alone.

    Args:
        method: The regularizers.

    Raises:
        SettingError: If one does.
    """
    for part in method:
        if part.why_not_text:
            raise SettingError(
                f"the method {part.name} can not be used on text: {part.why_not_text}"
            )


def top_level_layer(path: tuple[str, ...]) -> str:
    """Name the layer of a leaf after the outermost module.

    Of a recurrent language model these are the embedding, each recurrent layer and the decoder.

    Args:
        path: The path of the leaf in the params.

    Returns:
        The name.
    """
    return path[0]


def cut_into_strands(tokens: Int[Array, " length"], strands: int) -> Int[Array, "strands time"]:
    """Cut a text into strands of one length; the rest at its end is left out.

    Args:
        tokens: The text.
        strands: How many.

    Returns:
        The strands.
    """
    time = len(tokens) // strands
    return tokens[: strands * time].reshape(strands, time)


def windows(tokens: Int[Array, " length"], length: int) -> Batch:
    """Cut a text into windows, one after the other; what fills none at its end is left out.

    Args:
        tokens: The text.
        length: Tokens of each window.

    Returns:
        The windows and, as labels, their next tokens.
    """
    number = (len(tokens) - 1) // length
    inputs, labels = (tokens[start : start + number * length] for start in (0, 1))
    return Batch(inputs.reshape(number, length), labels.reshape(number, length))


def apply_network(
    model: nn.Module,
    params: PyTree,
    tokens: Int[Array, "batch time"],
    states: PyTree,
    **arguments: Any,
) -> tuple[Float[Array, "batch time classes"], PyTree]:
    """Evaluate a language model, whether it has states or not.

    Args:
        model: The network.
        params: Its parameters.
        tokens: The tokens.
        states: The states in which its recurrent layers start; `None` is 0.
        **arguments: What ``apply`` is called with beside these.

    Returns:
        The logits of each next token, and the layers' last states: none of a transformer.
    """
    if isinstance(model, LanguageModel):
        return model.apply({"params": params}, tokens, states, **arguments)
    logits: Any = model.apply({"params": params}, tokens, **arguments)
    return logits, ()


def zero_states(model: nn.Module, params: PyTree, batch_size: int) -> PyTree:
    """Make the states that a text begins with.

    Args:
        model: The network.
        params: Its parameters, for their shapes.
        batch_size: Number of strands.

    Returns:
        Zeros.
    """

    def last_states(params: PyTree) -> PyTree:
        tokens = jnp.zeros((batch_size, 1), jnp.int32)
        return apply_network(model, params, tokens, None, train=False)[1]

    shapes = jax.eval_shape(last_states, params)
    return jax.tree.map(lambda like: jnp.zeros(like.shape, like.dtype), shapes)


def make_network(
    model: nn.Module,
    states: PyTree,
    dropout_key: PRNGKeyArray,
    call_arguments: Mapping[str, Any] = MappingProxyType({}),
) -> NetworkFunction:
    """Build the network of one training step as a pure function of params and tokens.

    The dropout key is fixed inside, so that every evaluation of the returned function, the
    curvature's included, drops the same units.

    Args:
        model: The network.
        states: The states in which its recurrent layers start.
        dropout_key: PRNG key for dropout in the network.
        call_arguments: What the network is called with beside ``train``.

    Returns:
        A function from params and tokens to logits and the layers' last states, which are cut from
        the gradient.
    """

    def network(
        params: PyTree, tokens: Int[Array, "batch time"]
    ) -> tuple[Float[Array, "batch time classes"], PyTree]:
        logits, last_states = apply_network(
            model,
            params,
            tokens,
            jax.lax.stop_gradient(states),
            train=True,
            rngs={"dropout": dropout_key},
            **call_arguments,
        )
        return logits, jax.lax.stop_gradient(last_states)

    return network


def make_loss_fn(
    network: NetworkFunction, method: Sequence[Regularizer], batch: Batch
) -> LossFunction:
    """Build the training loss of one batch as a pure function of the params.

    Args:
        network: The network of this step.
        method: The regularizers, whose loss terms are added.
        batch: Tokens and next tokens.

    Returns:
        A function from params to the loss, a mean over all tokens, and `Outputs` with the metric
        ``loss``, the cross-entropy alone.
    """

    def measure(
        logits: Float[Array, "batch time classes"], labels: Int[Array, "batch time"]
    ) -> tuple[Float[Array, ""], Metrics]:
        return jnp.mean(_cross_entropies(logits, labels)), {}

    return make_training_loss(network, method, batch, measure)


class TextEvaluator(Evaluator):
    """Evaluates a language model on texts.

    A text is read in `EVALUATION_STRANDS` strands; every token but the first of each strand, and
    but the few that fill no strand, counts once.
    """

    def __init__(self, model: nn.Module, length: int) -> None:
        """Prepare the evaluation.

        Args:
            model: The network.
            length: Tokens that are read at once.
        """

        def sums(
            params: PyTree, strands: Int[Array, "strands time"], num_labels: Int[Array, ""]
        ) -> Float[Array, " steps"]:
            def step(states: PyTree, start: Int[Array, ""]) -> tuple[PyTree, Float[Array, ""]]:
                batch = _window(strands, start, length)
                logits, states = apply_network(model, params, batch.inputs, states, train=False)
                counts = start + jnp.arange(length) < num_labels
                return states, jnp.sum(_cross_entropies(logits, batch.labels), where=counts)

            starts = jnp.arange(0, strands.shape[1] - 1, length)
            states = zero_states(model, params, strands.shape[0])
            return jax.lax.scan(step, states, starts)[1]

        def confidence(
            params: PyTree, strands: Int[Array, "strands time"]
        ) -> tuple[Float[Array, "strands steps"], Bool[Array, "strands steps"]]:
            def step(states: PyTree, start: Int[Array, ""]) -> tuple[PyTree, Any]:
                batch = _window(strands, start, length)
                logits, states = apply_network(model, params, batch.inputs, states, train=False)
                return states, confidence_of(logits, batch.labels)

            starts = jnp.arange(0, strands.shape[1] - 1, length)
            states = zero_states(model, params, strands.shape[0])
            _, found = jax.lax.scan(step, states, starts)
            return jax.tree.map(
                lambda each: jnp.moveaxis(each, 0, 1).reshape(strands.shape[0], -1), found
            )

        def sample(
            curvature: Curvature, params: PyTree, text: Tokens, key: PRNGKeyArray
        ) -> Float[Array, ""]:
            batch = windows(text.tokens, length)
            states = zero_states(model, params, len(batch.inputs))
            loss_fn = make_loss_fn(make_network(model, states, key), (), batch)
            return trace_sample(loss_fn, params, key, curvature)

        self._length = length
        self._sums = jax.jit(sums)
        self._confidence = jax.jit(confidence)
        self._sample = jax.jit(sample, static_argnums=0)

    def evaluate(self, params: PyTree, network_state: PyTree, split: Tokens) -> Evaluation:
        """Compute the mean cross-entropy of a text; training's last states have no influence.

        Args:
            params: The network's parameters.
            network_state: Training's last states.
            split: The text.

        Returns:
            The figures; nan for an empty text.
        """
        del network_state
        if not len(split.tokens):
            return Evaluation(float("nan"), float("nan"))
        strands, num_labels = self._strands(split)
        sums = self._sums(params, strands, num_labels)
        loss = np.asarray(sums, np.float64).sum() / (EVALUATION_STRANDS * num_labels)
        with np.errstate(over="ignore"):
            return Evaluation(float(loss), float(np.exp(loss)))

    def confidences(
        self, params: PyTree, network_state: PyTree, split: Tokens
    ) -> tuple[np.ndarray, np.ndarray]:
        """Look at the likeliest next token, at each of those that `evaluate` counts."""
        del network_state
        strands, num_labels = self._strands(split)
        confidence, hits = self._confidence(params, strands)
        return (
            np.asarray(confidence[:, :num_labels]).ravel(),
            np.asarray(hits[:, :num_labels]).ravel(),
        )

    def _strands(self, split: Tokens) -> tuple[Int[Array, "strands time"], int]:
        """Cut a text into strands, filled up to whole steps, and count the labels of each."""
        strands = cut_into_strands(split.tokens, EVALUATION_STRANDS)
        num_labels = strands.shape[1] - 1
        return jnp.pad(strands, ((0, 0), (0, -num_labels % self._length))), num_labels

    def trace(
        self,
        params: PyTree,
        network_state: PyTree,
        split: Tokens,
        key: PRNGKeyArray,
        num_probes: int,
        curvature: Curvature = "hessian",
    ) -> tuple[float, float]:
        """Estimate tr(H), or tr(G), on the windows of a text, each of which begins in state 0."""
        del network_state
        return estimate_trace(
            lambda probe_key: self._sample(curvature, params, split, probe_key), key, num_probes
        )


def _window(strands: Int[Array, "strands time"], start: Int[Array, ""] | int, length: int) -> Batch:
    inputs, labels = (
        jax.lax.dynamic_slice_in_dim(strands, first, length, axis=1) for first in (start, start + 1)
    )
    return Batch(inputs, labels)


def _cross_entropies(
    logits: Float[Array, "batch time classes"], labels: Int[Array, "batch time"]
) -> Float[Array, "batch time"]:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
