"""A run over several devices is the run of one device, but for the last digits."""

import dataclasses

import chex
import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from benchmarks.hlo import communication_paths
from experiments.config import (
    DevicesConfig,
    LanguageModelConfig,
    OptimizerConfig,
    TextConfig,
    TrainConfig,
)
from experiments.data.load import load_data
from experiments.errors import SettingError
from experiments.regularizers import SehtD
from experiments.training.checkpoint import Checkpoints
from experiments.training.devices import Placement, make_mesh, weight_spec
from experiments.training.loop import build_experiment, train

PENALTY = SehtD(lam=1e-3, p=0.7, p_entries=0.4, num_branches=1)


def on(config, mesh):
    return dataclasses.replace(config, devices=DevicesConfig(mesh=mesh))


def after(config, data, num_steps, state=None):
    """Train for a few steps; returns the experiment and its state."""
    experiment = build_experiment(config, data)
    state = experiment.init(0) if state is None else state
    order = experiment.task.epoch_order(state.key, 0)
    for _ in range(num_steps):
        state, _ = experiment.train_step(state, experiment.task.train_data, order)
    return experiment, state


def shardings(*states):
    leaves = map(jax.tree.leaves, states)
    return zip(*([leaf.sharding for leaf in each] for each in leaves), strict=True)


@pytest.fixture
def images(tiny_config):
    """Eight images a step, with BatchNorm and SEHT-D."""
    return dataclasses.replace(tiny_config, batch_size=8, method=(PENALTY,))


@pytest.fixture
def text(tmp_path):
    """Eight strands a step, with carried states."""
    return TrainConfig(
        name="text",
        data=TextConfig(length=4, train_tokens=400, evaluation_tokens=100),
        model=LanguageModelConfig(width=8),
        optimizer=OptimizerConfig(schedule="plateau", momentum=0.0, weight_decay=0.0),
        method=(),
        batch_size=8,
        epochs=1,
        run_dir=tmp_path / "run",
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "mesh"),
    [
        pytest.param("images", "data=4", marks=pytest.mark.long),
        pytest.param("images", "data=2,model=2", marks=pytest.mark.long),
        pytest.param("text", "data=2,model=2", marks=pytest.mark.long),
    ],
)
def test_it_ends_with_the_weights_of_one_device(request, tiny_digits, kind, mesh):
    config = dataclasses.replace(request.getfixturevalue(kind), method=(PENALTY,))
    data = tiny_digits if kind == "images" else load_data(config.data)
    _, expected = after(config, data, 4)
    experiment, found = after(on(config, mesh), data, 4)
    chex.assert_trees_all_close(found.params, expected.params, rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(found.network_state, expected.network_state, rtol=1e-4, atol=1e-5)
    start = experiment.init(0)
    # Or the step would be compiled once more.
    assert {now: before for now, before in shardings(found, start) if now != before} == {}


def test_the_batch_and_the_weights_are_spread(images, tiny_digits):
    experiment, state = after(on(images, "data=2,model=2"), tiny_digits, 1)
    kernel = state.params["head"]["kernel"]
    assert kernel.sharding.spec in {P("model"), P(None, "model")}
    assert kernel.addressable_shards[0].data.size == kernel.size // 2
    momentum = jax.tree.leaves(state.opt_state)
    assert any(leaf.sharding.spec == kernel.sharding.spec for leaf in momentum)
    mesh = experiment.placement.mesh
    batch = jax.jit(Placement(mesh).batch)(np.zeros((8, 3), np.float32))
    assert batch.sharding.spec == P("data")


def communicated(config, data):
    """The shapes of what the devices tell one another in a step, and how."""
    experiment = build_experiment(config, data)
    state = experiment.init(0)
    order = experiment.task.epoch_order(state.key, 0)
    step = experiment.train_step
    arguments = (state, experiment.task.train_data, order)
    step = step.func.lower(*arguments, **step.keywords).compile()
    (path,) = communication_paths(step.as_text(), 8)
    return [(each.kind, each.shapes) for each in path.collectives]


@pytest.mark.parametrize("kind", ["images", pytest.param("text", marks=pytest.mark.long)])
def test_nothing_of_the_data_is_sent(request, tiny_digits, kind):
    config = dataclasses.replace(request.getfixturevalue(kind), method=())
    data = tiny_digits if kind == "images" else load_data(config.data)
    found, of_more = (
        communicated(on(dataclasses.replace(config, batch_size=size), "data=8"), data)
        for size in (8, 16)
    )
    assert {kind for kind, _ in found} == {"all-reduce"}
    assert found == of_more  # of what depends on the examples, sums over all of them are sent


def test_states_of_recurrent_layers_are_spread_as_the_strands(text):
    _, state = after(on(text, "data=4"), load_data(text.data), 1)
    assert {leaf.sharding.spec for leaf in jax.tree.leaves(state.network_state)} == {P("data")}


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((3, 3, 4, 8), P(None, None, None, "model")),
        ((8, 6), P("model")),
        ((3, 6), P(None, "model")),
        ((3, 3), P()),
        ((8,), P()),
        ((), P()),
    ],
)
def test_weights_are_cut_along_the_largest_dimension_that_can_be(shape, expected):
    mesh = jax.make_mesh((1, 2), ("data", "model"), devices=jax.devices()[:2])
    assert weight_spec(shape, mesh) == expected


@pytest.mark.parametrize(
    ("first", "then"),
    [pytest.param("data=4", None, marks=pytest.mark.long), (None, "data=2,model=2")],
)
def test_a_checkpoint_is_gone_on_with_on_other_devices(images, tiny_digits, tmp_path, first, then):
    _, state = after(on(images, first), tiny_digits, 2)
    _, expected = after(on(images, first), tiny_digits, 2, state)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(state)
        like = build_experiment(on(images, then), tiny_digits).init(1)
        restored, _ = checkpoints.restore(like, warn=pytest.fail)
    chex.assert_trees_all_equal(restored.params, state.params)
    _, found = after(on(images, then), tiny_digits, 2, restored)
    chex.assert_trees_all_close(found.params, expected.params, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "mesh", ["", "data", "data=", "data=0", "data=-1", "data=two", "rows=2", "data=2,data=2"]
)
def test_a_mesh_that_is_not_understood_is_refused(mesh):
    with pytest.raises(SettingError, match="--mesh must be data=N or data=N,model=M"):
        DevicesConfig(mesh=mesh)


def test_a_mesh_without_data_is_refused():
    with pytest.raises(SettingError, match=r"--mesh must have an axis data, .*: data=1,model=2"):
        DevicesConfig(mesh="model=2")


@pytest.mark.parametrize(("mesh", "processes", "parts"), [("data=3", 1, 3), (None, 2, 8)])
def test_a_batch_that_can_not_be_spread_leaves_no_directory(
    tiny_config, console, monkeypatch, mesh, processes, parts
):
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    with pytest.raises(SettingError, match=f"a multiple of the {parts} devices .* not 100"):
        train(on(tiny_config, mesh), console)
    assert not tiny_config.run_dir.exists()


def test_too_few_devices_are_an_error_that_says_how_a_cpu_is_cut():
    with pytest.raises(SettingError, match=r"has 16 devices, and there are 8.*device_count=N"):
        make_mesh(DevicesConfig(mesh="data=16"))


@pytest.mark.parametrize("coordinator", ["localhost", "", ":1", "a:", "a:b", "a:0", "a:65536"])
def test_a_place_to_meet_without_a_port_is_refused(coordinator):
    with pytest.raises(SettingError, match="--coordinator must be HOST:PORT, not"):
        DevicesConfig(distributed=True, coordinator=coordinator, num_processes=1, process_id=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"distributed": True, "coordinator": "a:1"},
            "--num-processes and --process-id is missing",
        ),
        ({"coordinator": "a:1", "num_processes": 2, "process_id": 0}, "need --distributed"),
        (
            {"distributed": True, "coordinator": "a:1", "num_processes": 2, "process_id": 2},
            "--process-id must be from 0 to 1, not 2",
        ),
        (
            {"distributed": True, "coordinator": "a:1", "num_processes": 0, "process_id": 0},
            "--num-processes must be at least 1, not 0",
        ),
    ],
)
def test_processes_that_can_not_meet_are_refused(settings, message):
    with pytest.raises(SettingError, match=message):
        DevicesConfig(**settings)
