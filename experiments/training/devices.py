"""Over which devices, and which machines, a run is spread.

The batch is spread over the mesh axis ``data``. Over the axis ``model`` each array of the weights,
and what the optimizer keeps for it, is cut along its largest dimension that can be cut evenly;
vectors, and arrays that can not be cut, are on all devices. The step is one `jax.jit` over global
arrays, so the loss and its Hessian are those of the whole batch, whatever the mesh.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from experiments.config import DevicesConfig, mesh_sizes
from experiments.errors import ExperimentError, SettingError
from experiments.training.state import TrainState

T = TypeVar("T")

_EVERYWHERE = PartitionSpec()
# So long a process that ends with an error waits for the others to end, which wait for it; then JAX
# ends all of them. Without an error they end at the same time.
_SECONDS_TO_THE_OTHERS_END = 60


def join_processes(config: DevicesConfig) -> None:
    """Join the other processes of a run, before anything is computed; nothing if it has one.

    Args:
        config: Where they meet; on Slurm, TPU pods and Kubernetes JAX can find that out.

    Raises:
        SettingError: If they do not meet.
    """
    if not config.distributed or jax.distributed.is_initialized():
        return
    try:
        jax.distributed.initialize(
            config.coordinator,
            num_processes=config.num_processes,
            process_id=config.process_id,
            shutdown_timeout_seconds=_SECONDS_TO_THE_OTHERS_END,
        )
    except (RuntimeError, ValueError) as error:
        raise SettingError(
            f"The processes of --distributed do not meet: {error}\nWithout Slurm or a TPU pod, or "
            "Kubernetes and the package kubernetes, start each with --coordinator HOST:PORT (of "
            "process 0), --num-processes and --process-id."
        ) from error


def is_first_process() -> bool:
    """Tell whether this process is the one that writes files and shows progress."""
    return jax.process_index() == 0


def wait_for_all(what: str) -> None:
    """Wait until all processes are here.

    Args:
        what: What they have done, the same in all of them.
    """
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def in_turn(what: str, work: Callable[[], T]) -> T:
    """Do something in the first process, and then in the others, which find what it has made.

    An error in one of them ends all, instead of letting the others wait for it.

    Args:
        what: What is done, the same in all processes: "claim the run directory" for one.
        work: Does it.

    Returns:
        What it returned in this process.

    Raises:
        ExperimentError: If it raised an error in another process; here, its own error is raised.
    """
    if jax.process_count() == 1:
        return work()
    done, error = None, None
    for turn in (True, False):
        if is_first_process() == turn:
            try:
                done = work()
            except Exception as found:  # noqa: BLE001  # it is raised when the others know of it
                error = found
        (failed,) = np.nonzero(multihost_utils.process_allgather(np.array(error is not None)))
        if error is not None:
            raise error
        if failed.size:
            raise ExperimentError(
                f"Process {failed[0]} could not {what}; what it says itself explains why."
            )
    return cast("T", done)


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where the arrays of a run are.

    Attributes:
        mesh: The devices; `None` is JAX's default device.
        network_state_spec: How what the network carries is spread.
    """

    mesh: Mesh | None
    network_state_spec: PartitionSpec = _EVERYWHERE

    def state(self, state: TrainState) -> TrainState:
        """Place a state, or pin it inside of ``jit``.

        Args:
            state: The same state on all processes.

        Returns:
            The state on its devices.
        """
        mesh = self.mesh
        if mesh is None:
            return state
        carried = NamedSharding(mesh, self.network_state_spec)
        placed = jax.tree.map(
            lambda leaf: self._put(leaf, NamedSharding(mesh, weight_spec(leaf.shape, mesh))),
            state._replace(network_state=()),
        )
        return placed._replace(
            network_state=jax.tree.map(lambda leaf: self._put(leaf, carried), state.network_state)
        )

    def batch(self, batch: PyTree) -> PyTree:
        """Spread a batch inside of ``jit``.

        Args:
            batch: Arrays whose first dimension is that of the examples.

        Returns:
            The batch.
        """
        return self._put_all(batch, PartitionSpec("data"))

    def everywhere(self, tree: PyTree) -> PyTree:
        """Place the same arrays on all devices, or pin them there inside of ``jit``.

        Args:
            tree: Arrays, the same on all processes, and anything else, which is left as it is.

        Returns:
            The tree.
        """
        return self._put_all(tree, _EVERYWHERE)

    def _put_all(self, tree: PyTree, spec: PartitionSpec) -> PyTree:
        if self.mesh is None:
            return tree
        sharding = NamedSharding(self.mesh, spec)
        return jax.tree.map(
            lambda leaf: (
                self._put(leaf, sharding) if isinstance(leaf, jax.Array | np.ndarray) else leaf
            ),
            tree,
        )

    def _put(self, leaf: Any, sharding: NamedSharding) -> Any:
        if isinstance(leaf, Tracer):
            return jax.lax.with_sharding_constraint(leaf, sharding)
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        if is_key and not sharding.is_fully_addressable:
            # Keys are not among what `jax.device_put` sends to the devices of other processes.
            data = jax.device_put(np.asarray(jax.random.key_data(leaf)), sharding)
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
        return jax.device_put(leaf, sharding)


ONE_DEVICE = Placement(None)


def weight_spec(shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Choose how one array of the weights is cut over the axis ``model``.

    Args:
        shape: Its shape.
        mesh: The devices.

    Returns:
        The axis at its largest dimension that can be cut evenly; nothing for a vector.
    """
    parts = mesh.shape.get("model", 1)
    axes = [axis for axis, size in enumerate(shape) if size % parts == 0]
    if parts == 1 or len(shape) < 2 or not axes:
        return _EVERYWHERE
    largest = max(axes, key=lambda axis: shape[axis])
    return PartitionSpec(*[None] * largest, "model")


def make_mesh(config: DevicesConfig) -> Mesh | None:
    """Arrange the devices of a run.

    Args:
        config: The sizes of the mesh's axes; by default there is no mesh with one process, and one
            axis ``data`` over all devices with several.

    Returns:
        The mesh, if there is one.

    Raises:
        SettingError: If there are not as many devices.
    """
    sizes = mesh_sizes(config.mesh)
    there = len(jax.devices())
    if not sizes:
        if jax.process_count() == 1:
            return None
        sizes = {"data": there}
    wanted = math.prod(sizes.values())
    if wanted > there or (wanted < there and jax.process_count() > 1):
        needs = f"the mesh {config.mesh} has {wanted} devices, and there are {there}"
        if jax.default_backend() == "cpu":
            needs += (
                ". A CPU is cut into N devices by the environment variable "
                "XLA_FLAGS=--xla_force_host_platform_device_count=N"
            )
        raise SettingError(needs)
    return jax.make_mesh(
        tuple(sizes.values()),
        tuple(sizes),
        axis_types=(AxisType.Auto,) * len(sizes),
        devices=jax.devices()[:wanted],
    )
