"""DropBlock."""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Int

from experiments.regularizers.base import Regularizer


@dataclasses.dataclass(frozen=True)
class DropBlock(Regularizer):
    """Dropout of whole squares of the feature maps, in the last two stages of the network.

    Ghiasi, Lin and Le, *DropBlock: A regularization method for convolutional networks* (2018);
    `experiments/models/dropblock.py` has the formula and says where it acts.

    Attributes:
        block_size: Side of a square; on smaller maps the square is as large as the map.
        keep_prob: Share to keep, in the last stage.
        warmup_steps: Steps over which that share falls linearly from 1. The source lets it fall
            until the end of training; 0 has it in force from the first step.
    """

    name: ClassVar[str] = "dropblock"
    why_not_text: ClassVar[str] = "it drops squares of feature maps"

    block_size: int = 7
    keep_prob: float = 0.9
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: If one is out of its range.
        """
        if self.block_size < 1:
            raise ValueError(f"block_size must be at least 1, not {self.block_size}")
        if not 0 < self.keep_prob < 1:
            raise ValueError(f"keep_prob must be between 0 and 1, not {self.keep_prob}")
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps must be at least 0, not {self.warmup_steps}")

    def model(self, **arguments: Any) -> dict[str, Any]:
        """Switch the network's DropBlock on.

        Args:
            **arguments: Keyword arguments of the model's constructor.

        Returns:
            The arguments with ``drop_block_size``.
        """
        return arguments | {"drop_block_size": self.block_size}

    def call_arguments(self, step: Int[Array, ""]) -> dict[str, Any]:
        """Give the share to drop at this step.

        Args:
            step: Number of steps taken so far.

        Returns:
            ``drop_block_rate``.
        """
        progress = (step.astype(jnp.float32) + 1) / max(self.warmup_steps, 1)
        return {"drop_block_rate": (1 - self.keep_prob) * jnp.minimum(progress, 1.0)}
