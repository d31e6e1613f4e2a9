"""Short training runs of one network and one form of the penalty, in one compiled program."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

import seht_jax as seht
from experiments.strength.forms import CALIBRATED, RISE, Losses, penalty_gradient
from experiments.strength.tasks import Task

TRACE_EXAMPLES = 256
TRACE_PROBES = 8


class Cell(NamedTuple):
    """The settings of a run.

    Attributes:
        learning_rate: The learning rate, which falls to 0 in a half cosine.
        strength: The strength of the penalty, as the form takes it.
        seed: The seed of weights, batches and probes: runs with one seed see the same batches.
    """

    learning_rate: float
    strength: float
    seed: int


class Run(NamedTuple):
    """What a run came to, or one array of each with an entry for every run.

    Attributes:
        validation_loss: Mean cross-entropy on the validation data, at the last step.
        train_loss: Mean cross-entropy over the batches of the last tenth of the steps.
        trace: Estimate of tr(G) of the loss on training data, at the last step.
        share: The penalty's gradient's norm over that of the loss gradient: the median of all
            steps.
        loss_gradient_norm: The norm of the loss gradient: the median of all steps.
        first_non_finite_step: The first step whose loss was not finite; -1 if there was none.
    """

    validation_loss: Any
    train_loss: Any
    trace: Any
    share: Any
    loss_gradient_norm: Any
    first_non_finite_step: Any


def train_cells(task: Task, form: str, cells: Sequence[Cell], num_steps: int) -> list[Run]:
    """Train one network for each cell, one after the other.

    Args:
        task: The network and its data.
        form: The form of the penalty, a key of `FORMS`.
        cells: The settings.
        num_steps: Steps of each run.

    Returns:
        The runs, in the order of the cells.
    """

    def run(cell: tuple[Array, Array, Array]) -> Run:
        return _train(task, form, num_steps, *cell)

    columns = tuple(map(jnp.asarray, zip(*cells, strict=True)))
    results = jax.device_get(jax.jit(lambda columns: jax.lax.map(run, columns))(columns))
    return [Run(*(np.asarray(column)[i].item() for column in results)) for i in range(len(cells))]


def grid(learning_rates: Sequence[float], strengths: Sequence[float], num_seeds: int) -> list[Cell]:
    """List all combinations.

    Args:
        learning_rates: Learning rates.
        strengths: Strengths.
        num_seeds: The seeds are 0, 1, ...

    Returns:
        The cells.
    """
    return list(
        itertools.starmap(Cell, itertools.product(learning_rates, strengths, range(num_seeds)))
    )


def _train(
    task: Task, form: str, num_steps: int, learning_rate: Array, strength: Array, seed: Array
) -> Run:
    key = jax.random.key(seed)
    init_key, order_key, probe_key, trace_key = jax.random.split(key, 4)
    cosine = optax.cosine_decay_schedule(1.0, num_steps)
    # Optax compares the integer count with a float, which strict dtype promotion refuses.
    tx = task.optimizer(lambda count: cosine(jnp.asarray(count, jnp.float32)))
    params, batch_stats = task.init(init_key)
    inputs, labels = task.train
    factor = 1 / _trace(task, params, batch_stats, trace_key) if form in CALIBRATED else 1.0

    def step(state: Any, number: Int[Array, ""]) -> tuple[Any, Any]:
        params, batch_stats, opt_state = state
        indices = jax.random.choice(
            jax.random.fold_in(order_key, number), len(inputs), (task.batch_size,), replace=False
        )
        batch = inputs[indices], labels[indices]

        def loss_fn(params: Any, *, train: bool = True) -> Any:
            return task.loss(params, batch_stats, batch, train=train)

        (loss, new_stats), slope = jax.value_and_grad(loss_fn, has_aux=True)(params)
        # A power of 0 is full strength from the first step on.
        rise = ((number + 1).astype(jnp.float32) / num_steps) ** RISE.get(form, 0)
        penalty = penalty_gradient(
            form,
            Losses(
                train=lambda params: loss_fn(params)[0],
                evaluation=lambda params: loss_fn(params, train=False)[0],
            ),
            params,
            slope,
            jax.random.fold_in(probe_key, number),
            strength * factor * rise,
        )
        penalty = jax.tree.map(
            lambda leaf: jnp.where(strength == 0, jnp.zeros_like(leaf), leaf), penalty
        )
        updates, opt_state = tx.update(optax.tree.add(slope, penalty), opt_state, params)
        # The schedule runs from 1 to 0, so that one program serves all learning rates.
        updates = optax.tree.scale(learning_rate, updates)
        state = optax.apply_updates(params, updates), new_stats, opt_state
        norm = optax.tree.norm(slope)
        return state, (loss, norm, optax.tree.norm(penalty) / norm)

    state, (losses, norms, shares) = jax.lax.scan(
        step, (params, batch_stats, tx.init(params)), jnp.arange(num_steps)
    )
    params, batch_stats, _ = state
    validation_loss, _ = task.loss(params, batch_stats, task.validation, train=False)
    finite = jnp.isfinite(losses)
    return Run(
        validation_loss=validation_loss,
        train_loss=jnp.mean(losses[-max(num_steps // 10, 1) :]),
        trace=_trace(task, params, batch_stats, trace_key),
        share=jnp.median(shares),
        loss_gradient_norm=jnp.median(norms),
        first_non_finite_step=jnp.where(jnp.all(finite), -1, jnp.argmin(finite)),
    )


def _trace(task: Task, params: Any, batch_stats: Any, key: Array) -> Float[Array, ""]:
    batch = tuple(array[:TRACE_EXAMPLES] for array in task.train)

    def loss_fn(params: Any) -> Float[Array, ""]:
        return task.loss(params, batch_stats, batch, train=True)[0]

    estimate = seht.hutchinson_trace(
        loss_fn, key, num_probes=TRACE_PROBES, curvature="gauss_newton"
    )
    return estimate(params).mean
