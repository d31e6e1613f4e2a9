"""Checkpoints of a run, by Orbax."""

from pathlib import Path
from typing import Any, Self

import jax
import orbax.checkpoint as ocp

from experiments.training.state import TrainState

KEPT = 2


class Checkpoints:
    """The newest checkpoints in one directory.

    A checkpoint is written under a temporary name and renamed when it is complete, so that a run
    that is killed while it writes goes on from the one before. Use it as a context manager.
    """

    def __init__(self, directory: Path) -> None:
        """Open the directory.

        Args:
            directory: Where the checkpoints are; made if it does not exist.
        """
        options = ocp.CheckpointManagerOptions(
            max_to_keep=KEPT, create=True, enable_async_checkpointing=False
        )
        self._manager = ocp.CheckpointManager(directory.absolute(), options=options)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the directory."""
        self._manager.close()

    @property
    def latest_step(self) -> int | None:
        """The step of the newest checkpoint, `None` if there is none."""
        return self._manager.latest_step()

    def save(self, state: TrainState) -> None:
        """Write a checkpoint, and delete the oldest.

        Args:
            state: The state to write.
        """
        self._manager.save(int(state.step), args=ocp.args.StandardSave(_with_key_data(state)))

    def keep_newest(self) -> None:
        """Delete all checkpoints but the newest."""
        for step in self._manager.all_steps():
            if step != self.latest_step:
                self._manager.delete(step)

    def restore(self, like: TrainState) -> TrainState:
        """Read the newest checkpoint; there must be one.

        Args:
            like: A state with the same structure, shapes, dtypes and devices.

        Returns:
            The state that was written, bit for bit.
        """
        template = jax.tree.map(ocp.utils.to_shape_dtype_struct, _with_key_data(like))
        restored: Any = self._manager.restore(
            self._manager.latest_step(), args=ocp.args.StandardRestore(template)
        )
        return TrainState(*restored)._replace(key=jax.random.wrap_key_data(restored.key))


def _with_key_data(state: TrainState) -> TrainState:
    return state._replace(key=jax.random.key_data(state.key))
