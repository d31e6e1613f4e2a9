"""One training step, from the data on the device to the next state, in one jitted function."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from experiments.regularizers import Regularizer, StepInputs
from experiments.tasks.base import (
    DATA_STREAM,
    DROPOUT_STREAM,
    METHOD_STREAM,
    OPTIMIZER_STREAM,
    Metrics,
    Task,
)
from experiments.training.state import TrainState

TrainStep: TypeAlias = Callable[[TrainState, PyTree, PyTree], tuple[TrainState, Metrics]]


def make_train_step(
    task: Task,
    tx: optax.GradientTransformationExtraArgs,
    method: Sequence[Regularizer],
) -> TrainStep:
    """Build the jitted step.

    Args:
        task: Data, network and loss.
        tx: The optimizer.
        method: The regularizers; their hooks are applied in this order.

    Returns:
        A function ``(state, train_data, order) -> (state, metrics)``, with the task's `train_data`
        and `epoch_order`; the step takes the batch that belongs to its number. The metrics are the
        loss's, those that methods add, ``objective`` (what was differentiated) and
        ``gradient_norm``.
    """

    def train_step(state: TrainState, data: PyTree, order: PyTree) -> tuple[TrainState, Metrics]:
        step_key = jax.random.fold_in(state.key, state.step)
        data_key, dropout_key, method_key, optimizer_key = (
            jax.random.fold_in(step_key, stream)
            for stream in (DATA_STREAM, DROPOUT_STREAM, METHOD_STREAM, OPTIMIZER_STREAM)
        )
        batch = task.batch(data, order, state.step, data_key)
        method_keys = [
            jax.random.split(jax.random.fold_in(method_key, i)) for i in range(len(method))
        ]
        for part, (augment_key, _) in zip(method, method_keys, strict=True):
            batch = part.augment(augment_key, batch)
        call_arguments = {}
        for part in method:
            call_arguments |= part.call_arguments(state.step)
        network = task.network(state.network_state, state.step, dropout_key, call_arguments)
        loss_fn = task.loss_fn(network, method, batch)
        for part, (_, objective_key) in zip(method, method_keys, strict=True):
            inputs = StepInputs(objective_key, state.step, batch, network, task.layers)
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
        }
        next_state = TrainState(
            params=optax.apply_updates(state.params, updates),
            network_state=outputs.network_state,
            opt_state=opt_state,
            step=state.step + jnp.ones((), jnp.int32),
            key=state.key,
        )
        return next_state, metrics

    return jax.jit(train_step)
