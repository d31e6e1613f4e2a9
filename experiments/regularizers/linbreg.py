"""Linearized Bregman iterations, which train sparse networks."""

import dataclasses
import math
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from experiments.regularizers.base import LossFunction, Outputs, Regularizer, StepInputs


class BregmanState(NamedTuple):
    """State of the wrapped optimizer.

    Attributes:
        inner: State of the optimizer that moves the dual variable.
        subgradient: What the dual variable has beyond ``params / delta``, a subgradient of the
            l1 norm times lambda.
    """

    inner: PyTree
    subgradient: PyTree


@dataclasses.dataclass(frozen=True)
class LinBreg(Regularizer):
    r"""The optimizer moves a dual variable, and the weights are its soft threshold.

    $$v \leftarrow v - \tau\, g, \qquad \theta = \operatorname{prox}_{\delta \lambda
        \lVert \cdot \rVert_1}(\delta v) = \delta \operatorname{sign}(v) \max(|v| - \lambda, 0)$$

    Bungert, Roith, Tenbrinck and Burger, *A Bregman Learning Framework for Sparse Neural Networks*
    (2021). Kernels are sparse; biases and BatchNorm's parameters have lambda = 0. Training starts
    from few weights and switches on those whose gradients add up to lambda. The dense baseline
    that the paper calls "Vanilla" is the method ``plain``.

    Whatever the optimizer makes of the gradient, clipping, decay and momentum included, moves the
    dual variable. The authors' momentum has a factor 1 - beta which is part of the learning rate
    here. Their other penalty, the l2 norms of whole k x k kernels, is left out.

    Two more differences from the authors' code for ResNet-18 (`TimRoith/BregmanLearning`): there
    lambda is that of the convolutions alone, and the dense layer stays dense; here it is sparse as
    they are. And there the 1 % of the entries that training starts with are He's, scaled by 5; here
    they are the network's own, scaled by 1 / sqrt(initial_density), which is 10 at 1 %.

    Attributes:
        lam: Strength lambda of the l1 norm.
        delta: The paper's delta, by which steps of the weights are longer than those of v.
        initial_density: Share of the entries of each kernel that training starts with. They are
            scaled by 1 / sqrt(initial_density), which keeps the variance of what a layer computes.
    """

    name: ClassVar[str] = "linbreg"

    lam: float = 0.1
    delta: float = 1.0
    initial_density: float = 0.01

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: If one is out of its range.
        """
        if not (math.isfinite(self.lam) and self.lam >= 0):
            raise ValueError(f"lam must be at least 0 and finite, not {self.lam}")
        if not (math.isfinite(self.delta) and self.delta > 0):
            raise ValueError(f"delta must be above 0 and finite, not {self.delta}")
        if not 0 < self.initial_density <= 1:
            raise ValueError(f"initial_density must be in (0, 1], not {self.initial_density}")

    def initial_params(self, key: PRNGKeyArray, params: PyTree) -> PyTree:
        """Keep a random share of each kernel's entries.

        Args:
            key: PRNG key of this run and method.
            params: Initial weights of the network.

        Returns:
            Sparse weights.
        """
        kept = optax.tree.random_like(
            key,
            params,
            lambda key, shape, dtype: jax.random.bernoulli(key, self.initial_density, shape).astype(
                dtype
            ),
        )
        scale = self.initial_density**-0.5
        return jax.tree.map(
            lambda param, mask, sparse: param * mask * scale if sparse else param,
            params,
            kept,
            is_kernel(params),
        )

    def objective(self, loss_fn: LossFunction, inputs: StepInputs) -> LossFunction:
        """Log the share of the kernels' entries that are not zero as ``density``.

        Args:
            loss_fn: The loss.
            inputs: What else the step is computed from.

        Returns:
            The same loss.
        """

        def with_density(params: PyTree) -> tuple[Float[Array, ""], Outputs]:
            loss, outputs = loss_fn(params)
            return loss, outputs.with_metrics(density=density(params))

        return with_density

    def optimizer(self, tx: optax.GradientTransformation) -> optax.GradientTransformation:
        """Let the optimizer move the dual variable.

        Args:
            tx: The optimizer.

        Returns:
            The wrapped optimizer.
        """
        inner = optax.with_extra_args_support(tx)

        def thresholds(params: PyTree) -> PyTree:
            return jax.tree.map(lambda sparse: self.lam if sparse else 0.0, is_kernel(params))

        def init(params: PyTree) -> BregmanState:
            subgradient = jax.tree.map(
                lambda param, lam: lam * jnp.sign(param), params, thresholds(params)
            )
            return BregmanState(inner.init(params), subgradient)

        def update(
            updates: PyTree, state: Any, params: Any = None, **extra_args: Any
        ) -> tuple[PyTree, BregmanState]:
            updates, inner_state = inner.update(updates, state.inner, params, **extra_args)
            # From the params, not kept from step to step: so it follows where another method, such
            # as Lookahead, moves them.
            dual = jax.tree.map(
                lambda param, subgradient, step: param / self.delta + subgradient + step,
                params,
                state.subgradient,
                updates,
            )
            subgradient = jax.tree.map(
                lambda v, lam: jnp.clip(v, -lam, lam), dual, thresholds(params)
            )
            steps = jax.tree.map(
                lambda v, clipped, param: self.delta * (v - clipped) - param,
                dual,
                subgradient,
                params,
            )
            return steps, BregmanState(inner_state, subgradient)

        return optax.GradientTransformationExtraArgs(init, update)


@dataclasses.dataclass(frozen=True)
class AdaBreg(LinBreg):
    """The same with Adam, whose step moves the dual variable.

    The authors' code leaves out Adam's correction of the first moment's bias, a difference in the
    first steps. Their learning rate for ResNet-18 is 1e-3 (``--learning-rate``).
    """

    name: ClassVar[str] = "adabreg"

    def optimizer_settings(self, **settings: Any) -> dict[str, Any]:
        """Take Adam.

        Args:
            **settings: Fields of `OptimizerConfig`.

        Returns:
            The settings with another ``algorithm``.
        """
        return settings | {"algorithm": "adam"}


def is_kernel(params: PyTree) -> PyTree:
    """Tell kernels from biases and BatchNorm's parameters.

    Args:
        params: The network's parameters, nested dictionaries.

    Returns:
        A tree of bools.
    """
    return jax.tree.map_with_path(lambda path, _: path[-1].key == "kernel", params)


def density(params: PyTree) -> Float[Array, ""]:
    """Compute which share of the kernels' entries is not zero.

    Args:
        params: The network's parameters.

    Returns:
        The share.
    """
    leaves = zip(jax.tree.leaves(params), jax.tree.leaves(is_kernel(params)), strict=True)
    kernels = [leaf for leaf, chosen in leaves if chosen]
    counts = [jnp.sum(kernel != 0, dtype=jnp.float32) for kernel in kernels]
    return sum(counts, jnp.zeros(())) / sum(kernel.size for kernel in kernels)
