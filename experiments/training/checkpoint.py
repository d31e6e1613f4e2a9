"""Checkpoints of a run, by Orbax."""

import contextlib
import itertools
import json
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import Array, Float, Int, PyTree

from experiments.config import complete_settings, deciding_settings
from experiments.errors import ConfigMismatchError, DamagedCheckpointError
from experiments.training.devices import is_first_process, wait_for_all
from experiments.training.fingerprint import fingerprint
from experiments.training.heap import return_free_memory
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
    """The checkpoints in one directory. Use it as a context manager.

    A checkpoint is written while training goes on, under a temporary name, and is renamed when it
    is complete: a run that is killed while it writes goes on from the one before. Beside the
    arrays it holds the settings of the run, and a checksum of both, by which bits that changed on
    the disk are found. A checkpoint that can not be read, or is not what was written, is set aside
    in a directory beside this one, and the one before it is read.
    """

    def __init__(
        self,
        directory: Path,
        *,
        settings: Mapping[str, Any] | None = None,
        keep: int | None = KEPT,
        keep_period: int | None = None,
    ) -> None:
        """Open the directory.

        Args:
            directory: Where the checkpoints are; made if it does not exist.
            settings: The settings of the run, JSON values by name, which are written down in each
                and compared with those that are there; `None` to look at checkpoints of any run.
            keep: How many of the newest are kept; `None` is all.
            keep_period: Those of steps that are a multiple of it are kept too.
        """
        self._directory = directory.absolute()
        self._settings = settings
        self._options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            keep_period=keep_period,
            cleanup_tmp_directories=True,
        )
        self._damages: list[str] = []
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        """Open the directory; the manager could not, with metadata of a certain kind of damage.

        Raises:
            OSError: If it can not be read now.
        """
        if self._directory.exists():
            for found in ocp.path.step.standard_name_format().find_all(self._directory):
                try:
                    with _as_damage():
                        found.commit_timestamp_nsecs  # noqa: B018  # reads them
                except _DamagedError as error:
                    self._set_aside(found.step, error)
        return ocp.CheckpointManager(
            self._directory, options=self._options, item_handlers=ocp.StandardCheckpointHandler()
        )

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for the last checkpoint, and close the directory."""
        with _as_os_errors():
            self._manager.close()

    @property
    def latest_step(self) -> int | None:
        """The step of the newest checkpoint that is complete, `None` if there is none."""
        self.finish()
        return self._manager.latest_step()

    def save(self, state: TrainState, best: Best | None = None) -> None:
        """Begin to write a checkpoint; that of the save before is complete, or has failed.

        Args:
            state: The state to write.
            best: The best epoch, for a run that keeps it.

        Raises:
            OSError: If this checkpoint, or the one before, could not be written.
        """
        tree = _to_tree(state, best)
        self.finish()
        with _as_os_errors():
            self._manager.save(
                int(state.step),
                args=ocp.args.StandardSave(tree),
                custom_metadata=_seal(
                    {
                        "settings": self._settings,
                        "arrays": _describe_arrays(tree),
                        "checksum": _checksum(tree, self._settings),
                    }
                ),
                force=True,
            )

    def finish(self) -> None:
        """Wait until the last checkpoint is complete, and return the memory that writing it took.

        Raises:
            OSError: If it could not be written.
        """
        with _as_os_errors():
            self._manager.wait_until_finished()
        return_free_memory()

    def keep_newest(self) -> None:
        """Delete all checkpoints but the newest, and those that are kept for good."""
        period = self._options.keep_period
        newest = self.latest_step
        for step in self._manager.all_steps():
            if step != newest and not (period and step % period == 0):
                self._manager.delete(step)

    def restore(
        self,
        like: TrainState,
        best: Best | None = None,
        *,
        warn: Callable[[str], None],
    ) -> tuple[TrainState, Best | None] | None:
        """Read the newest checkpoint that is what was written.

        Args:
            like: A state with the structure, shapes and dtypes of that which was written, on the
                devices on which it is wanted.
            best: An epoch likewise, if the run keeps its best.
            warn: Is told of each checkpoint that had to be set aside.

        Returns:
            What was written, bit for bit; `None` if nothing was.

        Raises:
            ConfigMismatchError: If it is of another run, or of another version of this program.
            DamagedCheckpointError: If there are some, and none is what was written.
            OSError: If they can not be read now, for a reason that is not in them.
        """
        self.finish()
        wanted = _to_tree(like, best)
        template = jax.tree.map(ocp.utils.to_shape_dtype_struct, wanted)
        found = None
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                found = self._read(step, template)
            except _DamagedError as error:
                # Closed meanwhile: the manager knows its steps by heart.
                self._manager.close()
                self._set_aside(step, error)
                self._manager = self._open()
            else:
                break
        damages, self._damages = self._damages, []
        for damage in damages:
            warn(damage)
        # Not only of now: a queue that gives the command again must not begin the run anew.
        if found is None and any(self._damaged.glob("*")):
            raise DamagedCheckpointError(
                f"No checkpoint in {self._directory} can be read; those that were there are now in "
                f"{self._damaged}. Put a good copy in their place to go on from it. To begin the "
                "run anew, move that directory away, and give the same command."
            )
        return None if found is None else _from_tree(jax.tree.map(_commit_as, found, wanted))

    def _read(self, step: int, template: PyTree) -> PyTree:
        """Read one checkpoint.

        Raises:
            ConfigMismatchError: If it is of another run, or of another version of this program.
            OSError: If it can not be read now.
            _DamagedError: If it is not what was written.
        """
        with _as_damage():
            metadata = self._manager.metadata(step)
        if not metadata.init_timestamp_nsecs:
            raise _DamagedError("its metadata are unreadable")
        written = metadata.custom_metadata or {}
        is_sealed = written == _seal(written)
        if written and not is_sealed and written.keys() != {"settings", "checksum"}:
            raise _DamagedError("its metadata are not those that were written")
        if is_sealed:  # before the arrays: those of another run need not fit
            self._check_origin(step, written, template)
        with _as_damage():
            tree = self._manager.restore(step, args=ocp.args.StandardRestore(template))
        if not written:  # by the first versions
            return tree
        if written["checksum"] != _checksum(tree, written["settings"]):
            raise _DamagedError("its checksum is not that of what was written")
        if not is_sealed:  # by earlier versions
            self._check_origin(step, written, template)
        return tree

    def _check_origin(self, step: int, written: Mapping[str, Any], template: PyTree) -> None:
        """Check who has written a checkpoint.

        Raises:
            ConfigMismatchError: If it was another run, or another version of this program.
        """
        wanted, settings = self._settings, written["settings"]
        # Settings that this version has and an earlier one had not have their defaults.
        if wanted and settings and _differ(complete_settings(settings), wanted):
            raise ConfigMismatchError(
                f"The checkpoint of step {step} in {self._directory} belongs to another run "
                "than the directory that it is in. Put back the one that was there."
            )
        if written.get("arrays", _describe_arrays(template)) != _describe_arrays(template):
            raise ConfigMismatchError(
                f"The checkpoint of step {step} in {self._directory} has other arrays than this "
                "run. If its settings are the same, it was written by another version of this "
                "program or of a library: go on with that version."
            )

    def _set_aside(self, step: int, error: Exception) -> None:
        """Move a checkpoint out of the way, without deleting it."""
        taken = {path.name for path in self._damaged.glob("*")}
        names = (f"{step}-{number}" if number else str(step) for number in itertools.count())
        place = self._damaged / next(name for name in names if name not in taken)
        wait_for_all("find a damaged checkpoint")
        if is_first_process():
            self._damaged.mkdir(exist_ok=True)
            shutil.move(self._directory / str(step), place)
        wait_for_all("set a damaged checkpoint aside")
        reason = str(error).partition("\n")[0][:200]
        self._damages.append(
            f"The checkpoint of step {step} is damaged: {reason}. It is now {place}."
        )

    @property
    def _damaged(self) -> Path:
        return self._directory.with_name(f"{self._directory.name}-damaged")


class _DamagedError(Exception):
    """A checkpoint is not what was written."""


@contextlib.contextmanager
def _as_damage() -> Iterator[None]:
    """Let what comes of reading a file that is not what was written be a `_DamagedError`.

    Raises:
        OSError: If it can not be read now: no permission, too many open files, a disk or a network
            that fails. The file may be as it should be.
        MemoryError: Likewise.
        JaxRuntimeError: If the device has no room for it.
        _DamagedError: In place of every other error.
    """
    try:
        with _as_os_errors():
            yield
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise _DamagedError(str(error)) from error
    except (OSError, MemoryError):
        raise
    # Truncated or garbled files end in almost any exception, Orbax's own being `Exception`.
    except Exception as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error):
            raise
        raise _DamagedError(f"{type(error).__name__}, {error}") from error


@contextlib.contextmanager
def _as_os_errors() -> Iterator[None]:
    """Let a full disk be an `OSError`: TensorStore, which writes the arrays, has it in a text.

    Raises:
        OSError: In place of an error of the file system.
        ValueError: Any other.
    """
    try:
        yield
    except ValueError as error:
        code = re.search(r"os_error_code='(\d+)'", str(error))
        if code is None:
            raise
        number = int(code[1])
        raise OSError(number, os.strerror(number)) from error


# Where a name differs: the first checkpoints were written when there were images alone.
_NAMES_IN_FILES = {"network_state": "batch_stats"}


def _to_tree(state: TrainState, best: Best | None) -> dict[str, Any]:
    state = state._replace(key=jax.random.key_data(state.key))
    tree = {_NAMES_IN_FILES.get(name, name): part for name, part in state._asdict().items()}
    return tree if best is None else tree | {"best": best._asdict()}


def _from_tree(tree: Mapping[str, Any]) -> tuple[TrainState, Best | None]:
    state = TrainState(
        **{name: tree[_NAMES_IN_FILES.get(name, name)] for name in TrainState._fields}
    )
    state = state._replace(key=jax.random.wrap_key_data(state.key))
    return state, Best(**tree["best"]) if "best" in tree else None


def _commit_as(array: Array, like: Array) -> Array:
    """Free an array of its device, unless the other is bound to one.

    Orbax binds all that it reads, and a step of bound arrays is another program: it would be
    compiled again, and need not round alike.
    """
    if like.committed:
        return array
    if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
        data = jnp.asarray(np.asarray(jax.random.key_data(array)))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(array))
    return jnp.asarray(np.asarray(array))


def _differ(settings: Mapping[str, Any], others: Mapping[str, Any]) -> bool:
    return deciding_settings(settings) != deciding_settings(others)


def _checksum(tree: PyTree, settings: Mapping[str, Any] | None) -> int:
    """Compute a checksum of what a checkpoint holds."""
    text = json.dumps(settings, sort_keys=True).encode()
    return int(fingerprint(tree)) ^ zlib.crc32(text)


def _describe_arrays(tree: PyTree) -> int:
    """Compute a checksum of names, shapes and dtypes."""
    # As they are stored: a typed key in an optimizer's state is its data there.
    stored = jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)
    lines = [
        f"{jax.tree_util.keystr(path, simple=True, separator='/')} {leaf.shape} {leaf.dtype}"
        for path, leaf in jax.tree.leaves_with_path(stored)
    ]
    return zlib.crc32("\n".join(lines).encode())


def _seal(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Add a checksum of all other entries, which tells damage from what another run has written."""
    others = {name: value for name, value in metadata.items() if name != "seal"}
    return others | {"seal": zlib.crc32(json.dumps(others, sort_keys=True).encode())}
