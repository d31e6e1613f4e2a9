"""Runs of a tiny network, one of which needs no training."""

import jax

from experiments.analyse.measure import MeasureConfig
from experiments.config import ModelConfig, TrainConfig
from experiments.regularizers import GaussNewton
from experiments.training.checkpoint import Checkpoints
from experiments.training.loop import CHECKPOINTS, build_experiment
from experiments.training.run_directory import claim_run_directory, write_result

PLAIN = TrainConfig(
    name="digits",
    model=ModelConfig(width=2),
    method=(),
    epochs=1,
    batch_size=250,
    trace_examples=0,
)
METHOD = (GaussNewton(strength=0.1),)
QUICK = MeasureConfig(
    examples=40,
    batch_size=20,
    eigenvalue_products=8,
    density_probes=2,
    density_products=6,
    trace_probes=3,
    slice_directions=2,
    slice_points=5,
)


def write_run(config, data, result, factor):
    """Write a finished run of which no step was made."""
    settings = claim_run_directory(config.run_dir, config, data)
    state = build_experiment(config, data).init(config.seed)
    state = state._replace(params=jax.tree.map(lambda leaf: factor * leaf, state.params))
    with Checkpoints(config.run_dir / CHECKPOINTS, settings=settings) as checkpoints:
        checkpoints.save(state)
    write_result(config.run_dir, result)
