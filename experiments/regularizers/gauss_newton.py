"""The form of the penalty to begin with."""

import dataclasses
import math
from collections.abc import Callable
from typing import ClassVar

from experiments.regularizers.base import InitialNetwork, Regularizer
from experiments.regularizers.seht import SehtH


@dataclasses.dataclass(frozen=True)
class GaussNewton(Regularizer):
    r"""The trace of the Gauss-Newton matrix, with a strength that is free of the trace's scale.

    The gradient that is added to that of the loss L is

    $$\lambda L^{1/4}\, \nabla \log t$$

    where t is the estimate of tr(G) (`scale_free` in `seht.regularize`), and lambda rises with the
    square of the steps. One lambda serves networks whose traces differ by orders of magnitude;
    `docs/evidence/strength.md` has the tables.

    Attributes:
        strength: The full lambda.
        rise: Share of the steps over which lambda rises from 0: at full strength from the
            beginning, the penalty slows down the first, fast part of the training.
        num_probes: Random directions per step.
        probe_batch: See `SehtH`; it must hold all of them.
        one_in: See `SehtH`.
        every: See `SehtH`; lambda rises as it does without.
    """

    name: ClassVar[str] = "gauss-newton"

    strength: float = 0.06
    rise: float = 1.0
    num_probes: int = 1
    probe_batch: int | None = None
    one_in: int = 1
    every: int = 1

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: If one is out of its range.
        """
        if not 0 < self.strength < math.inf:
            raise ValueError(f"strength must be finite and above 0, not {self.strength}")
        if not 0 <= self.rise <= 1:
            raise ValueError(f"rise must be in [0, 1], not {self.rise}")
        self._rising_over(0)

    def at_start(self, initial: Callable[[], InitialNetwork]) -> Regularizer:
        """Find out over how many steps lambda rises.

        Args:
            initial: Gives the network before the first step.

        Returns:
            SEHT-H in the Gauss-Newton form.
        """
        return self._rising_over(round(self.rise * initial().num_steps))

    def _rising_over(self, num_steps: int) -> Regularizer:
        return SehtH(
            lam=self.strength,
            warmup_steps=num_steps,
            warmup_power=2,
            num_probes=self.num_probes,
            probe_batch=self.probe_batch,
            curvature="gauss_newton",
            scale_free=True,
            one_in=self.one_in,
            every=self.every,
        )
