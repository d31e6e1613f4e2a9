"""What the training loop asks of a task: data, network, loss and figures, and nothing else."""

import abc
import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree, Shaped

import seht_jax as seht
from experiments.regularizers import Batch, LossFunction, NetworkFunction, Outputs, Regularizer
from seht_jax.curvature import Curvature
from seht_jax.probes import LayerFunction

SPLITS = ("train", "validation", "test")

Metrics: TypeAlias = dict[str, Float[Array, ""]]

# Streams of random numbers are told apart by these, so that a method that draws more of one kind
# changes nothing in the others: plain training and SEHT see the same images at the same seed.
ORDER_STREAM, DATA_STREAM, DROPOUT_STREAM, METHOD_STREAM, OPTIMIZER_STREAM = range(5)


@dataclasses.dataclass(frozen=True)
class Task(abc.ABC):
    """Data and a network, and how the one is learnt by the other.

    Attributes:
        dataset: Three splits, ``train``, ``validation`` and ``test``.
        model: The network, as the methods have changed it.
        batch_size: Examples of a step.
        unit: What is counted, in the plural.
        network_state_spec: How what the network carries is spread over devices.
    """

    unit: ClassVar[str]
    network_state_spec: ClassVar[PartitionSpec] = PartitionSpec()

    dataset: Any
    model: nn.Module
    batch_size: int

    @property
    def layers(self) -> LayerFunction:
        """What a layer of the network is, in the form of `seht.regularize`."""
        return seht.module_layer

    @property
    @abc.abstractmethod
    def train_data(self) -> PyTree:
        """What `batch` takes its batches from."""

    @property
    @abc.abstractmethod
    def steps_per_epoch(self) -> int:
        """Whole batches in the training data."""

    @property
    @abc.abstractmethod
    def units_per_step(self) -> int:
        """How many images, or tokens, one step sees."""

    @property
    @abc.abstractmethod
    def num_examples(self) -> int:
        """How many training images there are, or windows of text."""

    @abc.abstractmethod
    def size(self, split: str) -> int:
        """Count what a split has.

        Args:
            split: One of `SPLITS`.

        Returns:
            Its images, or tokens.
        """

    @abc.abstractmethod
    def init(self, key: PRNGKeyArray) -> tuple[PyTree, PyTree]:
        """Draw initial weights.

        Args:
            key: PRNG key.

        Returns:
            The params, and what the network carries from step to step.
        """

    @abc.abstractmethod
    def epoch_order(self, key: PRNGKeyArray, epoch: int) -> PyTree:
        """Choose the order in which an epoch takes the training data.

        Args:
            key: PRNG key of the run.
            epoch: Which epoch.

        Returns:
            What `batch` wants; `None` where there is one order alone.
        """

    @abc.abstractmethod
    def batch(self, data: PyTree, order: PyTree, step: Int[Array, ""], key: PRNGKeyArray) -> Batch:
        """Load the batch of one step, inside ``jit``.

        Args:
            data: `train_data`.
            order: What `epoch_order` returned for the epoch of this step.
            step: Number of steps taken so far.
            key: PRNG key of this step's data.

        Returns:
            The batch, before the methods change it.
        """

    @abc.abstractmethod
    def initial_batch(self) -> Batch:
        """Load training data for a measurement before the first step, without augmentation.

        Returns:
            A batch that goes with the network of step 0.
        """

    @abc.abstractmethod
    def network(
        self,
        network_state: PyTree,
        step: Int[Array, ""],
        dropout_key: PRNGKeyArray,
        call_arguments: Mapping[str, Any],
    ) -> NetworkFunction:
        """Build the network of one training step as a pure function of params and inputs.

        Args:
            network_state: What the step before left.
            step: Number of steps taken so far.
            dropout_key: PRNG key for dropout in the network, fixed inside: every evaluation of the
                returned function, the curvature's included, drops the same units.
            call_arguments: What the network is called with beside ``train``.

        Returns:
            The function.
        """

    def state_of_part(self, network_state: PyTree, one_in: int) -> PyTree:
        """Choose what the network carries for a part of the batch.

        Args:
            network_state: What it carries for the whole batch.
            one_in: The part is each so-many-th example.

        Returns:
            The same, unless each example has its own.
        """
        del one_in
        return network_state

    @abc.abstractmethod
    def loss_fn(
        self, network: NetworkFunction, method: Sequence[Regularizer], batch: Batch
    ) -> LossFunction:
        """Build the training loss of one batch as a pure function of the params.

        Args:
            network: The network of this step.
            method: The regularizers, whose loss terms are added.
            batch: Inputs and labels.

        Returns:
            A function from params to the loss and `Outputs` with the metric ``loss``, the
            cross-entropy alone, and more.
        """

    @abc.abstractmethod
    def evaluator(self) -> "Evaluator":
        """Prepare the evaluation of this network.

        Returns:
            The evaluation.
        """

    @abc.abstractmethod
    def first_examples(self, number: int) -> Any:
        """Take a part of the training split.

        Args:
            number: Images, or windows of text, at most.

        Returns:
            What `Evaluator.trace` wants.
        """

    @abc.abstractmethod
    def examples(self, number: int) -> PyTree:
        """Take examples of the training split, without augmentation, as `evaluation_loss` wants.

        Args:
            number: Images, or windows of text, at most: the first ones.

        Returns:
            Arrays with the examples along their first axis.
        """

    @abc.abstractmethod
    def evaluation_loss(
        self, params: PyTree, examples: PyTree, network_state: PyTree
    ) -> Float[Array, ""]:
        """Compute the mean cross-entropy of examples with the network as it is used.

        Nothing is dropped and no example has an influence on another's loss, so that the mean over
        a data set is that over its batches. The outputs are marked (`seht.outputs`).

        Args:
            params: The network's parameters.
            examples: Some of what `examples` returns.
            network_state: What training left beside the params.

        Returns:
            The loss, a function of the params.
        """

    @abc.abstractmethod
    def check_fit(self, method: Sequence[Regularizer]) -> None:
        """Check that data, batch size and methods fit one another; nothing is computed.

        Args:
            method: The regularizers.

        Raises:
            SettingError: If they do not.
        """


class Evaluator(abc.ABC):
    """Figures of a network on the splits of one data set.

    It keeps its compiled functions, so that one instance serves all runs of a network.
    """

    @abc.abstractmethod
    def evaluate(self, params: PyTree, network_state: PyTree, split: Any) -> Any:
        """Compute means over a split, as the network is used, with nothing dropped.

        Args:
            params: The network's parameters.
            network_state: What training left beside them.
            split: One of the data set's splits.

        Returns:
            A named tuple of figures, of which one is ``loss``, the mean cross-entropy in nats.
        """

    @abc.abstractmethod
    def confidences(
        self, params: PyTree, network_state: PyTree, split: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        """Look at the likeliest class of each example, as the network is used.

        Args:
            params: The network's parameters.
            network_state: What training left beside them.
            split: One of the data set's splits.

        Returns:
            Its probability, and whether it is the right one, both of shape ``(examples,)``; of text
            every token counts as an example.
        """

    @abc.abstractmethod
    def trace(
        self,
        params: PyTree,
        network_state: PyTree,
        split: Any,
        key: PRNGKeyArray,
        num_probes: int,
        curvature: Curvature = "hessian",
    ) -> tuple[float, float]:
        """Estimate tr(H), or tr(G), of the mean cross-entropy over a split, taken as one batch.

        The loss is that whose curvature a penalised training step sees. The method's own loss terms
        are left out, so that all methods are measured alike.

        Args:
            params: The network's parameters.
            network_state: What training left beside them.
            split: A part of the training data.
            key: PRNG key of the probes.
            num_probes: Number of Rademacher probes, at least 2.
            curvature: "hessian" is the Hessian H, "gauss_newton" the Gauss-Newton matrix G.

        Returns:
            The estimate and its standard error.
        """


def make_training_loss(
    network: NetworkFunction,
    method: Sequence[Regularizer],
    batch: Batch,
    measure: Callable[
        [Float[Array, "*batch classes"], Shaped[Array, "..."]], tuple[Float[Array, ""], Metrics]
    ],
) -> LossFunction:
    """Build the training loss of one batch as a pure function of the params.

    Args:
        network: The network of this step.
        method: The regularizers, whose loss terms are added.
        batch: Inputs and labels.
        measure: From logits and labels to the mean cross-entropy and to more metrics for the log.

    Returns:
        A function from params to the loss and `Outputs`.
    """

    def loss_fn(params: PyTree) -> tuple[Float[Array, ""], Outputs]:
        logits, network_state = network(params, batch.inputs)
        logits = seht.outputs(logits)
        cross_entropy, metrics = measure(logits, batch.labels)
        loss = sum((part.loss(logits, batch.labels) for part in method), start=cross_entropy)
        return loss, Outputs(network_state, {"loss": cross_entropy} | metrics)

    return loss_fn


def confidence_of(
    logits: Float[Array, "*batch classes"], labels: Int[Array, "*batch"]
) -> tuple[Float[Array, "*batch"], Bool[Array, "*batch"]]:
    """Compute the probability of the likeliest class, and whether it is the right one.

    Args:
        logits: The network's outputs.
        labels: The classes.

    Returns:
        Both, one of each for an example.
    """
    return jnp.max(jax.nn.softmax(logits), axis=-1), jnp.argmax(logits, axis=-1) == labels


def estimate_trace(
    sample: Callable[[PRNGKeyArray], Float[Array, ""]], key: PRNGKeyArray, num_probes: int
) -> tuple[float, float]:
    """Compute the mean of samples of a trace, probe by probe.

    Args:
        sample: From a key to the estimate along one probe.
        key: PRNG key of the probes.
        num_probes: Number of probes, at least 2.

    Returns:
        The mean and its standard error.
    """
    samples = [float(sample(probe_key)) for probe_key in jax.random.split(key, num_probes)]
    return statistics.fmean(samples), statistics.stdev(samples) / num_probes**0.5


def trace_sample(
    loss_fn: LossFunction, params: PyTree, key: PRNGKeyArray, curvature: Curvature
) -> Float[Array, ""]:
    """Estimate the trace of a training loss along one probe.

    Args:
        loss_fn: The loss.
        params: Where.
        key: PRNG key of the probe.
        curvature: See `Evaluator.trace`.

    Returns:
        The estimate.
    """
    estimate = seht.hutchinson_trace(loss_fn, key, num_probes=1, has_aux=True, curvature=curvature)
    return jnp.asarray(estimate(params).mean)
