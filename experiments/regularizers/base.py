"""The one shape of every method: a frozen dataclass of hooks that default to doing nothing."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, TypeAlias

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree, Shaped

import seht_jax as seht
from seht_jax.probes import LayerFunction


class Batch(NamedTuple):
    """What a loss is computed from.

    Attributes:
        inputs: Normalised images ``(batch, height, width, channels)``; of text, tokens
            ``(batch, time)``.
        labels: Class probabilities ``(batch, classes)``, one-hot until a method mixes them; of
            text, the tokens that come next, ``(batch, time)``.
    """

    inputs: Shaped[Array, "batch ..."]
    labels: Shaped[Array, "batch ..."]


class Outputs(NamedTuple):
    """What a loss function returns beside the loss.

    Attributes:
        network_state: What the network carries from this batch to the next: BatchNorm's running
            statistics, or the last states of recurrent layers.
        metrics: Scalars for the log, by name; every method may add its own.
    """

    network_state: PyTree
    metrics: dict[str, Float[Array, ""]]

    def with_metrics(self, **metrics: Float[Array, ""]) -> "Outputs":
        """Return a copy with more metrics.

        Args:
            **metrics: Scalars by name.

        Returns:
            The copy.
        """
        return self._replace(metrics=self.metrics | metrics)


LossFunction: TypeAlias = Callable[[PyTree], tuple[Float[Array, ""], Outputs]]
"""From params to the loss and its outputs; batch and keys are already inside."""

NetworkFunction: TypeAlias = Callable[
    [PyTree, Shaped[Array, "batch ..."]], tuple[Float[Array, "batch ... classes"], PyTree]
]
"""From params and inputs to the logits, and to what is carried on to the next batch.

It is the network as it is trained: BatchNorm uses the batch's statistics, recurrent layers start in
the states that the last step left, and what is dropped is the same in every call of one step.
"""


class StepInputs(NamedTuple):
    """What one training step is computed from, beside the loss.

    Attributes:
        key: PRNG key of this step and method.
        step: Number of steps taken so far.
        batch: Inputs and labels, as all methods' `augment` have left them.
        network: The network.
        loss_of_part: From N to the loss, with the methods' terms, of one in N examples of the
            batch, as one batch of its own.
        layers: What a layer of the network is, in the form of `seht.regularize`.
    """

    key: PRNGKeyArray
    step: Int[Array, ""]
    batch: Batch
    network: NetworkFunction
    loss_of_part: Callable[[int], LossFunction]
    layers: LayerFunction = seht.module_layer


class InitialNetwork(NamedTuple):
    """A network before the first step.

    Attributes:
        loss_fn: The loss of some training data, in training mode.
        params: The weights that seed 0 starts from.
        key: A PRNG key.
        num_steps: Steps of the run.
    """

    loss_fn: LossFunction
    params: PyTree
    key: PRNGKeyArray
    num_steps: int


@dataclasses.dataclass(frozen=True)
class Regularizer:
    """A regularization method that changes nothing; methods override the hooks that they need.

    Methods combine as a tuple: each hook is applied in the tuple's order to what the one before
    returned. The training step calls the hooks and knows no method by name. Numbers that
    `experiments.training.strengths` lists are traced arrays in the hooks that it calls: they may be
    computed with, not branched on. A method keeps no
    state of its own: what must outlive a step belongs into the optimizer's state, so that a run
    can be taken up again.

    Attributes:
        name: Its name in `--method`.
        why_not_text: Why the method makes no sense for text; empty, if it does.
        why_not_accumulate: Why the method makes no sense for gradients that are averaged over
            several steps; empty, if it does.
    """

    name: ClassVar[str] = ""
    why_not_text: ClassVar[str] = ""
    why_not_accumulate: ClassVar[str] = ""

    def model(self, **arguments: Any) -> dict[str, Any]:
        """Change the arguments that the network is built with.

        The params must stay what they are without the method: networks are evaluated without.

        Args:
            **arguments: Keyword arguments of the model's constructor.

        Returns:
            The arguments to use.
        """
        return arguments

    def call_arguments(self, step: Int[Array, ""]) -> dict[str, Any]:
        """Give arguments that the network is called with in training, and in training alone.

        Unlike those of the constructor they may depend on the step.

        Args:
            step: Number of steps taken so far.

        Returns:
            Keyword arguments, beside ``train``.
        """
        return {}

    def initial_params(self, key: PRNGKeyArray, params: PyTree) -> PyTree:
        """Change the weights that training starts from.

        Args:
            key: PRNG key of this run and method.
            params: Initial weights of the network.

        Returns:
            The weights to use.
        """
        return params

    def at_start(self, initial: "Callable[[], InitialNetwork]") -> "Regularizer":
        """Replace the method by one whose settings are right for the network and the data.

        It is called once, before anything is compiled, and for all seeds alike. The method that it
        returns has the optimizer's state and the `evaluation_params` of this one: weights are read
        without a call.

        Args:
            initial: Gives the network before the first step, which takes a moment.

        Returns:
            The method to use.
        """
        return self

    def augment(self, key: PRNGKeyArray, batch: Batch) -> Batch:
        """Change a training batch after the data set's own augmentation and normalisation.

        Args:
            key: PRNG key of this step and method.
            batch: The batch.

        Returns:
            The batch to use.
        """
        return batch

    def loss(
        self, logits: Float[Array, "*batch classes"], labels: Shaped[Array, "..."]
    ) -> Float[Array, ""]:
        """Compute a term that is added to the mean cross-entropy of a training batch.

        Args:
            logits: The network's outputs.
            labels: Those of the batch.

        Returns:
            The term, a scalar.
        """
        return jnp.zeros((), logits.dtype)

    def objective(self, loss_fn: LossFunction, inputs: StepInputs) -> LossFunction:
        """Change the function that is differentiated.

        The wrapper may add metrics to the outputs (`Outputs.with_metrics`); they reach the log
        under the names given there.

        Args:
            loss_fn: The loss, or what the methods before made of it.
            inputs: What else the step is computed from.

        Returns:
            The function to differentiate in its place.
        """
        return loss_fn

    def optimizer_settings(self, **settings: Any) -> dict[str, Any]:
        """Change the settings that the optimizer is built from.

        Args:
            **settings: Fields of `OptimizerConfig`.

        Returns:
            The settings to use.
        """
        return settings

    def optimizer(self, tx: optax.GradientTransformation) -> optax.GradientTransformation:
        """Change the optimizer.

        Each step calls ``update(gradients, state, params, value_fn=..., grad_fn=..., key=...,
        layers=...)``: ``value_fn(params)`` is this step's objective at other params,
        ``grad_fn(params, _)`` its gradient there, ``key`` a PRNG key of this step, and ``layers``
        what a layer is. A wrapper that hands the extra arguments on combines with every other.

        Args:
            tx: The optimizer, or what the methods before made of it.

        Returns:
            The optimizer to use.
        """
        return tx

    def evaluation_params(self, params: PyTree, opt_state: PyTree) -> PyTree:
        """Choose the params at which the network is evaluated.

        Args:
            params: The params of the training state, or what the methods before made of them.
            opt_state: State of the optimizer.

        Returns:
            The params to use.
        """
        return params
