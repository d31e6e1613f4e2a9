"""Stochastic estimators of the Hessian trace as a penalty: SEHT-H and SEHT-D."""

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

import seht_jax as seht
from experiments.regularizers.base import LossFunction, Outputs, Regularizer, StepInputs
from seht_jax.contribution import make_contribution
from seht_jax.penalty import NUM_BRANCHES, check_count, check_curvature, make_penalty
from seht_jax.probes import LayerFunction


@dataclasses.dataclass(frozen=True)
class SehtH(Regularizer):
    """Hutchinson's estimator over all parameters (the paper's Algorithm 1).

    Attributes:
        lam: Strength lambda of the penalty.
        num_probes: Random directions per step.
        warmup_steps: Steps over which the strength rises from 0. At initialisation the curvature
            is large and of both signs, and a full-strength penalty can run off.
        warmup_power: The power of the steps by which it rises: 1 is a line, 2 a parabola.
        curvature: "hessian", the paper's, or "gauss_newton", which is never negative.
        probe_batch: How many directions are propagated at once, at most: more are faster, and take
            more memory and longer to compile; `None` is the default of `seht.regularize`.
        scale_free: Whether lambda does not depend on the trace's scale; see `seht.regularize`.
        one_in: The curvature is that of one in so many examples of the batch, taken as a batch of
            its own: BatchNorm normalises with the statistics of that part, dropout drops other
            units, and the loss and the running statistics stay those of the whole batch.
        every: The penalty is added on every so-many-th step, and the others are plain ones (lazy
            regularisation). The strength is not raised to make up for it.
        bound: A bound on what lambda multiplies, in the unit of the estimate; `None` is none. See
            `seht.regularize`.
    """

    name: ClassVar[str] = "seht-h"

    lam: float = 1e-5
    num_probes: int = 1
    warmup_steps: int = 0
    curvature: str = "hessian"
    probe_batch: int | None = None
    scale_free: bool = False
    warmup_power: int = 1
    one_in: int = 1
    every: int = 1
    bound: float | None = None

    def __post_init__(self) -> None:
        """Check the settings, before data are loaded and a step is compiled.

        Raises:
            ValueError: If one is out of its range, or does not go with another.
        """
        if not math.isfinite(self.lam):
            raise ValueError(f"lam must be finite, not {self.lam}")
        penalty = make_penalty(**self.settings, layers=seht.module_layer)
        make_contribution(penalty, bound=self.bound, scale_free=self.scale_free)
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps must be at least 0, not {self.warmup_steps}")
        for name in ("warmup_power", "one_in"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        check_count("every", self.every)

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments of `seht.regularize`, by name, that do not change from step to step."""
        return {
            "p": None,
            "num_probes": self.num_probes,
            "curvature": self.curvature,
            "probe_batch": self.probe_batch,
        }

    def objective(self, loss_fn: LossFunction, inputs: StepInputs) -> LossFunction:
        """Add lambda times the estimate of tr(H); logs estimate, layers drawn, and lambda.

        Args:
            loss_fn: The loss.
            inputs: Key, number and layers of the step.

        Returns:
            The penalised loss.
        """
        lam = self._strength(inputs.step)
        measured = loss_fn if self.one_in == 1 else inputs.loss_of_part(self.one_in)
        penalised = seht.regularize(
            measured,
            inputs.key,
            lam=lam,
            layers=inputs.layers,
            has_aux=True,
            with_estimate=True,
            scale_free=self.scale_free,
            bound=self.bound,
            active=self.every == 1 or inputs.step % self.every == 0,
            **self.settings,
        )

        def with_metrics(params: PyTree) -> tuple[Float[Array, ""], Outputs]:
            loss, (outputs, estimate) = penalised(params)
            if measured is not loss_fn:
                penalty = loss - measured(params)[0]
                loss, outputs = loss_fn(params)
                loss += penalty
            return loss, outputs.with_metrics(
                trace_estimate=estimate.mean,
                layers_drawn=estimate.layers_drawn.astype(jnp.float32),
                strength=lam,
            )

        return with_metrics

    def _strength(self, step: Int[Array, ""]) -> Float[Array, ""]:
        progress = (step.astype(jnp.float32) + 1) / max(self.warmup_steps, 1)
        return self.lam * jnp.minimum(progress, 1.0) ** self.warmup_power


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


@dataclasses.dataclass(frozen=True)
class SehtShare(Regularizer):
    """The penalty's gradient as a share of the loss gradient: `seht.add_hessian_trace`.

    Attributes:
        relative: The share, in the global norm, before clipping and decay.
        num_probes: Random directions per step.
        every: The penalty is added on every so-many-th step.
        curvature: "gauss_newton", which is never negative, or "hessian".
        p: As for SEHT-D, for both layers and entries; `None` is SEHT-H.
        num_branches: For how many ends of the network a program is compiled, at most.
    """

    name: ClassVar[str] = "seht-share"
    why_not_accumulate: ClassVar[str] = "it compares with the gradient of one batch"

    relative: float = 0.3
    num_probes: int = 1
    every: int = 1
    curvature: str = "gauss_newton"
    p: float | None = None
    num_branches: int = NUM_BRANCHES

    def __post_init__(self) -> None:
        """Check the settings, before data are loaded and a step is compiled.

        Raises:
            ValueError: If one is out of its range.
        """
        if not 0 < self.relative < math.inf:
            raise ValueError(f"relative must be finite and above 0, not {self.relative}")
        # Not by building the transformation: its key would start JAX's devices, and a process that
        # is to meet others must not have started them when its command line is read.
        make_penalty(
            self.p,
            num_probes=self.num_probes,
            curvature=check_curvature(self.curvature),
            num_branches=self.num_branches,
            layers=seht.module_layer,
        )
        check_count("every", self.every)

    def optimizer(self, tx: optax.GradientTransformation) -> optax.GradientTransformation:
        """Add the penalty's gradient in front of the optimizer.

        Args:
            tx: The optimizer.

        Returns:
            The chain of both.
        """
        penalty = self._transformation(seht.module_layer)

        def update(
            updates: PyTree, state: Any, params: PyTree | None = None, **extra_args: Any
        ) -> tuple[PyTree, Any]:
            # The key of the step in place of the state's, so that every run has its own probes.
            state = state._replace(key=extra_args.pop("key"))
            of_the_network = self._transformation(extra_args.pop("layers", seht.module_layer))
            return of_the_network.update(updates, state, params, **extra_args)

        return optax.chain(optax.GradientTransformationExtraArgs(penalty.init, update), tx)

    def _transformation(self, layers: LayerFunction) -> optax.GradientTransformationExtraArgs:
        return seht.add_hessian_trace(
            self.p,
            math.inf,
            jax.random.key(0),
            self.every,
            relative=self.relative,
            num_probes=self.num_probes,
            layers=layers,
            curvature=check_curvature(self.curvature),
            num_branches=self.num_branches,
        )
