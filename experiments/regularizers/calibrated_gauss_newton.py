"""A strength that is measured before the first step."""

import dataclasses
import math
from collections.abc import Callable
from typing import ClassVar

import jax

import seht_jax as seht
from experiments.errors import ExperimentError
from experiments.regularizers.base import InitialNetwork, Regularizer
from experiments.regularizers.seht import SehtD, SehtH

CALIBRATION_PROBES = 16


@dataclasses.dataclass(frozen=True)
class CalibratedGaussNewton(Regularizer):
    r"""The trace of the Gauss-Newton matrix, with a strength that fits the network.

    $$L + \lambda \operatorname{tr} G, \qquad
        \lambda = \frac{\text{initial penalty}}{\operatorname{tr} G_0}$$

    with the trace at the initial weights of seed 0, so that all seeds of a network have one lambda.
    The best lambda differs by two orders of magnitude from network to network, the best initial
    penalty by one. Unlike `GaussNewton` it goes with SEHT-D; where the trace collapses by itself
    after the first steps it does next to nothing. `docs/evidence/strength.md` has the tables.

    Attributes:
        initial_penalty: The penalty that the full lambda has before the first step, in the unit of
            the loss.
        rise: Share of the steps over which lambda rises in a line from 0: at full strength from the
            beginning, the penalty slows down the first, fast part of the training.
        p: As for SEHT-D, for both layers and entries, and rescaled; `None` is SEHT-H.
        num_probes: Random directions per step.
        probe_batch: See `SehtH`.
        one_in: See `SehtH`.
        every: See `SehtH`; lambda rises as it does without.
    """

    name: ClassVar[str] = "gauss-newton-calibrated"

    initial_penalty: float = 0.01
    rise: float = 1.0
    p: float | None = None
    num_probes: int = 1
    probe_batch: int | None = None
    one_in: int = 1
    every: int = 1

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: If one is out of its range.
        """
        if not 0 < self.initial_penalty < math.inf:
            raise ValueError(
                f"initial_penalty must be finite and above 0, not {self.initial_penalty}"
            )
        if not 0 <= self.rise <= 1:
            raise ValueError(f"rise must be in [0, 1], not {self.rise}")
        self._with_strength(0.0, 0)

    def at_start(self, initial: Callable[[], InitialNetwork]) -> Regularizer:
        """Measure the trace, and choose lambda.

        Args:
            initial: Gives the network before the first step.

        Returns:
            SEHT-H or SEHT-D in the Gauss-Newton form.

        Raises:
            ExperimentError: If the trace is 0 or not finite.
        """
        loss_fn, params, key, num_steps = initial()
        estimate = seht.hutchinson_trace(
            loss_fn,
            key,
            num_probes=CALIBRATION_PROBES,
            has_aux=True,
            curvature="gauss_newton",
        )
        trace = float(jax.jit(estimate)(params).mean)
        if not 0 < trace < math.inf:
            raise ExperimentError(
                f"the trace of the Gauss-Newton matrix before the first step is {trace}, from "
                "which no strength follows; give one: seht-h:curvature=gauss_newton,lam=LAMBDA"
            )
        lam = self.initial_penalty / trace
        return self._with_strength(lam, round(self.rise * num_steps))

    def _with_strength(self, lam: float, warmup_steps: int) -> Regularizer:
        settings = {
            "lam": lam,
            "warmup_steps": warmup_steps,
            "num_probes": self.num_probes,
            "probe_batch": self.probe_batch,
            "curvature": "gauss_newton",
            "one_in": self.one_in,
            "every": self.every,
        }
        return SehtH(**settings) if self.p is None else SehtD(**settings, p=self.p)
