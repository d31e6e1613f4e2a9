"""Checkpoints, those of earlier versions included."""

import dataclasses
import errno
import gc
import os
import shutil
import subprocess
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from mutation import check_cases, many, mutated_bytes

from experiments.config import to_json
from experiments.errors import ConfigMismatchError, DamagedCheckpointError
from experiments.training import checkpoint
from experiments.training.checkpoint import Best, Checkpoints
from experiments.training.state import TrainState

# Orbax reads arrays side by side, and leaves the errors of all but one to themselves.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

STATE = TrainState(
    params={"w": jnp.arange(3.0)},
    network_state={"mean": jnp.ones(2)},
    opt_state=(jnp.zeros(3), ()),
    step=jnp.asarray(7, jnp.int32),
    key=jax.random.key(5),
)
BEST = Best(jnp.asarray(2, jnp.int32), jnp.asarray(1.5), {"w": jnp.ones(3)}, {"mean": jnp.zeros(2)})


class Earlier(NamedTuple):
    """The state, as it was when there were images alone."""

    params: Any
    batch_stats: Any
    opt_state: Any
    step: Any
    key: Any


def like(tree):
    return jax.tree.map(jnp.zeros_like, tree)


def blank():
    return like(STATE._replace(key=0))._replace(key=jax.random.key(0))


def check(found):
    chex.assert_trees_all_equal(
        found._replace(key=jax.random.key_data(found.key)),
        STATE._replace(key=jax.random.key_data(STATE.key)),
    )


@pytest.fixture(autouse=True)
def errors_that_nobody_asked_for():
    """Let these come up here, and not in a test of another module."""
    yield
    gc.collect()


@pytest.fixture
def directory(tmp_path):
    """Checkpoints of steps 5 and 7."""
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(STATE._replace(step=jnp.asarray(5, jnp.int32)))
        checkpoints.save(STATE)
    return tmp_path / "checkpoints"


def files_of(directory, step):
    return sorted(path for path in (directory / str(step)).rglob("*") if path.is_file())


def restored(directory, **options):
    warnings = []
    with Checkpoints(directory, **options) as checkpoints:
        state, _ = checkpoints.restore(blank(), warn=warnings.append)
    return state, warnings


@pytest.mark.parametrize("best", [None, BEST], ids=["last", "best"])
def test_what_is_written_is_read_back(tmp_path, best):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(STATE, best)
        found, best_found = checkpoints.restore(blank(), best and like(best), warn=pytest.fail)
    check(found)
    chex.assert_trees_all_equal(best_found, best)


def test_what_is_read_is_bound_to_a_device_only_where_it_is_wanted_there(tmp_path):
    bound = STATE._replace(params=jax.device_put(STATE.params, jax.devices()[0]))
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(STATE)
        for wanted in (blank(), blank()._replace(params=bound.params)):
            found, _ = checkpoints.restore(wanted, warn=pytest.fail)
            check(found)
            assert jax.tree.map(lambda array: array.committed, found) == jax.tree.map(
                lambda array: array.committed, wanted
            )
    assert not any(array.committed for array in jax.tree.leaves(blank()))


def test_no_free_memory_is_kept_when_one_is_complete(tmp_path, spare_memory):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(STATE)
        checkpoints.finish()
        assert spare_memory() < 30 * 2**20  # of 64 MiB; the first checkpoint takes some itself


def test_it_is_read_to_other_devices(directory, two_devices):
    sharding = NamedSharding(two_devices, P())
    placed = jax.device_put(blank(), sharding)
    with Checkpoints(directory) as checkpoints:
        found, _ = checkpoints.restore(placed, warn=pytest.fail)
    check(found)
    assert all(leaf.sharding == sharding for leaf in jax.tree.leaves(found.params))


@pytest.mark.parametrize(
    ("keep", "period", "kept", "at_the_end"),
    [
        (1, None, ["4"], ["4"]),
        (2, None, ["3", "4"], ["4"]),
        (None, None, ["1", "2", "3", "4"], ["4"]),
        (1, 2, ["2", "4"], ["2", "4"]),
    ],
)
def test_checkpoints_are_kept_by_policy(tmp_path, keep, period, kept, at_the_end):
    def there():
        return sorted(path.name for path in tmp_path.iterdir() if path.name.isdigit())

    with Checkpoints(tmp_path, keep=keep, keep_period=period) as checkpoints:
        for step in range(1, 5):
            checkpoints.save(STATE._replace(step=jnp.asarray(step, jnp.int32)))
        checkpoints.finish()
        assert there() == kept
        checkpoints.keep_newest()
    assert there() == at_the_end


def truncated(data):
    return data[: len(data) // 2]


def garbled(data):
    return bytes(byte ^ 0x5A for byte in data)


def one_bit_flipped(data):
    return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]


@pytest.mark.parametrize("damage", [truncated, garbled, one_bit_flipped, None])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_is_read(directory, damage):
    arrays = max(files_of(directory, 7), key=lambda path: path.stat().st_size)
    data = arrays.read_bytes()
    if damage is None:
        arrays.unlink()
    else:
        arrays.write_bytes(damage(data))
    state, warnings = restored(directory)
    assert int(state.step) == 5
    (warning,) = warnings
    assert "The checkpoint of step 7 is damaged" in warning
    assert warning.endswith(f"It is now {directory}-damaged/7.")
    set_aside = directory.with_name("checkpoints-damaged") / "7"
    assert set_aside.is_dir()
    if damage is not None:
        kept = set_aside / arrays.relative_to(directory / "7")
        assert kept.read_bytes() == damage(data)
    with Checkpoints(directory) as checkpoints:
        assert checkpoints.latest_step == 5
        checkpoints.save(STATE)
    assert int(restored(directory)[0].step) == 7


def test_a_second_damaged_checkpoint_of_one_step_does_not_replace_the_first(directory):
    for expected in ("7", "7-1"):
        for path in files_of(directory, 7):
            path.write_bytes(b"")
        _, (warning,) = restored(directory)
        assert warning.endswith(f"-damaged/{expected}.")
        with Checkpoints(directory) as checkpoints:
            checkpoints.save(STATE)


def test_without_a_good_checkpoint_there_is_an_error(directory):
    for step in (5, 7):
        for path in files_of(directory, step):
            path.write_bytes(b"")
    with pytest.raises(DamagedCheckpointError, match=r"No checkpoint in .* can be read"):
        restored(directory)
    set_aside = directory.with_name("checkpoints-damaged")
    assert sorted(path.name for path in set_aside.iterdir()) == ["5", "7"]
    # Nor does it begin anew when the same command is given again, until somebody says so.
    with pytest.raises(DamagedCheckpointError, match="begin the run anew, move that directory"):
        restored(directory)
    set_aside.rename(directory.with_name("elsewhere"))
    with Checkpoints(directory) as checkpoints:
        assert checkpoints.restore(blank(), warn=pytest.fail) is None


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, "Input/output error"),
        ValueError("INTERNAL: Error reading local file [os_error_code='24']"),
        MemoryError(),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"),
    ],
    ids=["disk", "open files", "memory", "device"],
)
def test_a_checkpoint_that_can_not_be_read_now_stays_where_it_is(directory, monkeypatch, error):
    def restore(*_, **__):
        raise error

    with Checkpoints(directory) as checkpoints:
        monkeypatch.setattr(checkpoints._manager, "restore", restore)
        with pytest.raises((OSError, MemoryError, jax.errors.JaxRuntimeError)):
            checkpoints.restore(blank(), warn=pytest.fail)
    assert not directory.with_name("checkpoints-damaged").exists()
    check(restored(directory)[0])


def test_a_half_written_checkpoint_is_none(directory):
    (directory / "7").rename(directory / "7.orbax-checkpoint-tmp")
    state, warnings = restored(directory)
    assert int(state.step) == 5
    assert not warnings


def test_a_checkpoint_of_another_run_is_refused(tmp_path, plain):
    with Checkpoints(tmp_path, settings=to_json(plain)) as checkpoints:
        checkpoints.save(STATE)
    other = to_json(dataclasses.replace(plain, seed=1))
    with pytest.raises(ConfigMismatchError, match="belongs to another run"):
        restored(tmp_path, settings=other)
    larger = blank()._replace(params={"w": jnp.zeros(4)})
    with (
        Checkpoints(tmp_path, settings=other) as checkpoints,
        pytest.raises(ConfigMismatchError, match="belongs to another run"),
    ):
        checkpoints.restore(larger, warn=pytest.fail)
    state, _ = restored(tmp_path, settings=to_json(plain))
    check(state)


@pytest.mark.parametrize(
    "other",
    [
        {"params": {"w": jnp.zeros(4)}},
        {"params": {"w": jnp.zeros(3, jnp.bfloat16)}},
        {"opt_state": (jnp.zeros(3), jnp.zeros(3))},
        {"network_state": {"variance": jnp.zeros(2)}},
    ],
    ids=["shape", "dtype", "structure", "name"],
)
def test_a_checkpoint_of_another_version_is_refused_and_stays_where_it_is(directory, other):
    with (
        Checkpoints(directory) as checkpoints,
        pytest.raises(ConfigMismatchError, match=r"step 7 in .* has other arrays"),
    ):
        checkpoints.restore(blank()._replace(**other), warn=pytest.fail)
    check(restored(directory)[0])


def test_a_full_disk_is_an_error_and_leaves_the_checkpoint_before(directory, monkeypatch):
    full = "RESOURCE_EXHAUSTED: Error writing: No space left on device [os_error_code='28']"

    def save(*_, **__):
        raise ValueError(full)

    with Checkpoints(directory) as checkpoints:
        monkeypatch.setattr(checkpoints._manager, "save", save)
        with pytest.raises(OSError, match="No space left on device") as caught:
            checkpoints.save(STATE._replace(step=jnp.asarray(9, jnp.int32)))
    assert caught.value.errno == errno.ENOSPC
    check(restored(directory)[0])


def test_a_disk_without_room_is_an_error_and_leaves_the_checkpoint_before(tmp_path, small_files):
    large = STATE._replace(params={"w": jax.random.normal(jax.random.key(0), (200, 200))})
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(large)
        checkpoints.finish()

    def save():
        with Checkpoints(tmp_path) as checkpoints, small_files(100_000):
            checkpoints.save(large._replace(step=jnp.asarray(9, jnp.int32)))
            checkpoints.finish()

    with pytest.raises(OSError, match="File too large") as caught:
        save()
    assert caught.value.errno == errno.EFBIG
    with Checkpoints(tmp_path) as checkpoints:
        template = blank()._replace(params=like(large.params))
        found, _ = checkpoints.restore(template, warn=pytest.fail)
    assert int(found.step) == 7
    chex.assert_trees_all_equal(found.params, large.params)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 400 kB."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a file system")
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", place]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", place], check=True)


def fill(directory, state):
    with Checkpoints(directory) as checkpoints:
        for step in range(1, 5):
            checkpoints.save(state._replace(step=jnp.asarray(step, jnp.int32)))
            checkpoints.finish()


def test_a_disk_that_is_really_full_is_an_error_and_leaves_the_checkpoint_before(small_disk):
    large = STATE._replace(params={"w": jax.random.normal(jax.random.key(0), (200, 200))})
    with pytest.raises(OSError, match="No space left on device"):
        fill(small_disk / "checkpoints", large)
    with Checkpoints(small_disk / "checkpoints") as checkpoints:
        newest = checkpoints.latest_step
        found, _ = checkpoints.restore(large._replace(params=like(large.params)), warn=pytest.fail)
    assert newest is not None
    assert int(found.step) == newest
    chex.assert_trees_all_equal(found.params, large.params)


@many(40, 1000)
def test_changed_files_are_never_read_as_something_else(
    tmp_path, plain, num_cases, record_property
):
    directory, settings = tmp_path / "checkpoints", to_json(plain)
    with Checkpoints(directory, settings=settings) as checkpoints:
        checkpoints.save(STATE._replace(step=jnp.asarray(5, jnp.int32)))
        checkpoints.save(STATE)

    def case(random):
        path = random.choice(files_of(directory, 7))
        data = path.read_bytes()
        path.write_bytes(mutated_bytes(random, data))
        state, warnings = restored(directory, settings=settings)
        if int(state.step) == 7:
            check(state)
            assert not warnings
            path.write_bytes(data)
            return False
        assert int(state.step) == 5
        assert len(warnings) == 1
        with Checkpoints(directory, settings=settings) as checkpoints:
            checkpoints.save(STATE)
        return True

    check_cases("files of a checkpoint", num_cases, record_property, case)


def test_a_checkpoint_of_an_earlier_version_is_read(tmp_path):
    options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False)
    with ocp.CheckpointManager(tmp_path, options=options) as manager:
        earlier = Earlier(*STATE._replace(key=jax.random.key_data(STATE.key)))
        manager.save(7, args=ocp.args.StandardSave(earlier))
    with Checkpoints(tmp_path) as checkpoints:
        found, _ = checkpoints.restore(blank(), warn=pytest.fail)
    check(found)


def test_a_checkpoint_from_before_its_metadata_had_a_seal_is_read(tmp_path, monkeypatch, plain):
    settings = to_json(plain)
    earlier = {"settings", "checksum"}
    with Checkpoints(tmp_path, settings=settings) as checkpoints, monkeypatch.context() as patch:
        patch.setattr(
            checkpoint,
            "_seal",
            lambda metadata: {name: metadata[name] for name in metadata if name in earlier},
        )
        checkpoints.save(STATE)
    check(restored(tmp_path, settings=settings)[0])
    with pytest.raises(ConfigMismatchError, match="belongs to another run"):
        restored(tmp_path, settings=to_json(dataclasses.replace(plain, seed=1)))
