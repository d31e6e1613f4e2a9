"""Stochastic estimators of the Hessian trace as a penalty: SEHT-H and SEHT-D."""

import dataclasses
import math
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

import seht_jax as seht
from experiments.regularizers.base import LossFunction, Outputs, Regularizer
from seht_jax.penalty import check_curvature, make_penalty


@dataclasses.dataclass(frozen=True)
class SehtH(Regularizer):
    """Hutchinson's estimator over all parameters (the paper's Algorithm 1).

    Attributes:
        lam: Strength lambda of the penalty.
        num_probes: Random directions per step.
        warmup_steps: Steps over which the strength rises linearly from 0. At initialisation the
            curvature is large and of both signs, and a full-strength penalty can run off.
        curvature: "hessian", the paper's, or "gauss_newton", which is never negative.
    """

    name: ClassVar[str] = "seht-h"

    lam: float = 1e-5
    num_probes: int = 1
    warmup_steps: int = 0
    curvature: str = "hessian"

    def __post_init__(self) -> None:
        """Check the settings, before data are loaded and a step is compiled.

        Raises:
            ValueError: If one is out of its range.
        """
        if not math.isfinite(self.lam):
            raise ValueError(f"lam must be finite, not {self.lam}")
        make_penalty(
            self.probability,
            num_probes=self.num_probes,
            curvature=self.curvature,
            layers=seht.module_layer,
            rescale=self.rescaled,
        )
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps must be at least 0, not {self.warmup_steps}")

    @property
    def probability(self) -> tuple[float, float] | None:
        """What `seht.regularize` calls ``p``: `None` for SEHT-H."""
        return None

    @property
    def rescaled(self) -> bool:
        """Whether the estimate is divided by its probability."""
        return False

    def objective(
        self, loss_fn: LossFunction, key: PRNGKeyArray, step: Int[Array, ""]
    ) -> LossFunction:
        """Add lambda times the estimate of tr(H); logs the estimate and the layers drawn.

        Args:
            loss_fn: The loss.
            key: PRNG key of this step.
            step: Number of steps taken so far.

        Returns:
            The penalised loss.
        """
        penalised = seht.regularize(
            loss_fn,
            key,
            p=self.probability,
            lam=self._strength(step),
            num_probes=self.num_probes,
            has_aux=True,
            curvature=check_curvature(self.curvature),
            rescale=self.rescaled,
            with_estimate=True,
        )

        def with_metrics(params: PyTree) -> tuple[Float[Array, ""], Outputs]:
            loss, (outputs, estimate) = penalised(params)
            return loss, outputs.with_metrics(
                trace_estimate=estimate.mean,
                layers_drawn=estimate.layers_drawn.astype(jnp.float32),
            )

        return with_metrics

    def _strength(self, step: Int[Array, ""]) -> Float[Array, ""]:
        progress = (step.astype(jnp.float32) + 1) / max(self.warmup_steps, 1)
        return self.lam * jnp.minimum(progress, 1.0)


@dataclasses.dataclass(frozen=True)
class SehtD(SehtH):
    """The estimator with dropped layers and entries (the paper's Algorithm 2).

    Attributes:
        p: Probability that a layer is drawn.
        p_entries: Probability of +1, and of -1, of an entry of a drawn layer; `None` is ``p``, as
            in the paper.
        rescale: Whether the estimate is divided by ``p * 2 * p_entries``, so that ``lam`` means
            the same as for SEHT-H. The paper does not.
    """

    name: ClassVar[str] = "seht-d"

    p: float = 0.05
    p_entries: float | None = None
    rescale: bool = True

    @property
    def probability(self) -> tuple[float, float]:
        """What `seht.regularize` calls ``p``: the pair for layers and entries."""
        return (self.p, self.p if self.p_entries is None else self.p_entries)

    @property
    def rescaled(self) -> bool:
        """Whether the estimate is divided by its probability."""
        return self.rescale
