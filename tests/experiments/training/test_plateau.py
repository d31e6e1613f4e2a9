"""A learning rate that follows the validation loss."""

import jax
import jax.numpy as jnp
import optax
import pytest

from experiments.config import OptimizerConfig
from experiments.regularizers import Lookahead
from experiments.training.plateau import after_epoch
from experiments.training.state import make_optimizer

CONFIG = OptimizerConfig(
    learning_rate=20.0, schedule="plateau", momentum=0.0, weight_decay=0.0, clip_norm=0.25
)
PARAMS = {"w": jnp.zeros(())}


def step_size(tx, state):
    updates, _ = tx.update({"w": jnp.asarray(0.1)}, state, PARAMS)
    return -float(updates["w"]) / 0.1


@pytest.mark.parametrize(
    ("losses", "rates"),
    [
        ([5.0, 4.0, 3.0], [20.0, 20.0, 20.0]),
        ([5.0, 5.0, 4.0], [20.0, 5.0, 5.0]),
        ([5.0, 6.0, 5.5, 4.0], [20.0, 5.0, 1.25, 1.25]),
        ([5.0, float("nan"), 4.0], [20.0, 5.0, 5.0]),
    ],
)
def test_it_is_divided_by_4_unless_the_loss_is_the_lowest_so_far(losses, rates):
    tx = make_optimizer(CONFIG, num_steps=100)
    state = tx.init(PARAMS)
    assert step_size(tx, state) == pytest.approx(20.0)
    for loss, rate in zip(losses, rates, strict=True):
        state = after_epoch(state, loss)
        assert step_size(tx, state) == pytest.approx(rate)


def test_the_state_keeps_the_types_with_which_a_step_is_compiled():
    state = make_optimizer(CONFIG, num_steps=100).init(PARAMS)
    for next_state in (after_epoch(state, 5.0), after_epoch(after_epoch(state, 5.0), 6.0)):
        assert jax.tree.map(jax.typeof, next_state) == jax.tree.map(jax.typeof, state)


def test_it_is_found_inside_a_wrapper():
    tx = make_optimizer(CONFIG, 100, (Lookahead(),))
    state = after_epoch(after_epoch(tx.init(PARAMS), 1.0), 2.0)
    updates, _ = tx.update({"w": jnp.asarray(0.1)}, state, PARAMS)
    assert float(updates["w"]) == pytest.approx(-0.5)


def test_the_state_of_another_schedule_does_not_change():
    state = make_optimizer(OptimizerConfig(), 100).init(PARAMS)
    for before, after in zip(
        jax.tree.leaves(state), jax.tree.leaves(after_epoch(state, 1.0)), strict=True
    ):
        assert before is after


def test_gradients_are_clipped_before_they_are_scaled():
    tx = make_optimizer(CONFIG, 100)
    updates, _ = tx.update({"w": jnp.asarray(1000.0)}, tx.init(PARAMS), PARAMS)
    assert float(optax.tree.norm(updates)) == pytest.approx(20.0 * 0.25)
