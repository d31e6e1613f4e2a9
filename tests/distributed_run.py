"""One process of several that train the same weights: by `test_distributed.py`.

    python tests/distributed_run.py OUT NETWORK DTYPE PORT NUM_PROCESSES PROCESS_ID

Takes 20 steps with SEHT-D and writes the weights, and how many layers each step drew, to OUT with
the process's number.
"""

import dataclasses
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments.config import DevicesConfig, ModelConfig, OptimizerConfig, TrainConfig
from experiments.data.load import load_data
from experiments.regularizers import SehtD
from experiments.training.devices import join_processes
from experiments.training.loop import build_experiment

STEPS = 20
CONFIG = TrainConfig(
    name="distributed",
    method=(SehtD(lam=1e-3, p=0.6, p_entries=0.4, num_branches=1),),
    optimizer=OptimizerConfig(learning_rate=0.1, clip_norm=0.0),
    batch_size=100,
)


def take_steps(config: TrainConfig, out: Path, dtype: str) -> None:
    """Train for some steps in a dtype, without files."""

    def as_dtype(array: jax.Array) -> jax.Array:
        return array.astype(dtype) if jnp.issubdtype(array.dtype, jnp.floating) else array

    experiment = build_experiment(config, load_data(config.data))
    state = experiment.init(0)
    parts = (state.params, state.network_state, state.opt_state)
    params, network_state, opt_state = jax.tree.map(as_dtype, parts)
    state = state._replace(params=params, network_state=network_state, opt_state=opt_state)
    state = experiment.placement.state(state)
    order = experiment.task.epoch_order(state.key, 0)
    drawn = []
    for _ in range(STEPS):
        state, metrics = experiment.train_step(state, experiment.task.train_data, order)
        drawn.append(float(metrics["layers_drawn"]))
    weights = [np.asarray(leaf) for leaf in jax.tree.leaves((state.params, state.network_state))]
    process = jax.process_index()
    np.savez(f"{out}-{process}.npz", *weights, drawn=np.array(drawn))


def main(
    out: str, network: str, dtype: str, port: str, num_processes: str, process_id: str
) -> None:
    devices = DevicesConfig()
    if int(num_processes) > 1:
        devices = DevicesConfig(
            distributed=True,
            coordinator=f"127.0.0.1:{port}",
            num_processes=int(num_processes),
            process_id=int(process_id),
        )
    model = ModelConfig(network, width=2, dtype=dtype)
    config = dataclasses.replace(CONFIG, devices=devices, model=model)
    join_processes(config.devices)
    take_steps(config, Path(out), dtype)


if __name__ == "__main__":
    main(*sys.argv[1:])
