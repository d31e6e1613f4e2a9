"""Checkpoints, those of earlier versions included."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from experiments.training.checkpoint import Best, Checkpoints
from experiments.training.state import TrainState

STATE = TrainState(
    params={"w": jnp.arange(3.0)},
    network_state={"mean": jnp.ones(2)},
    opt_state=(jnp.zeros(3), ()),
    step=jnp.asarray(7, jnp.int32),
    key=jax.random.key(5),
)
BEST = Best(jnp.asarray(2, jnp.int32), jnp.asarray(1.5), {"w": jnp.ones(3)}, {"mean": jnp.zeros(2)})


class Earlier(NamedTuple):
    """The state, as it was when there were images alone."""

    params: Any
    batch_stats: Any
    opt_state: Any
    step: Any
    key: Any


def like(tree):
    return jax.tree.map(jnp.zeros_like, tree)


def blank():
    return like(STATE._replace(key=0))._replace(key=jax.random.key(0))


def check(found):
    chex.assert_trees_all_equal(
        found._replace(key=jax.random.key_data(found.key)),
        STATE._replace(key=jax.random.key_data(STATE.key)),
    )


def test_a_state_is_read_back(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(STATE)
        check(checkpoints.restore(blank()))


def test_the_best_epoch_is_read_back_with_it(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(STATE, BEST)
        found, best = checkpoints.restore_with_best(blank(), like(BEST))
    check(found)
    chex.assert_trees_all_equal(best, BEST)


def test_a_checkpoint_of_an_earlier_version_is_read(tmp_path):
    options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False)
    with ocp.CheckpointManager(tmp_path, options=options) as manager:
        earlier = Earlier(*STATE._replace(key=jax.random.key_data(STATE.key)))
        manager.save(7, args=ocp.args.StandardSave(earlier))
    with Checkpoints(tmp_path) as checkpoints:
        check(checkpoints.restore(blank()))
