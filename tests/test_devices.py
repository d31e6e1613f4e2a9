"""The penalised loss over eight devices: one global loss, or one loss for each device."""

import functools
import json
import pathlib
import subprocess
import sys

import chex
import collectives
import jax
import jax.numpy as jnp
import networks
import numpy as np
import optax
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import seht_jax as seht
from seht_jax import products

KEY = jax.random.key(3)
LAM = 0.3
MESH = collectives.MESH
PROBABILITIES = pytest.mark.parametrize("p", [None, (0.6, 0.4)], ids=["seht_h", "seht_d"])
# `test_every_form_of_the_step_trains_the_weights_that_one_device_does` has all of them.
FORMS = pytest.mark.parametrize(
    "form",
    [
        "check_vma",
        pytest.param("no_check_vma", marks=pytest.mark.long),
        pytest.param("pmap", marks=pytest.mark.long),
    ],
)


def assert_close(actual, expected, rtol=1e-9):
    chex.assert_trees_all_close(actual, expected, rtol=rtol, atol=rtol)


def loss_fn(params, batch):
    hidden = jnp.tanh(batch["image"] @ params["first"]["kernel"])
    loss = jnp.mean((hidden @ params["second"]["kernel"] - batch["target"]) ** 2)
    return loss, {"hidden": hidden.mean(0)}


@pytest.fixture
def data():
    return collectives.data()


def penalised_step(loss_fn, p):
    def step(params, batch, key):
        penalised = seht.regularize(loss_fn, key, p, LAM, has_aux=True, with_estimate=True)
        return jax.value_and_grad(penalised, has_aux=True)(params, batch)

    return step


# jit: the Hessian of the global loss


def sharded(tree, mesh=MESH):
    return jax.device_put(tree, NamedSharding(mesh, P("data")))


@PROBABILITIES
def test_a_sharded_batch_gives_what_one_device_does(data, p):
    params, batch = data
    step = jax.jit(penalised_step(loss_fn, p))
    expected = step(params, batch, KEY)
    assert_close(step(params, sharded(batch), KEY), expected)


@pytest.mark.long
def test_a_sharded_batch_gives_what_one_device_does_for_a_convolutional_network():
    conv_loss, params, batch = networks.conv_net()
    batch = jax.tree.map(lambda x: jnp.concatenate([x, x + x]), batch)
    batch = {**batch, "label": batch["label"] % 3}
    step = jax.jit(penalised_step(conv_loss, (0.9, 0.4)))
    assert_close(step(params, sharded(batch), KEY), step(params, batch, KEY))


@PROBABILITIES
@pytest.mark.parametrize("params_axis", ["model", "data"])
def test_gradients_of_sharded_params_are_sharded_as_the_plain_ones(data, p, params_axis):
    params, batch = data
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    specs = {"first": {"kernel": P(None, params_axis)}, "second": {"kernel": P(params_axis)}}
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
    step = jax.jit(penalised_step(loss_fn, p))
    expected = step(params, batch, KEY)
    params, batch = jax.device_put(params, shardings), sharded(batch, mesh)
    actual = step(params, batch, KEY)
    assert_close(actual, expected)
    chex.assert_trees_all_equal_shapes_and_dtypes(actual[1], params)
    plain = jax.jit(jax.grad(lambda *args: loss_fn(*args)[0]))(params, batch)
    # Where params and batch share an axis, XLA may gather the plain gradients too.
    for like in (plain, params) if params_axis == "model" else (plain,):
        for gradient, leaf in zip(*map(jax.tree.leaves, (actual[1], like)), strict=True):
            assert gradient.sharding.is_equivalent_to(leaf.sharding, leaf.ndim)


# shard_map and pmap: the mean over the devices of each one's penalised loss


def shards(batch):
    return jax.tree.map(lambda x: x.reshape(8, 2, *x.shape[1:]), batch)


def mean_over_shards(p, params, batch, keys):
    each = jax.jit(jax.vmap(penalised_step(loss_fn, p), (None, 0, 0)))
    return jax.tree.map(lambda x: x.mean(0), each(params, shards(batch), keys))


def device_step(p, *, check_vma, per_device, capture):
    """A step inside a map over the devices; gradients are averaged by the documented rule."""

    def step(params, batch, key):
        if per_device:
            key = jax.random.fold_in(key, lax.axis_index("data"))
        options = {"has_aux": True, "with_estimate": True}
        if capture:
            captured = seht.regularize(lambda p: loss_fn(p, batch), key, p, LAM, **options)
        else:
            penalised = seht.regularize(loss_fn, key, p, LAM, **options)

        def mean_loss(params):
            loss, extras = captured(params) if capture else penalised(params, batch)
            return lax.pmean(loss, "data") if check_vma else loss, extras

        (loss, extras), gradients = jax.value_and_grad(mean_loss, has_aux=True)(params)
        extras = jax.tree.map(lambda x: x.astype(float), extras)
        averaged = lax.pmean(extras, "data")
        if not check_vma:
            loss, gradients = lax.pmean((loss, gradients), "data")
        return ((loss, averaged), gradients), jnp.zeros((1,))

    return step


@FORMS
@PROBABILITIES
@pytest.mark.parametrize("per_device", [False, True], ids=["one_key", "key_per_device"])
def test_a_map_over_devices_gives_the_mean_over_shards(data, form, p, per_device):
    step = device_step(p, check_vma=form == "check_vma", per_device=per_device, capture=False)
    actual, _ = collectives.mapped(form, step)(*data, KEY)
    fold = jax.vmap(functools.partial(jax.random.fold_in, KEY))
    keys = fold(jnp.arange(8)) if per_device else jnp.stack([KEY] * 8)
    assert_close(actual, mean_over_shards(p, *data, keys))


@FORMS
def test_the_batch_of_a_device_may_be_captured(data, form):
    step = device_step((0.6, 0.4), check_vma=form == "check_vma", per_device=True, capture=True)
    actual, _ = collectives.mapped(form, step)(*data, KEY)
    keys = jax.vmap(functools.partial(jax.random.fold_in, KEY))(jnp.arange(8))
    assert_close(actual, mean_over_shards((0.6, 0.4), *data, keys))


def in_shard_map(step):
    return jax.jit(jax.shard_map(step, mesh=MESH, in_specs=(P(), P("data"), P()), out_specs=P()))


def test_a_captured_replicated_value_that_is_differentiated_is_refused(data):
    def step(params, batch, key):
        def value(scale):
            def scaled(params):
                return scale * loss_fn(params, batch)[0]

            return lax.pmean(seht.regularize(scaled, key, None, LAM)(params), "data")

        return jax.grad(value)(jnp.asarray(2.0))

    with pytest.raises(ValueError, match=r"value of shape \(\) that it captures .* as an argument"):
        in_shard_map(step)(*data, KEY)


def test_a_replicated_argument_that_is_differentiated_gets_the_sum_over_devices(data):
    def step(params, batch, key):
        def value(scale):
            def scaled(params, scale):
                return scale * loss_fn(params, batch)[0]

            penalised = seht.regularize(scaled, key, None, LAM)
            return lax.pmean(penalised(params, scale), "data")

        return jax.value_and_grad(value)(jnp.asarray(2.0))

    value, slope = in_shard_map(step)(*data, KEY)
    assert_close(slope, value / 2)


# Whole training steps: with one key for all devices, every form of the step is that of one device


def marked_loss(params, batch):
    hidden = jnp.tanh(batch["image"] @ params["first"]["kernel"])
    outputs = seht.outputs(hidden @ params["second"]["kernel"])
    return jnp.mean((outputs - batch["target"]) ** 2)


def gathering_loss(params, batch):
    return marked_loss(lax.with_sharding_constraint(params, NamedSharding(MESH, P())), batch)


TX = optax.sgd(0.1, momentum=0.9)


def sgd_step(objective, form):
    """A step of SGD on `objective(key)(params, batch)`, averaged by the documented rules."""

    def step(state, batch, key):
        params, opt_state = state

        def mean_loss(params):
            loss = objective(key)(params, batch)
            return lax.pmean(loss, "data") if form == "check_vma" else loss

        gradients = jax.grad(mean_loss)(params)
        if form in {"no_check_vma", "pmap"}:
            gradients = lax.pmean(gradients, "data")
        updates, opt_state = TX.update(gradients, opt_state)
        return optax.apply_updates(params, updates), opt_state

    return step


def on_devices(form, step):
    if form == "pmap":
        mapped = jax.pmap(step, "data", in_axes=(None, 0, None), out_axes=None)
        return lambda state, batch, key: mapped(state, shards(batch), key)
    if form in {"check_vma", "no_check_vma"}:
        in_specs = (P(), P("data"), P())
        check_vma = form == "check_vma"
        return jax.jit(
            jax.shard_map(step, mesh=MESH, in_specs=in_specs, out_specs=P(), check_vma=check_vma)
        )
    return jax.jit(step)


def trained(step, state, batch):
    for key in jax.random.split(KEY, 4):
        state = step(state, batch, key)
    return state


@pytest.mark.parametrize(
    ("p", "curvature"), [(None, "gauss_newton"), ((0.6, 0.4), "hessian")], ids=["seht_h", "seht_d"]
)
@pytest.mark.parametrize(
    "form", ["replicated", "sharded", "gathered", "check_vma", "no_check_vma", "pmap"]
)
def test_every_form_of_the_step_trains_the_weights_that_one_device_does(data, form, p, curvature):
    params, batch = data

    def objective(loss_fn):
        return lambda key: seht.regularize(loss_fn, key, p, LAM, curvature=curvature)

    state = params, TX.init(params)
    expected = trained(jax.jit(sgd_step(objective(marked_loss), "jit")), state, batch)
    if form in {"replicated", "sharded", "gathered"}:
        batch = sharded(batch)
        axis = None if form == "replicated" else "data"
        specs = {"first": {"kernel": P(None, axis)}, "second": {"kernel": P(axis)}}
        shardings = jax.tree.map(lambda spec: NamedSharding(MESH, spec), specs)
        params = jax.device_put(params, shardings)
        state = params, TX.init(params)
    loss_fn = gathering_loss if form == "gathered" else marked_loss
    step = on_devices(form, sgd_step(objective(loss_fn), form))
    assert_close(trained(step, state, batch), expected)


def optax_step(tx, average):
    """A step of the optax form; `average` is what is averaged before the updates are."""

    def step(state, batch, key):
        params, opt_state = state

        def value_fn(params):
            return marked_loss(params, batch)

        def mean_loss(params):
            loss = value_fn(params)
            return lax.pmean(loss, "data") if average == "loss" else loss

        gradients = jax.grad(mean_loss)(params)
        if average == "gradients":
            gradients = lax.pmean(gradients, "data")
        updates, (penalty, *others) = tx.update(gradients, opt_state, params, value_fn=value_fn)
        if average is not None:
            # The estimate, which is for the log, is that of each device.
            updates, estimate = lax.pmean((updates, penalty.estimate), "data")
            penalty = penalty._replace(estimate=estimate)
        return optax.apply_updates(params, updates), (penalty, *others)

    return step


@FORMS
def test_every_form_of_the_step_takes_the_optax_form(data, form):
    params, batch = data
    tx = optax.chain(seht.add_hessian_trace((0.6, 0.4), LAM, KEY), optax.sgd(0.1))
    state = params, tx.init(params)
    expected, (penalty, *_) = trained(jax.jit(optax_step(tx, None)), state, batch)
    step = optax_step(tx, "loss" if form == "check_vma" else "gradients")
    actual, (mean_penalty, *_) = trained(on_devices(form, step), state, batch)
    assert_close(actual, expected)
    assert_close(mean_penalty.estimate, penalty.estimate)


# Losses that communicate


@FORMS
@pytest.mark.parametrize("name", collectives.LOSSES)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_loss_that_communicates_has_the_hessian_of_the_global_loss(data, form, name, seed):
    params, batch = data
    key = jax.random.key(seed)
    step = collectives.gradient_step(collectives.LOSSES[name], None, check_vma=form == "check_vma")
    actual, _ = collectives.mapped(form, step)(params, batch, key)

    @jax.jit
    def global_step(params):
        # One shard that is the whole batch: the mean over an axis of size one.
        return jax.value_and_grad(
            lambda params: jax.vmap(
                lambda batch: seht.regularize(collectives.LOSSES[name], key, (0.5, 0.5), 0.1)(
                    params, batch
                ),
                axis_name="data",
            )(jax.tree.map(lambda x: x[None], batch))[0]
        )(params)

    assert_close(actual, global_step(params))


@pytest.fixture(scope="module")
def finished():
    """The forms that finished within the time limit, with the layers that each device drew."""
    script = pathlib.Path(__file__).with_name("collectives.py")
    root = script.parent.parent
    try:
        run = subprocess.run(
            [sys.executable, str(script)],
            capture_output=True,
            timeout=240,
            check=False,
            cwd=root,
            env={"PYTHONPATH": str(root), "PATH": "", "JAX_ENABLE_X64": "1"},
        )
        output, errors = run.stdout, run.stderr
    except subprocess.TimeoutExpired as expired:
        output, errors = expired.stdout or b"", expired.stderr or b""
    lines = [json.loads(line) for line in output.decode().splitlines()]
    return {tuple(case): drawn for *case, drawn in lines}, errors.decode()[-2000:]


@FORMS
@pytest.mark.parametrize("name", collectives.LOSSES)
@pytest.mark.parametrize("by", ["key", "active"])
def test_devices_that_communicate_draw_the_same_layers(finished, form, name, by):
    cases, errors = finished
    assert (name, form, by) in cases, f"did not finish: {errors}"
    drawn = np.asarray(cases[name, form, by])
    assert drawn.shape == (6, 8)
    assert (drawn == drawn[:, :1]).all()
    assert len(np.unique(drawn)) > 1


# Sharding in the types


@PROBABILITIES
def test_an_explicit_mesh_gives_what_one_device_does(data, p):
    params, batch = data
    expected = jax.jit(penalised_step(loss_fn, p))(params, batch, KEY)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        actual = jax.jit(penalised_step(loss_fn, p))(
            jax.device_put(params, NamedSharding(mesh, P())), sharded(batch, mesh), KEY
        )
    assert_close(actual, expected)


def recurrent_loss(params, batch):
    def cell(hidden, x):
        hidden = jnp.tanh(x + hidden @ params["kernel"])
        return hidden, hidden

    _, hiddens = lax.scan(cell, jnp.zeros_like(batch[0]), batch)
    return jnp.mean(hiddens**2)


def test_a_recurrent_network_runs_on_an_explicit_mesh():
    params = {"kernel": jax.random.normal(KEY, (3, 3))}
    batch = jax.random.normal(jax.random.key(1), (4, 8, 3))

    @jax.jit
    def step(params, batch):
        return jax.value_and_grad(seht.regularize(recurrent_loss, KEY, None, LAM))(params, batch)

    expected = step(params, batch)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        actual = step(
            jax.device_put(params, NamedSharding(mesh, P())),
            jax.device_put(batch, NamedSharding(mesh, P(None, "data"))),
        )
    assert_close(actual, expected)


# Layers that may not be drawn, whose products have branches where they are large


@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton"])
@pytest.mark.parametrize("mode", ["explicit", "shard_map", "vmap", "hessian_of_the_penalised"])
def test_branches_of_layers_are_as_good_as_none(data, mode, curvature, monkeypatch):
    params, batch = data

    def marked_loss(params, batch):
        hidden = jnp.tanh(batch["image"] @ params["first"]["kernel"])
        outputs = seht.outputs(hidden @ params["second"]["kernel"])
        return jnp.mean((outputs - batch["target"]) ** 2)

    def step(params, batch, key):
        penalised = seht.regularize(marked_loss, key, (0.5, 0.4), LAM, curvature=curvature)
        if mode == "hessian_of_the_penalised":
            return jax.hessian(penalised)(params, batch)
        return jax.value_and_grad(penalised)(params, batch)

    def results():
        keys = jax.random.split(KEY, 4)
        match mode:
            case "explicit":
                mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
                with jax.set_mesh(mesh):
                    replicated = jax.device_put(params, NamedSharding(mesh, P()))
                    return [jax.jit(step)(replicated, sharded(batch, mesh), key) for key in keys]
            case "shard_map":

                def mean_step(*operands):
                    loss, gradients = step(*operands)
                    return lax.pmean(loss, "data"), gradients

                specs = (P(), P("data"), P())
                mapped = jax.shard_map(mean_step, mesh=MESH, in_specs=specs, out_specs=P())
                return [jax.jit(mapped)(params, batch, key) for key in keys]
            case "vmap":
                return jax.jit(jax.vmap(step, (None, None, 0)))(params, batch, keys)
        return jax.jit(step)(params, batch, keys[0])

    without = results()
    monkeypatch.setattr(products, "_WORTHWHILE_INTENSITY", 0)
    assert_close(results(), without)


# Corners of `shard_map`


def on_four_devices(function, in_specs, out_specs=None):
    mesh = jax.make_mesh((4,), ("data",), (AxisType.Auto,), devices=jax.devices()[:4])
    mapped = jax.shard_map(
        function, mesh=mesh, in_specs=in_specs, out_specs=P() if out_specs is None else out_specs
    )
    return jax.jit(mapped)


def quartic(w, x):
    return jnp.mean((w * x) ** 4)


def corner():
    return jnp.array([0.5, 1.5]), 1.0 + jnp.arange(8.0).reshape(4, 2) / 8


@pytest.mark.parametrize("mode", [jax.grad, jax.jacrev])
def test_a_loss_that_devices_share_is_differentiated_by_the_batch_of_each(mode):
    w, x = corner()

    def penalised(regularize_loss):
        return seht.regularize(regularize_loss, jax.random.key(1), None, 0.1)

    def of_a_device(w, x):
        return mode(penalised(lambda w, x: jax.lax.pmean(quartic(w, x), "data")), argnums=(0, 1))(
            w, x
        )

    mapped = on_four_devices(of_a_device, (P(), P("data")), (P(), P("data")))
    expected = jax.jit(mode(penalised(quartic), argnums=(0, 1)))(w, x)
    chex.assert_trees_all_close(mapped(w, x), expected, rtol=1e-10)


def test_a_tangent_by_the_batch_of_each_device_is_summed_over_them():
    w, x = corner()

    def slope(loss_fn):
        def value(w, x):
            penalised = seht.regularize(loss_fn, jax.random.key(1), None, 0.1)
            return jax.jvp(penalised, (w, x), (jnp.cos(w), jnp.cos(x)))[1]

        return value

    shared = slope(lambda w, x: jax.lax.pmean(quartic(w, x), "data"))
    mapped = on_four_devices(shared, (P(), P("data")))
    np.testing.assert_allclose(mapped(w, x), jax.jit(slope(quartic))(w, x), rtol=1e-10)


def test_params_that_are_sharded_by_hand_are_refused():

    def penalised(w):
        def loss_fn(w):
            return jax.lax.psum(jnp.sum(w**4), "data")

        return seht.regularize(loss_fn, jax.random.key(1), None, 0.1)(w)

    with pytest.raises(ValueError, match=r"the params differ over the mesh axes \['data'\]"):
        on_four_devices(penalised, P("data"))(jnp.ones(4))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(
    "name", ["hutchinson_trace", "masked_trace", "layer_traces", "exact_trace"]
)
def test_estimates_work_on_a_shard(name, shared):
    """The Hessian is diagonal, so that every probe of signs gives the trace."""
    w, x = corner()

    def loss_fn(w, x):
        return jax.lax.pmean(quartic(w, x), "data") if shared else quartic(w, x)

    def trace(w, x):
        key = jax.random.fold_in(jax.random.key(1), jax.lax.axis_index("data"))
        estimate = {
            "hutchinson_trace": lambda: (
                seht.hutchinson_trace(loss_fn, key, num_probes=2)(w, x).mean
            ),
            "masked_trace": lambda: seht.masked_trace(loss_fn, key, (1.0, 0.5))(w, x).mean,
            "layer_traces": lambda: seht.layer_traces(loss_fn, key)(w, x)["params"].mean,
            "exact_trace": lambda: seht.exact_trace(loss_fn)(w, x),
        }[name]()
        return estimate if shared else jax.lax.pmean(estimate, "data")

    expected = jnp.trace(jax.jit(jax.hessian(quartic))(w, x))
    mapped = on_four_devices(trace, (P(), P("data")))
    np.testing.assert_allclose(mapped(w, x), expected, rtol=1e-6)
