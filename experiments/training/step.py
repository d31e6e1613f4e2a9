"""One training step, from the data on the device to the next state, in one jitted function."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from experiments.data.augment import crop_and_flip, normalise, random_flip
from experiments.data.dataset import Dataset, Split
from experiments.regularizers import Batch, Regularizer, StepInputs
from experiments.tasks.classification import make_loss_fn, make_network
from experiments.training.state import TrainState

Metrics: TypeAlias = dict[str, Float[Array, ""]]
TrainStep: TypeAlias = Callable[
    [TrainState, Split, Int[Array, " examples"]], tuple[TrainState, Metrics]
]

# Streams of random numbers are told apart by these, so that a method that draws more of one kind
# changes nothing in the others: plain training and SEHT see the same images at the same seed.
_ORDER_STREAM, _DATA_STREAM, _DROPOUT_STREAM, _METHOD_STREAM, _OPTIMIZER_STREAM = range(5)


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
    epoch_key = jax.random.fold_in(jax.random.fold_in(key, _ORDER_STREAM), epoch)
    return jax.random.permutation(epoch_key, labels.shape[0])


def make_train_step(
    model: nn.Module,
    tx: optax.GradientTransformationExtraArgs,
    method: Sequence[Regularizer],
    dataset: Dataset,
    *,
    batch_size: int,
    augmentation: str,
) -> TrainStep:
    """Build the jitted step.

    Args:
        model: The network.
        tx: The optimizer.
        method: The regularizers; their hooks are applied in this order.
        dataset: Statistics for normalisation, and the number of classes.
        batch_size: Images per step.
        augmentation: ``"none"``, ``"flip"`` or ``"crop-flip"``.

    Returns:
        A function ``(state, train_split, order) -> (state, metrics)``. ``order`` is a permutation
        of the images; the step takes the slice that belongs to its number. The metrics are the
        loss's, those that methods add, ``objective`` (what was differentiated) and
        ``gradient_norm``.
    """

    def load_batch(split: Split, indices: Int[Array, " batch"], key: PRNGKeyArray) -> Batch:
        images = split.images[indices]
        if augmentation == "crop-flip":
            images = crop_and_flip(key, images)
        elif augmentation == "flip":
            images = random_flip(key, images)
        return Batch(
            normalise(images, dataset.mean, dataset.standard_deviation),
            jax.nn.one_hot(split.labels[indices], dataset.num_classes),
        )

    def train_step(
        state: TrainState, split: Split, order: Int[Array, " examples"]
    ) -> tuple[TrainState, Metrics]:
        step_key = jax.random.fold_in(state.key, state.step)
        data_key, dropout_key, method_key, optimizer_key = (
            jax.random.fold_in(step_key, stream)
            for stream in (_DATA_STREAM, _DROPOUT_STREAM, _METHOD_STREAM, _OPTIMIZER_STREAM)
        )
        position = state.step % (split.labels.shape[0] // batch_size)
        indices = jax.lax.dynamic_slice(order, (position * batch_size,), (batch_size,))
        batch = load_batch(split, indices, data_key)

        method_keys = [
            jax.random.split(jax.random.fold_in(method_key, i)) for i in range(len(method))
        ]
        for part, (augment_key, _) in zip(method, method_keys, strict=True):
            batch = part.augment(augment_key, batch)
        call_arguments = {}
        for part in method:
            call_arguments |= part.call_arguments(state.step)
        network = make_network(model, state.batch_stats, dropout_key, call_arguments)
        loss_fn = make_loss_fn(network, method, batch)
        for part, (_, objective_key) in zip(method, method_keys, strict=True):
            inputs = StepInputs(objective_key, state.step, batch, network)
            loss_fn = part.objective(loss_fn, inputs)

        def gradient_at(params: PyTree, _: Any) -> PyTree:
            return jax.grad(loss_fn, has_aux=True)(params)[0]

        gradient_fn = jax.value_and_grad(loss_fn, has_aux=True)
        (objective, outputs), gradients = gradient_fn(state.params)
        updates, opt_state = tx.update(
            gradients,
            state.opt_state,
            state.params,
            value_fn=lambda params: loss_fn(params)[0],
            grad_fn=gradient_at,
            key=optimizer_key,
        )
        metrics = outputs.metrics | {
            "objective": objective,
            "gradient_norm": optax.tree.norm(gradients),
        }
        next_state = TrainState(
            params=optax.apply_updates(state.params, updates),
            batch_stats=outputs.batch_stats,
            opt_state=opt_state,
            step=state.step + jnp.ones((), jnp.int32),
            key=state.key,
        )
        return next_state, metrics

    return jax.jit(train_step)
