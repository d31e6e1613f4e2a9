"""Checkpoints of a run, by Orbax."""

from pathlib import Path
from typing import Any, NamedTuple, Self

import jax
import orbax.checkpoint as ocp
from jaxtyping import Array, Float, Int, PyTree

from experiments.training.state import TrainState

KEPT = 2


class Best(NamedTuple):
    """The epoch with the lowest validation loss so far.

    Attributes:
        epoch: Which, from 1.
        loss: Its validation loss.
        params: The weights that were evaluated.
        network_state: What the network carried then.
    """

    epoch: Int[Array, ""]
    loss: Float[Array, ""]
    params: PyTree
    network_state: PyTree


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

    def save(self, state: TrainState, best: Best | None = None) -> None:
        """Write a checkpoint, and delete the oldest.

        Args:
            state: The state to write.
            best: The best epoch, for a run that keeps it.
        """
        self._manager.save(int(state.step), args=ocp.args.StandardSave(_to_tree(state, best)))

    def keep_newest(self) -> None:
        """Delete all checkpoints but the newest."""
        for step in self._manager.all_steps():
            if step != self.latest_step:
                self._manager.delete(step)

    def restore(self, like: TrainState) -> TrainState:
        """Read the newest checkpoint of a run that keeps no best epoch; there must be one.

        Args:
            like: A state with the same structure, shapes, dtypes and devices.

        Returns:
            The state that was written, bit for bit.
        """
        return self._restore(like, None)[0]

    def restore_with_best(self, like: TrainState, best: Best) -> tuple[TrainState, Best]:
        """Read the newest checkpoint of a run that keeps its best epoch; there must be one.

        Args:
            like: A state with the same structure, shapes, dtypes and devices.
            best: An epoch likewise.

        Returns:
            What was written, bit for bit.
        """
        state, tree = self._restore(like, best)
        return state, Best(**tree["best"])

    def _restore(self, like: TrainState, best: Best | None) -> tuple[TrainState, dict[str, Any]]:
        template = jax.tree.map(ocp.utils.to_shape_dtype_struct, _to_tree(like, best))
        tree: Any = self._manager.restore(
            self._manager.latest_step(), args=ocp.args.StandardRestore(template)
        )
        state = TrainState(
            **{name: tree[_NAMES_IN_FILES.get(name, name)] for name in TrainState._fields}
        )
        return state._replace(key=jax.random.wrap_key_data(state.key)), tree


# Where a name differs: the first checkpoints were written when there were images alone.
_NAMES_IN_FILES = {"network_state": "batch_stats"}


def _to_tree(state: TrainState, best: Best | None) -> dict[str, Any]:
    state = state._replace(key=jax.random.key_data(state.key))
    tree = {_NAMES_IN_FILES.get(name, name): part for name, part in state._asdict().items()}
    return tree if best is None else tree | {"best": best._asdict()}
