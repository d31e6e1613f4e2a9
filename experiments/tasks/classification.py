"""Image classification: the loss of a batch, evaluation of a split, curvature on a split."""

import statistics
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

import seht_jax as seht
from experiments.data.augment import normalise
from experiments.data.dataset import Dataset, Split
from experiments.regularizers import Batch, LossFunction, NetworkFunction, Outputs, Regularizer
from seht_jax.curvature import Curvature

EVALUATION_BATCH_SIZE = 256


class Evaluation(NamedTuple):
    """How a network does on a split, with BatchNorm's running statistics.

    Attributes:
        loss: Mean cross-entropy in nats.
        accuracy: Share of the images that are classified rightly.
        top5_accuracy: Share of those whose class is among the five that come first.
    """

    loss: float
    accuracy: float
    top5_accuracy: float


def make_network(
    model: nn.Module,
    batch_stats: PyTree,
    dropout_key: PRNGKeyArray,
    call_arguments: Mapping[str, Any] = MappingProxyType({}),
) -> NetworkFunction:
    """Build the network of one training step as a pure function of params and images.

    BatchNorm uses the batch's statistics. The dropout key is fixed inside, so that every evaluation
    of the returned function, the curvature's included, drops the same units.

    Args:
        model: The network.
        batch_stats: BatchNorm's running statistics before this step.
        dropout_key: PRNG key for dropout in the network.
        call_arguments: What the network is called with beside ``train``.

    Returns:
        A function from params and images to logits and the running statistics after these images.
    """

    def network(
        params: PyTree, images: Float[Array, "batch height width channels"]
    ) -> tuple[Float[Array, "batch classes"], PyTree]:
        logits, updated = model.apply(
            {"params": params, "batch_stats": batch_stats},
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": dropout_key},
            **call_arguments,
        )
        return logits, updated["batch_stats"]

    return network


def make_loss_fn(
    network: NetworkFunction, method: Sequence[Regularizer], batch: Batch
) -> LossFunction:
    """Build the training loss of one batch as a pure function of the params.

    Args:
        network: The network of this step.
        method: The regularizers, whose loss terms are added.
        batch: Images and labels.

    Returns:
        A function from params to the loss and `Outputs` with metrics ``loss`` (the cross-entropy
        alone) and ``accuracy``.
    """

    def loss_fn(params: PyTree) -> tuple[Float[Array, ""], Outputs]:
        logits, batch_stats = network(params, batch.images)
        logits = seht.outputs(logits)
        cross_entropy = jnp.mean(optax.softmax_cross_entropy(logits, batch.labels))
        loss = sum((part.loss(logits, batch.labels) for part in method), start=cross_entropy)
        hits = jnp.argmax(logits, axis=-1) == jnp.argmax(batch.labels, axis=-1)
        metrics = {"loss": cross_entropy, "accuracy": jnp.mean(hits, dtype=jnp.float32)}
        return loss, Outputs(batch_stats, metrics)

    return loss_fn


class Evaluator:
    """Evaluates a network on the splits of one data set.

    It keeps its compiled functions, so that one instance serves all runs of a network.
    """

    def __init__(self, model: nn.Module, dataset: Dataset) -> None:
        """Prepare the evaluation.

        Args:
            model: The network.
            dataset: Where normalisation comes from.
        """

        def sums(
            params: PyTree, batch_stats: PyTree, split: Split, size: Int[Array, ""]
        ) -> Float[Array, " sums"]:
            logits: Any = model.apply(
                {"params": params, "batch_stats": batch_stats},
                normalise(split.images, dataset.mean, dataset.standard_deviation),
                train=False,
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, split.labels)
            _, first = jax.lax.top_k(logits, min(5, dataset.num_classes))
            hits = first == split.labels[:, None]
            per_image = jnp.stack(
                [losses, hits[:, 0].astype(losses.dtype), jnp.any(hits, -1).astype(losses.dtype)]
            )
            return jnp.sum(per_image, axis=-1, where=jnp.arange(EVALUATION_BATCH_SIZE) < size)

        def trace_sample(
            curvature: Curvature,
            params: PyTree,
            batch_stats: PyTree,
            split: Split,
            key: PRNGKeyArray,
        ) -> Float[Array, ""]:
            batch = Batch(
                normalise(split.images, dataset.mean, dataset.standard_deviation),
                jax.nn.one_hot(split.labels, dataset.num_classes),
            )
            loss_fn = make_loss_fn(make_network(model, batch_stats, key), (), batch)
            estimate = seht.hutchinson_trace(
                loss_fn, key, num_probes=1, has_aux=True, curvature=curvature
            )
            return estimate(params).mean

        self._sums = jax.jit(sums)
        self._trace_sample = jax.jit(trace_sample, static_argnums=0)

    def evaluate(self, params: PyTree, batch_stats: PyTree, split: Split) -> Evaluation:
        """Compute mean loss and accuracies with the running statistics.

        Args:
            params: The network's parameters.
            batch_stats: BatchNorm's running statistics.
            split: Images and labels, any number.

        Returns:
            Means over the split; nan for an empty one.
        """
        size = len(split.labels)
        if size == 0:
            return Evaluation(*[float("nan")] * 3)
        total = np.zeros(3)
        for start in range(0, size, EVALUATION_BATCH_SIZE):
            part = Split(*(array[start : start + EVALUATION_BATCH_SIZE] for array in split))
            # Filled up to one shape, which is compiled once whatever the sizes of the splits are.
            part_size = len(part.labels)
            part = jax.tree.map(_fill_up, part)
            total += np.asarray(self._sums(params, batch_stats, part, part_size))
        return Evaluation(*(total / size).tolist())

    def trace(
        self,
        params: PyTree,
        batch_stats: PyTree,
        split: Split,
        key: PRNGKeyArray,
        num_probes: int,
        curvature: Curvature = "hessian",
    ) -> tuple[float, float]:
        """Estimate tr(H), or tr(G), of the mean cross-entropy over a split, taken as one batch.

        BatchNorm is in training mode, that is, it uses the statistics of the split itself: the
        loss whose curvature a penalised training step sees, on more images. The method's own loss
        terms are left out, so that all methods are measured alike.

        Args:
            params: The network's parameters.
            batch_stats: BatchNorm's running statistics (they have no influence).
            split: Images and labels.
            key: PRNG key of the probes.
            num_probes: Number of Rademacher probes, at least 2.
            curvature: "hessian" is the Hessian H, "gauss_newton" the Gauss-Newton matrix G.

        Returns:
            The estimate and its standard error.
        """
        samples = [
            float(self._trace_sample(curvature, params, batch_stats, split, probe_key))
            for probe_key in jax.random.split(key, num_probes)
        ]
        return statistics.fmean(samples), statistics.stdev(samples) / num_probes**0.5


def _fill_up(array: Array) -> Array:
    missing = EVALUATION_BATCH_SIZE - array.shape[0]
    return jnp.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1))
