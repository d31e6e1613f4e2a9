"""Image classification: the loss of a batch, evaluation of a split, curvature on a split."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

import seht_jax as seht
from experiments.data.augment import crop_and_flip, normalise, random_flip
from experiments.data.dataset import Dataset, Split
from experiments.errors import SettingError
from experiments.regularizers import Batch, LossFunction, NetworkFunction, Regularizer
from experiments.tasks.base import (
    ORDER_STREAM,
    Evaluator,
    Metrics,
    Task,
    confidence_of,
    estimate_trace,
    make_training_loss,
    trace_sample,
)
from seht_jax.curvature import Curvature

EVALUATION_BATCH_SIZE = 256

# As many as the traces of the studies of strengths are measured on.
INITIAL_EXAMPLES = 256


# Jitted: run eagerly, every operation is compiled for itself, which takes longer. Networks of the
# same settings are equal, so all runs share one compilation.
@partial(jax.jit, static_argnames=("model", "image_shape"))
def _init_variables(
    model: nn.Module, image_shape: tuple[int, ...], key: PRNGKeyArray
) -> dict[str, PyTree]:
    return dict(model.init(key, jnp.zeros((1, *image_shape), jnp.float32), train=False))


@jax.jit
def epoch_order(
    key: PRNGKeyArray, epoch: Int[Array, ""], labels: Int[Array, " examples"]
) -> Int[Array, " examples"]:
    """Draw the order in which an epoch takes the training images.

    Args:
        key: PRNG key of the run.
        epoch: Which epoch.
        labels: The labels, for their number.

    Returns:
        A permutation of the images' indices.
    """
    epoch_key = jax.random.fold_in(jax.random.fold_in(key, ORDER_STREAM), epoch)
    return jax.random.permutation(epoch_key, labels.shape[0])


@dataclasses.dataclass(frozen=True)
class Classification(Task):
    """Classification of images, whose network state is BatchNorm's running statistics, if any.

    Attributes:
        augmentation: ``"none"``, ``"flip"`` or ``"crop-flip"``.
    """

    unit: ClassVar[str] = "images"

    dataset: Dataset
    augmentation: str

    @property
    def train_data(self) -> Split:
        """The training images."""
        return self.dataset.train

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in the training set."""
        return self.size("train") // self.batch_size

    @property
    def units_per_step(self) -> int:
        """Images of a batch."""
        return self.batch_size

    @property
    def num_examples(self) -> int:
        """Training images."""
        return self.size("train")

    def size(self, split: str) -> int:
        """Count images."""
        return len(getattr(self.dataset, split).labels)

    def init(self, key: PRNGKeyArray) -> tuple[PyTree, PyTree]:
        """Draw initial weights."""
        image_shape = self.dataset.train.images.shape[1:]
        variables = _init_variables(self.model, image_shape, key)
        return variables["params"], variables.get("batch_stats", {})

    def epoch_order(self, key: PRNGKeyArray, epoch: int) -> Int[Array, " examples"]:
        """Draw a permutation of the training images."""
        return epoch_order(key, jnp.asarray(epoch), self.dataset.train.labels)

    def batch(
        self, data: Split, order: Int[Array, " examples"], step: Int[Array, ""], key: PRNGKeyArray
    ) -> Batch:
        """Take the slice of the order that belongs to the step, and augment it."""
        position = step % (data.labels.shape[0] // self.batch_size)
        start = position * self.batch_size
        indices = jax.lax.dynamic_slice(order, (start,), (self.batch_size,))
        images = data.images[indices]
        if self.augmentation == "crop-flip":
            images = crop_and_flip(key, images)
        elif self.augmentation == "flip":
            images = random_flip(key, images)
        return prepare_batch(self.dataset, Split(images, data.labels[indices]))

    def initial_batch(self) -> Batch:
        """Take the first images."""
        return prepare_batch(self.dataset, self.first_examples(INITIAL_EXAMPLES))

    def network(
        self,
        network_state: PyTree,
        step: Int[Array, ""],
        dropout_key: PRNGKeyArray,
        call_arguments: Mapping[str, Any],
    ) -> NetworkFunction:
        """Build the network of one training step."""
        del step
        return make_network(self.model, network_state, dropout_key, call_arguments)

    def loss_fn(
        self, network: NetworkFunction, method: Sequence[Regularizer], batch: Batch
    ) -> LossFunction:
        """Build the training loss of one batch."""
        return make_loss_fn(network, method, batch)

    def evaluator(self) -> "ImageEvaluator":
        """Prepare the evaluation."""
        return ImageEvaluator(self.model, self.dataset)

    def first_examples(self, number: int) -> Split:
        """Take the first images."""
        return Split(*(array[:number] for array in self.dataset.train))

    def examples(self, number: int) -> Split:
        """Take the first images."""
        return self.first_examples(number)

    def evaluation_loss(
        self, params: PyTree, examples: Split, network_state: PyTree
    ) -> Float[Array, ""]:
        """Compute the mean cross-entropy with BatchNorm's running statistics."""
        logits: Any = self.model.apply(
            {"params": params, "batch_stats": network_state},
            normalise(examples.images, self.dataset.mean, self.dataset.standard_deviation),
            train=False,
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(
            seht.outputs(logits), examples.labels
        )
        return jnp.mean(losses)

    def check_fit(self, method: Sequence[Regularizer]) -> None:
        """Check that batch and methods can be used.

        Args:
            method: The regularizers.

        Raises:
            SettingError: If the batch is larger than the training set, or a method can not work on
                images of this size.
        """
        if self.steps_per_epoch < 1:
            raise SettingError(
                f"--batch-size {self.batch_size} is larger than the {self.size('train')} training "
                "images"
            )

        def augment() -> Batch:
            batch = prepare_batch(self.dataset, self.first_examples(self.batch_size))
            for part in method:
                batch = part.augment(jax.random.key(0), batch)
            return batch

        jax.eval_shape(augment)


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


def prepare_batch(dataset: Dataset, split: Split) -> Batch:
    """Normalise images, and write their labels as probabilities.

    Args:
        dataset: Statistics for normalisation, and the number of classes.
        split: Raw images and labels.

    Returns:
        The batch.
    """
    return Batch(
        normalise(split.images, dataset.mean, dataset.standard_deviation),
        jax.nn.one_hot(split.labels, dataset.num_classes),
    )


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
        return logits, updated.get("batch_stats", {})

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

    def measure(
        logits: Float[Array, "batch classes"], labels: Float[Array, "batch classes"]
    ) -> tuple[Float[Array, ""], Metrics]:
        hits = jnp.argmax(logits, axis=-1) == jnp.argmax(labels, axis=-1)
        loss = jnp.mean(optax.softmax_cross_entropy(logits, labels))
        return loss, {"accuracy": jnp.mean(hits, dtype=jnp.float32)}

    return make_training_loss(network, method, batch, measure)


class ImageEvaluator(Evaluator):
    """Evaluates a network on the splits of one data set."""

    def __init__(self, model: nn.Module, dataset: Dataset) -> None:
        """Prepare the evaluation.

        Args:
            model: The network.
            dataset: Where normalisation comes from.
        """

        def logits_of(params: PyTree, batch_stats: PyTree, split: Split) -> Any:
            return model.apply(
                {"params": params, "batch_stats": batch_stats},
                normalise(split.images, dataset.mean, dataset.standard_deviation),
                train=False,
            )

        def sums(
            params: PyTree, batch_stats: PyTree, split: Split, size: Int[Array, ""]
        ) -> Float[Array, " sums"]:
            logits = logits_of(params, batch_stats, split)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, split.labels)
            _, first = jax.lax.top_k(logits, min(5, dataset.num_classes))
            hits = first == split.labels[:, None]
            per_image = jnp.stack(
                [losses, hits[:, 0].astype(losses.dtype), jnp.any(hits, -1).astype(losses.dtype)]
            )
            return jnp.sum(per_image, axis=-1, where=jnp.arange(EVALUATION_BATCH_SIZE) < size)

        def confidence(
            params: PyTree, batch_stats: PyTree, split: Split
        ) -> tuple[Float[Array, " images"], Bool[Array, " images"]]:
            return confidence_of(logits_of(params, batch_stats, split), split.labels)

        def sample(
            curvature: Curvature,
            params: PyTree,
            batch_stats: PyTree,
            split: Split,
            key: PRNGKeyArray,
        ) -> Float[Array, ""]:
            network = make_network(model, batch_stats, key)
            loss_fn = make_loss_fn(network, (), prepare_batch(dataset, split))
            return trace_sample(loss_fn, params, key, curvature)

        self._sums = jax.jit(sums)
        self._confidence = jax.jit(confidence)
        self._sample = jax.jit(sample, static_argnums=0)

    def evaluate(self, params: PyTree, network_state: PyTree, split: Split) -> Evaluation:
        """Compute mean loss and accuracies with the running statistics.

        Args:
            params: The network's parameters.
            network_state: BatchNorm's running statistics.
            split: Images and labels, any number.

        Returns:
            Means over the split; nan for an empty one.
        """
        size = len(split.labels)
        if size == 0:
            return Evaluation(*[float("nan")] * 3)
        total = np.zeros(3)
        for part, part_size in _parts(split):
            total += np.asarray(self._sums(params, network_state, part, part_size))
        return Evaluation(*(total / size).tolist())

    def confidences(
        self, params: PyTree, network_state: PyTree, split: Split
    ) -> tuple[np.ndarray, np.ndarray]:
        """Look at the likeliest class of each image, with the running statistics."""
        confidences, hits = [], []
        for part, part_size in _parts(split):
            confidence, hit = self._confidence(params, network_state, part)
            confidences.append(np.asarray(confidence[:part_size]))
            hits.append(np.asarray(hit[:part_size]))
        return np.concatenate(confidences), np.concatenate(hits)

    def trace(
        self,
        params: PyTree,
        network_state: PyTree,
        split: Split,
        key: PRNGKeyArray,
        num_probes: int,
        curvature: Curvature = "hessian",
    ) -> tuple[float, float]:
        """Estimate tr(H), or tr(G), on a split.

        BatchNorm is in training mode, that is, it uses the statistics of the split itself, and its
        running statistics have no influence.
        """
        return estimate_trace(
            lambda probe_key: self._sample(curvature, params, network_state, split, probe_key),
            key,
            num_probes,
        )


def _parts(split: Split) -> Iterator[tuple[Split, int]]:
    """Cut a split into parts of one shape, which is compiled once whatever the split's size is.

    Yields:
        A part, filled up, and how many images it has.
    """
    for start in range(0, len(split.labels), EVALUATION_BATCH_SIZE):
        part = Split(*(array[start : start + EVALUATION_BATCH_SIZE] for array in split))
        yield jax.tree.map(_fill_up, part), len(part.labels)


def _fill_up(array: Array) -> Array:
    missing = EVALUATION_BATCH_SIZE - array.shape[0]
    return jnp.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1))
