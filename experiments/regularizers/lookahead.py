"""Lookahead."""

import dataclasses
from functools import partial
from typing import Any, ClassVar, NamedTuple

import optax
from jaxtyping import PyTree

from experiments.regularizers.base import Regularizer


class LookaheadState(NamedTuple):
    """State of the wrapped optimizer.

    Attributes:
        lookahead: State of `optax.lookahead`, the fast optimizer's included.
        slow_params: The slow weights.
    """

    lookahead: PyTree
    slow_params: PyTree


@dataclasses.dataclass(frozen=True)
class Lookahead(Regularizer):
    r"""Slow weights that follow the fast ones every k steps, and to which these go back.

    $$\phi \leftarrow \phi + \alpha (\theta_k - \phi), \qquad \theta \leftarrow \phi$$

    Zhang et al., *Lookahead Optimizer: k steps forward, 1 step back* (2019), by
    `optax.lookahead`. Gradients, penalties included, are taken at the fast weights, which are the
    params of the training state; networks are evaluated at the slow ones, which are part of the
    optimizer's state.

    BatchNorm's running statistics are those of the fast weights, as in the authors' code: they fit
    the slow ones best where both have just met, as they have at an evaluation whose step is a
    multiple of k.

    Attributes:
        sync_period: Steps k between two moves of the slow weights.
        slow_step_size: Share alpha of the way that they go.
    """

    name: ClassVar[str] = "lookahead"

    sync_period: int = 5
    slow_step_size: float = 0.8

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: If one is out of its range.
        """
        if self.sync_period < 1:
            raise ValueError(f"sync_period must be at least 1, not {self.sync_period}")
        if not 0 < self.slow_step_size <= 1:
            raise ValueError(f"slow_step_size must be in (0, 1], not {self.slow_step_size}")

    def optimizer(self, tx: optax.GradientTransformation) -> optax.GradientTransformation:
        """Wrap the optimizer, which becomes the fast one.

        Args:
            tx: The optimizer.

        Returns:
            The wrapped optimizer.
        """
        fast = optax.with_extra_args_support(tx)

        def lookahead(**extra_args: Any) -> optax.GradientTransformation:
            # `optax.lookahead` hands no extra arguments on.
            update = partial(fast.update, **extra_args)
            return optax.lookahead(
                optax.GradientTransformation(fast.init, update),
                self.sync_period,
                self.slow_step_size,
            )

        def init(params: PyTree) -> LookaheadState:
            return LookaheadState(
                lookahead().init(optax.LookaheadParams.init_synced(params)), slow_params=params
            )

        def update(
            updates: PyTree, state: Any, params: Any = None, **extra_args: Any
        ) -> tuple[PyTree, LookaheadState]:
            pair = optax.LookaheadParams(fast=params, slow=state.slow_params)
            steps: Any
            steps, inner = lookahead(**extra_args).update(updates, state.lookahead, pair)
            slow_params = optax.apply_updates(state.slow_params, steps.slow)
            return steps.fast, LookaheadState(inner, slow_params)

        return optax.GradientTransformationExtraArgs(init, update)

    def evaluation_params(self, params: PyTree, opt_state: PyTree) -> PyTree:
        """Choose the slow weights.

        Args:
            params: The fast weights.
            opt_state: State of the optimizer.

        Returns:
            The slow weights.
        """
        return optax.tree.get(opt_state, "slow_params")
