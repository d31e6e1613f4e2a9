"""Stochastic estimators of the Hessian trace as a penalty: SEHT-H and SEHT-D."""

import dataclasses
import math
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

import seht_jax as seht
from experiments.regularizers.base import LossFunction, Outputs, Regularizer, StepInputs
from seht_jax.penalty import NUM_BRANCHES, make_penalty


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
        make_penalty(**self.settings, layers=seht.module_layer)
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps must be at least 0, not {self.warmup_steps}")

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments of `seht.regularize`, by name, that do not change from step to step."""
        return {"p": None, "num_probes": self.num_probes, "curvature": self.curvature}

    def objective(self, loss_fn: LossFunction, inputs: StepInputs) -> LossFunction:
        """Add lambda times the estimate of tr(H); logs the estimate and the layers drawn.

        Args:
            loss_fn: The loss.
            inputs: Key and number of the step.

        Returns:
            The penalised loss.
        """
        penalised = seht.regularize(
            loss_fn,
            inputs.key,
            lam=self._strength(inputs.step),
            has_aux=True,
            with_estimate=True,
            **self.settings,
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
        num_branches: For how many ends of the network a program is compiled, at most.
    """

    name: ClassVar[str] = "seht-d"

    p: float = 0.05
    p_entries: float | None = None
    rescale: bool = True
    num_branches: int = NUM_BRANCHES

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments of `seht.regularize`, by name, that do not change from step to step."""
        return super().settings | {
            "p": (self.p, self.p if self.p_entries is None else self.p_entries),
            "rescale": self.rescale,
            "num_branches": self.num_branches,
        }
