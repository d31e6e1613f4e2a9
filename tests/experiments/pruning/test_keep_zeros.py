"""Weights that are zero stay zero, whatever the optimizer is, and the others are trained."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from analysed_runs import PLAIN

from experiments.config import OptimizerConfig
from experiments.pruning.keep_zeros import KeepZeros
from experiments.pruning.masks import choose_fates, prune
from experiments.pruning.sensitivity import chance, convolutions
from experiments.regularizers import Lookahead
from experiments.training.loop import build_experiment
from experiments.training.state import make_optimizer

STEPS = 6
PARAMS = {"kernel": jnp.array([[1.0, 0.0], [0.0, -2.0]]), "bias": jnp.array([0.0, 1.0])}
GRADIENTS = {
    name: np.random.default_rng(0).normal(size=(STEPS, *leaf.shape)).astype(np.float32)
    for name, leaf in PARAMS.items()
}


def curved(params):
    return sum(jnp.sum(jnp.cos(leaf)) for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(
    ("config", "method"),
    [
        (OptimizerConfig(), ()),
        (OptimizerConfig(clip_norm=0, momentum=0, weight_decay=0.1), ()),
        (OptimizerConfig(algorithm="adam"), ()),
        (OptimizerConfig(algorithm="adahessian"), ()),
        (OptimizerConfig(accumulate=2), ()),
        (OptimizerConfig(), (Lookahead(sync_period=2),)),
    ],
    ids=["sgd", "no-momentum", "adam", "adahessian", "accumulate", "lookahead"],
)
def test_zeros_stay_and_others_move(config, method):
    tx = make_optimizer(config, STEPS, (KeepZeros(), *method))

    def step(carry, gradients):
        params, opt_state = carry
        updates, opt_state = tx.update(
            gradients, opt_state, params, value_fn=curved, key=jax.random.key(0)
        )
        return (jax.tree.map(jnp.add, params, updates), opt_state), None

    @jax.jit
    def train(params, gradients):
        (params, opt_state), _ = jax.lax.scan(step, (params, tx.init(params)), gradients)
        for part in method:
            params = part.evaluation_params(params, opt_state)
        return params

    trained = train(PARAMS, GRADIENTS)
    for name, leaf in PARAMS.items():
        np.testing.assert_array_equal(trained[name] == 0, leaf == 0)
        assert not np.any((trained[name] == leaf) & (leaf != 0))


def test_the_gradient_is_clipped_as_that_of_a_network_without_the_zeros():
    tx = make_optimizer(OptimizerConfig(weight_decay=0, momentum=0), STEPS, (KeepZeros(),))
    gradients = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 2.0), PARAMS)
    updates, _ = jax.jit(tx.update)(gradients, tx.init(PARAMS), PARAMS)
    norm = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(updates)))
    assert norm == pytest.approx(OptimizerConfig().learning_rate, rel=1e-5)


def test_a_gradient_that_is_not_finite_does_not_move_zeros():
    tx = KeepZeros().optimizer(make_optimizer(OptimizerConfig(clip_norm=0), STEPS))
    gradients = jax.tree.map(lambda leaf: jnp.full(leaf.shape, jnp.nan), PARAMS)
    updates, _ = jax.jit(tx.update)(gradients, tx.init(PARAMS), PARAMS)
    np.testing.assert_array_equal(updates["kernel"] == 0, PARAMS["kernel"] == 0)


def test_a_pruned_network_is_trained_by_the_trainer_and_stays_pruned(digits):
    experiment = build_experiment(dataclasses.replace(PLAIN, method=(KeepZeros(),)), digits)
    state = experiment.init(0)
    kernels = convolutions(state.params)
    params = prune(state.params, choose_fates(chance(0, kernels), kernels, 0.5, 0.3))
    state = state._replace(params=params, opt_state=experiment.tx.init(params))
    (*_, (trained, _)) = experiment.run(state)
    assert int(trained.step) == experiment.num_steps > 1
    num_zeros = 0
    for name, kernel in convolutions(params).items():
        is_zero = np.asarray(kernel == 0)
        num_zeros += is_zero.sum()
        np.testing.assert_array_equal(convolutions(trained.params)[name] == 0, is_zero)
    assert num_zeros >= 0.5 * sum(kernel.size for kernel in kernels.values())
