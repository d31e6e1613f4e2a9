"""One training step, from the data on the device to the next state, in one jitted function."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, PyTree

from experiments.config import OnDivergence
from experiments.regularizers import LossFunction, Regularizer, StepInputs
from experiments.tasks.base import (
    DATA_STREAM,
    DROPOUT_STREAM,
    METHOD_STREAM,
    OPTIMIZER_STREAM,
    Metrics,
    Task,
)
from experiments.training.devices import ONE_DEVICE, Placement
from experiments.training.state import TrainState

TrainStep: TypeAlias = Callable[[TrainState, PyTree, PyTree], tuple[TrainState, Metrics]]


def make_train_step(
    task: Task,
    tx: optax.GradientTransformationExtraArgs,
    method: Sequence[Regularizer],
    on_divergence: OnDivergence = "stop",
    placement: Placement = ONE_DEVICE,
) -> TrainStep:
    """Build the jitted step.

    A step whose loss, gradient, estimate or update is no finite number changes no weights, no state
    of the optimizer and nothing that the network carries on. That is decided on the device: nobody
    has to look at each step.

    Args:
        task: Data, network and loss.
        tx: The optimizer.
        method: The regularizers; their hooks are applied in this order.
        on_divergence: With "skip" such a step counts, and the next one goes on to the next batch;
            else it does not, and all steps after it return the same.
        placement: Over which devices the step is spread.

    Returns:
        A function ``(state, train_data, order) -> (state, metrics)``, with the task's `train_data`
        and `epoch_order`; the step takes the batch that belongs to its number. The metrics are the
        loss's, those that methods add, ``objective`` (what was differentiated), ``gradient_norm``
        and ``update_norm``.
    """

    def train_step(state: TrainState, data: PyTree, order: PyTree) -> tuple[TrainState, Metrics]:
        step_key = jax.random.fold_in(state.key, state.step)
        data_key, dropout_key, method_key, optimizer_key = (
            jax.random.fold_in(step_key, stream)
            for stream in (DATA_STREAM, DROPOUT_STREAM, METHOD_STREAM, OPTIMIZER_STREAM)
        )
        batch = placement.batch(task.batch(data, order, state.step, data_key))
        method_keys = [
            jax.random.split(jax.random.fold_in(method_key, i)) for i in range(len(method))
        ]
        for part, (augment_key, _) in zip(method, method_keys, strict=True):
            batch = part.augment(augment_key, batch)
        batch = placement.batch(batch)
        call_arguments = {}
        for part in method:
            call_arguments |= part.call_arguments(state.step)
        network = task.network(state.network_state, state.step, dropout_key, call_arguments)
        loss_fn = task.loss_fn(network, method, batch)

        def loss_of_part(one_in: int) -> LossFunction:
            part = jax.tree.map(lambda array: array[::one_in], batch)
            carried = task.state_of_part(state.network_state, one_in)
            network = task.network(carried, state.step, dropout_key, call_arguments)
            return task.loss_fn(network, method, part)

        for part, (_, objective_key) in zip(method, method_keys, strict=True):
            inputs = StepInputs(
                objective_key, state.step, batch, network, loss_of_part, task.layers
            )
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
            layers=task.layers,
        )
        metrics = outputs.metrics | {
            "objective": objective,
            "gradient_norm": optax.tree.norm(gradients),
            "update_norm": optax.tree.norm(updates),
        }
        next_state = TrainState(
            params=optax.apply_updates(state.params, updates),
            network_state=outputs.network_state,
            opt_state=opt_state,
            step=state.step + jnp.ones((), jnp.int32),
            key=state.key,
        )
        kept = state
        if on_divergence == "skip":
            kept = state._replace(step=next_state.step)
        finite = jnp.all(jnp.stack([jnp.isfinite(metric) for metric in metrics.values()]))
        next_state = _choose(finite, next_state, kept)
        return placement.state(next_state), placement.everywhere(metrics)

    return jax.jit(train_step)


def _choose(condition: Bool[Array, ""], state: TrainState, otherwise: TrainState) -> TrainState:
    """Choose between two states of one run, whose key is the same."""

    def choose(one: Array, other: Array) -> Array:
        return jnp.where(condition, one, other)

    without_keys = (each._replace(key=None) for each in (state, otherwise))
    return jax.tree.map(choose, *without_keys)._replace(key=state.key)
