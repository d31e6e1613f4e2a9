"""What a run consists of between two steps, and the optimizer."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PRNGKeyArray, PyTree

import seht_jax as seht
from experiments.config import OptimizerConfig
from experiments.errors import SettingError
from experiments.regularizers import Regularizer
from experiments.tasks.base import Task
from experiments.training.plateau import scale_on_plateau

# Zagoruyko and Komodakis: at epochs 60, 120 and 160 of 200.
DROPS_AT, DROP_FACTOR = (0.3, 0.6, 0.8), 0.2


class TrainState(NamedTuple):
    """Everything that the next step depends on, apart from the data.

    Attributes:
        params: The network's parameters.
        network_state: What the network carries from step to step: BatchNorm's running statistics,
            or the last states of recurrent layers.
        opt_state: State of the optimizer.
        step: Number of steps taken.
        key: PRNG key of the whole run; a step's own keys are folded from it and ``step``.
    """

    params: PyTree
    network_state: PyTree
    opt_state: PyTree
    step: Int[Array, ""]
    key: PRNGKeyArray


def make_optimizer(
    config: OptimizerConfig, num_steps: int, method: Sequence[Regularizer] = ()
) -> optax.GradientTransformationExtraArgs:
    """Build the optimizer.

    Args:
        config: Its settings.
        num_steps: Steps of the run, over which the learning rate falls; the weights change after
            each ``accumulate`` of them.
        method: The regularizers, each of which may change the settings and wrap the optimizer.

    Returns:
        The transformation of gradients.
    """
    return build_optimizer(with_methods(config, method), num_steps, method)


def build_optimizer(
    config: OptimizerConfig, num_steps: int, method: Sequence[Regularizer] = ()
) -> optax.GradientTransformationExtraArgs:
    """Build the optimizer from settings that the methods have changed already.

    Args:
        config: What `with_methods` returned; learning rate and decay may be traced.
        num_steps: As for `make_optimizer`.
        method: As for `make_optimizer`.

    Returns:
        The transformation of gradients.
    """
    schedule = make_schedule(config, num_steps // config.accumulate)
    tx = optax.chain(
        # The order is PyTorch's: the norm of the loss's gradient is clipped, not of the decay.
        optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity(),
        *_algorithm(config, schedule),
        *([scale_on_plateau()] if config.schedule == "plateau" else []),
    )
    for part in method:
        tx = part.optimizer(tx)
    if config.accumulate > 1:
        tx = optax.MultiSteps(tx, config.accumulate).gradient_transformation()
    return _with_standard_promotion(tx)


def check_accumulation(
    config: OptimizerConfig, num_steps: int, method: Sequence[Regularizer]
) -> None:
    """Check that gradients can be averaged over as many steps as is wanted.

    Args:
        config: Settings of the optimizer.
        num_steps: Steps of the run.
        method: The regularizers.

    Raises:
        SettingError: If the weights would never change, or a method needs the gradient of one step.
    """
    if config.accumulate > num_steps:
        raise SettingError(
            f"--accumulate must be at most the {num_steps} steps of the run, or the weights never "
            f"change, not {config.accumulate}"
        )
    for part in method:
        if config.accumulate > 1 and part.why_not_accumulate:
            raise SettingError(
                f"the method {part.name} can not be used with --accumulate {config.accumulate}: "
                f"{part.why_not_accumulate}"
            )


def with_methods(config: OptimizerConfig, method: Sequence[Regularizer]) -> OptimizerConfig:
    """Let the methods change the settings of the optimizer.

    Args:
        config: The settings.
        method: The regularizers.

    Returns:
        The settings that the optimizer is built from.
    """
    settings = dataclasses.asdict(config)
    for part in method:
        settings = part.optimizer_settings(**settings)
    return OptimizerConfig(**settings)


def make_schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """Build the learning rate as a function of the number of steps taken.

    Args:
        config: Settings of the optimizer.
        num_steps: Steps of the run.

    Returns:
        The schedule; that of "plateau" is constant, and the optimizer scales its updates.
    """
    if config.schedule == "plateau":
        return optax.constant_schedule(config.learning_rate)
    if config.schedule == "cosine":
        return optax.cosine_decay_schedule(config.learning_rate, num_steps)
    drops = {round(share * num_steps): DROP_FACTOR for share in DROPS_AT}
    return optax.piecewise_constant_schedule(config.learning_rate, drops)


def _algorithm(
    config: OptimizerConfig, schedule: optax.Schedule
) -> tuple[optax.GradientTransformation, ...]:
    """Choose what makes a step of a gradient, with the decay of the weights."""
    decay = optax.add_decayed_weights(config.weight_decay)
    if config.algorithm == "adahessian":
        rescaled = _with_key_of_the_step(
            seht.scale_by_adahessian(jax.random.key(0), b1=config.momentum)
        )
        return rescaled, decay, optax.scale_by_learning_rate(schedule)
    if config.algorithm == "adam":
        return decay, optax.adam(schedule, config.momentum)
    # For None `optax.sgd` keeps no buffer, for 0 it does.
    return decay, optax.sgd(schedule, config.momentum or None)


def _with_key_of_the_step(
    tx: optax.GradientTransformationExtraArgs,
) -> optax.GradientTransformationExtraArgs:
    """Put the key of the step in place of the state's, so that every run has its own probes."""

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, Any]:
        state = state._replace(key=extra_args.pop("key"))
        return tx.update(updates, state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(tx.init, update)


def _with_standard_promotion(
    tx: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Let an optimizer mix counts with floats, which strict dtype promotion refuses."""
    tx = optax.with_extra_args_support(tx)

    def update(
        updates: PyTree, state: PyTree, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, PyTree]:
        with jax.numpy_dtype_promotion("standard"):
            return tx.update(updates, state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(tx.init, update)


def init_state(
    task: Task,
    tx: optax.GradientTransformation,
    seed: int,
    method: Sequence[Regularizer] = (),
) -> TrainState:
    """Draw initial weights.

    Args:
        task: The task.
        tx: The optimizer.
        seed: Seed of the run.
        method: The regularizers, each of which may change the weights.

    Returns:
        The state before the first step.
    """
    init_key, run_key = jax.random.split(jax.random.key(seed))
    params, network_state = task.init(init_key)
    for i, part in enumerate(method):
        params = part.initial_params(jax.random.fold_in(init_key, i), params)
    return TrainState(
        params=params,
        network_state=network_state,
        opt_state=tx.init(params),
        step=jnp.zeros((), jnp.int32),
        key=run_key,
    )


def evaluation_params(method: Sequence[Regularizer], state: TrainState) -> PyTree:
    """Choose the params at which a network is evaluated.

    Args:
        method: The regularizers that it is trained with.
        state: Any state of the run.

    Returns:
        The params of the state, unless a method has others.
    """
    params = state.params
    for part in method:
        params = part.evaluation_params(params, state.opt_state)
    return params
