"""Whether the steps of a training could stay at the minimum that it ended in.

With a learning rate η, plain gradient descent contracts along an eigenvector of the Hessian with
eigenvalue μ if 0 < ημ < 2. With momentum β, and so a step that is
ω ← ω − η ∇L(ω) + β (ω − ω before), it does so if 0 < ημ < 2 (1 + β).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.analyse.measure import Measurement
from experiments.config import TrainConfig
from experiments.training.state import with_methods
from seht_jax.analysis.stability import descent_stability


class StepStability(NamedTuple):
    """The largest step of a training beside the sharpest direction at its end.

    Attributes:
        algorithm: The optimizer.
        learning_rate: The learning rate that the training began with; no later one is larger.
        momentum: Its momentum.
        sharpness: That learning rate times the largest eigenvalue.
        limit: What that must be below for plain gradient descent, 2.
        momentum_limit: What it must be below with the momentum; `None` for Adam and
            AdaHessian, whose steps are scaled by another matrix.
        max_learning_rate: Below it plain gradient descent contracts along the sharpest direction;
            0 if no eigenvalue is above 0.
    """

    algorithm: str
    learning_rate: float
    momentum: float
    sharpness: float
    limit: float
    momentum_limit: float | None
    max_learning_rate: float


def step_stability(config: TrainConfig, measured: Measurement) -> StepStability:
    """Compare the largest learning rate of a training with the curvature at its end.

    Args:
        config: The configuration of the training.
        measured: What was measured of the network.

    Returns:
        Both sides of the condition. It is that of the loss alone, on all examples: weight decay,
        the penalty and the noise of batches play no part in it.
    """
    optimizer = with_methods(config.optimizer, config.method)
    largest = measured.largest[0].value
    # The sharpest direction alone: along one of negative curvature no learning rate contracts.
    bound = descent_stability(jnp.asarray([largest]), optimizer.learning_rate)
    return StepStability(
        algorithm=optimizer.algorithm,
        learning_rate=optimizer.learning_rate,
        momentum=optimizer.momentum,
        sharpness=optimizer.learning_rate * largest,
        limit=2.0,
        momentum_limit=2 * (1 + optimizer.momentum) if optimizer.algorithm == "sgd" else None,
        max_learning_rate=float(bound.max_learning_rate),
    )


def multipliers(eigenvalue: float, learning_rates: np.ndarray) -> np.ndarray:
    """Compute by what a step of plain gradient descent multiplies a displacement, in size.

    Args:
        eigenvalue: The eigenvalue of the Hessian along the displacement.
        learning_rates: Learning rates above 0.

    Returns:
        For each of them |1 − ημ|.
    """
    radius = jax.vmap(lambda rate: descent_stability(jnp.asarray([eigenvalue]), rate)[1])
    return np.asarray(radius(jnp.asarray(learning_rates, jnp.float32)))
