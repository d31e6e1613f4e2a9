"""Regularization of the Hessian's trace, of the full network or of its middle half."""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

import seht_jax as seht
from experiments.regularizers.base import LossFunction, Outputs, Regularizer, StepInputs
from seht_jax.probes import LayerFunction


@dataclasses.dataclass(frozen=True)
class SankarFull(Regularizer):
    r"""Hutchinson's estimate of the Hessian's trace, added to the loss every so many steps.

    $$L + \frac{\gamma}{K} \sum_{k=1}^{K} v_k^T H v_k$$

    Sankar et al., *A Deeper Look at the Hessian Eigenspectrum of Deep Neural Networks and its
    Applications to Regularization* (2021), with the interval and the number of probes of the
    authors' code (`yashkhasbage25/HTR`). In the steps between nothing is added, and the strength
    is not raised to make up for it: on average it is gamma / freq.

    Probes are Rademacher vectors, as in the paper. The code draws Gaussian ones, which have the
    same mean and a larger variance, 2 |H|_F^2 in place of 2 (|H|_F^2 - sum of H_ii^2); they are
    left out. BatchNorm is in training mode in every step; the code leaves it in evaluation mode
    from the second epoch on.

    Attributes:
        gamma: Strength of the penalty; the paper's for ResNet-18 on CIFAR-10 is the default.
        num_probes: Random directions K.
        freq: A penalised step comes every so many steps.
        start: The first step that may be penalised; the paper starts after 10 epochs of 40.
    """

    name: ClassVar[str] = "sankar-full"

    gamma: float = 1e-6
    num_probes: int = 3
    freq: int = 50
    start: int = 0

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: If one is out of its range.
        """
        if not (math.isfinite(self.gamma) and self.gamma >= 0):
            raise ValueError(f"gamma must be at least 0 and finite, not {self.gamma}")
        for name, minimum in {"num_probes": 1, "freq": 1, "start": 0}.items():
            if getattr(self, name) < minimum:
                raise ValueError(f"{name} must be at least {minimum}, not {getattr(self, name)}")

    def objective(self, loss_fn: LossFunction, inputs: StepInputs) -> LossFunction:
        """Add gamma times the estimate; logs the estimate and the layers probed.

        Args:
            loss_fn: The loss.
            inputs: Key, number, network, inputs and layers of the step.

        Returns:
            The penalised loss.
        """
        active = (inputs.step % self.freq == 0) & (inputs.step >= self.start)

        def penalised(params: PyTree) -> tuple[Float[Array, ""], Outputs]:
            with_penalty = seht.regularize(
                loss_fn,
                inputs.key,
                p=None,
                lam=self.gamma,
                num_probes=self.num_probes,
                layers=self.layers(params, inputs),
                active=active,
                has_aux=True,
                with_estimate=True,
            )
            loss, (outputs, estimate) = with_penalty(params)
            return loss, outputs.with_metrics(
                trace_estimate=estimate.mean,
                layers_drawn=estimate.layers_drawn.astype(jnp.float32),
            )

        return penalised

    def layers(self, params: PyTree, inputs: StepInputs) -> LayerFunction:
        """Choose which parameters are probed.

        Args:
            params: The network's parameters.
            inputs: Network, inputs and layers of the step.

        Returns:
            The ``layers`` of `seht.regularize`.
        """
        return inputs.layers


@dataclasses.dataclass(frozen=True)
class SankarMiddle(SankarFull):
    """The same for the middle half of the network alone.

    Of n parameter arrays in the network's order, those from n // 4 to 3n // 4, both included, are
    probed, as in the authors' code.
    """

    name: ClassVar[str] = "sankar-middle"
    why_not_text: ClassVar[str] = "it takes half of the arrays, which cuts recurrent layers in two"

    gamma: float = 1e-5

    def layers(self, params: PyTree, inputs: StepInputs) -> LayerFunction:
        """Choose the parameters in the middle.

        Args:
            params: The network's parameters.
            inputs: Network, inputs and layers of the step.

        Returns:
            The ``layers`` of `seht.regularize`.
        """
        paths = paths_in_order(inputs, params)
        middle = set(paths[len(paths) // 4 : 3 * len(paths) // 4 + 1])
        return lambda path: inputs.layers(path) if path in middle else None


def paths_in_order(inputs: StepInputs, params: PyTree) -> list[tuple[str, ...]]:
    """Sort parameters by where the network first uses them.

    A params dictionary does not say: inside ``jit`` its keys are in alphabetical order.

    Args:
        inputs: Network, inputs and layers of the step.
        params: The network's parameters, nested dictionaries.

    Returns:
        The paths of the arrays.
    """
    paths = [tuple(entry.key for entry in path) for path, _ in jax.tree.leaves_with_path(params)]
    jaxpr = jax.make_jaxpr(inputs.network)(params, inputs.batch.inputs).jaxpr
    first_uses = {}
    for number, equation in enumerate(jaxpr.eqns):
        for variable in equation.invars:
            first_uses.setdefault(id(variable), number)
    variables = jaxpr.invars[: len(paths)]
    order = sorted(range(len(paths)), key=lambda i: first_uses[id(variables[i])])
    return [paths[i] for i in order]
