"""AdaHessian, against the published update written in NumPy."""

import functools

import chex
import jax
import jax.numpy as jnp
import networks
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from oracle import dense_hessian, without_aux

import seht_jax as seht
from seht_jax.probes import layer_table, module_layer, sample_probe

KEY = jax.random.key(5)
CURVATURES = np.array([1.0, -4.0, 1000.0])
START = np.array([1.0, 0.5, -2.0])
STATIC = ("num_probes", "every", "spatial_average")


def quadratic(params):
    return 0.5 * jnp.sum(jnp.asarray(CURVATURES, params.dtype) * params**2)


def published(gradients, diagonals, *, b1=0.9, b2=0.999, eps=1e-4, power=1.0):
    """Return the rescaled gradient of each step, by Algorithm 1 of Yao et al."""
    m, v, directions = 0.0, 0.0, []
    for t, (g, d) in enumerate(zip(gradients, diagonals, strict=True), start=1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * d * d
        root = np.sqrt(v) / np.sqrt(1 - b2**t)
        directions.append(m / (1 - b1**t) / (root**power + eps))
    return directions


def run(tx, value_fn, params, steps):
    """Return params before each step, the updates of each, and the last state."""

    @jax.jit
    def step(params, state):
        gradients = jax.grad(value_fn)(params)
        updates, state = tx.update(gradients, state, params, value_fn=value_fn)
        return updates, optax.apply_updates(params, updates), state

    visited, history, state = [], [], tx.init(params)
    for _ in range(steps):
        visited.append(params)
        updates, params, state = step(params, state)
        history.append(updates)
    return visited, history, state


def probes_of_step(state_key, params, num_probes):
    """Return the flat probes of a step, and the key in the state after it."""
    next_key, step_key = jax.random.split(state_key)
    leaves, structure = jax.tree.flatten(params)
    table = layer_table(params, module_layer)
    probes = [sample_probe(key, leaves, table, 0.5, None) for key in
              jax.random.split(step_key, num_probes)]  # fmt: skip
    flat = [ravel_pytree(structure.unflatten(list(probe.values())))[0] for probe in probes]
    return np.array(flat), next_key


# A quadratic with a known diagonal, whose estimate does not depend on the signs


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"b1": 0.5, "b2": 0.9, "eps": 0.1},
        {"hessian_power": 0.5},
        {"num_probes": 3},
        {"b1": 0.0, "b2": 0.0, "eps": 0.0},
    ],
    ids=str,
)
def test_a_quadratic(settings):
    tx = optax.chain(seht.scale_by_adahessian(KEY, **settings), optax.scale(-0.15))
    visited, history, _ = run(tx, quadratic, jnp.asarray(START), 4)
    expected = published(
        [CURVATURES * np.asarray(params) for params in visited],
        [CURVATURES] * 4,
        power=settings.get("hessian_power", 1.0),
        **{name: settings[name] for name in ("b1", "b2", "eps") if name in settings},
    )
    np.testing.assert_allclose(history, -0.15 * np.array(expected), rtol=1e-10)


def test_the_first_step_is_a_share_of_newtons_and_goes_down_negative_curvature():
    tx = seht.adahessian(0.25, KEY, eps=0.0)
    _, (updates,), _ = run(tx, quadratic, jnp.asarray(START), 1)
    np.testing.assert_allclose(updates, -0.25 * np.sign(CURVATURES) * START, rtol=1e-10)


def test_power_0_is_gradient_descent_with_momentum():
    tx = seht.scale_by_adahessian(KEY, b1=0.0, eps=0.0, hessian_power=0.0)
    _, (updates,), _ = run(tx, quadratic, jnp.asarray(START), 1)
    np.testing.assert_allclose(updates, CURVATURES * START, rtol=1e-10)


def test_weight_decay_is_decoupled_and_the_rate_may_be_a_schedule():
    tx = seht.adahessian(optax.linear_schedule(0.1, 0.2, 1), KEY, eps=0.0, weight_decay=0.3)
    visited, history, _ = run(tx, quadratic, jnp.asarray(START), 2)
    directions = published(
        [CURVATURES * np.asarray(params) for params in visited], [CURVATURES] * 2, eps=0.0
    )
    for rate, direction, params, updates in zip(
        (0.1, 0.2), directions, visited, history, strict=True
    ):
        expected = -rate * (direction + 0.3 * np.asarray(params))
        np.testing.assert_allclose(updates, expected, rtol=1e-6)


def test_the_average_of_the_diagonal_counts_the_steps_on_which_it_is_estimated():
    def value_fn(params):
        return jnp.sum(params**4)

    tx = optax.chain(seht.scale_by_adahessian(KEY, b1=0.0, b2=0.5, eps=0.0, every=2),
                     optax.scale(-0.1))  # fmt: skip
    visited, history, state = run(tx, value_fn, jnp.array([1.0, -2.0]), 4)
    points = np.array(visited)
    first, third = 12 * points[0] ** 2, 12 * points[2] ** 2
    later = np.sqrt((0.5 * 0.5 * first**2 + 0.5 * third**2) / 0.75)
    denominators = np.array([first, first, later, later])
    np.testing.assert_allclose(history, -0.1 * 4 * points**3 / denominators, rtol=1e-8)
    assert state[0].count == 4


# A network, against its dense Hessian


def check_network(case, average, *, num_probes, steps=2, **options):
    value_fn = functools.partial(lambda params: without_aux(case.loss_fn)(params, case.batch))
    tx = optax.chain(
        seht.scale_by_adahessian(KEY, num_probes=num_probes, **options), optax.scale(-0.15)
    )
    visited, history, _ = run(tx, value_fn, case.params, steps)
    hessian = jax.jit(functools.partial(dense_hessian, value_fn))
    gradient = jax.jit(jax.grad(value_fn))
    _, unravel = ravel_pytree(case.params)
    gradients, diagonals, key = [], [], KEY
    for params in visited:
        probes, key = probes_of_step(key, params, num_probes)
        diagonal = np.mean(probes * (probes @ np.asarray(hessian(params))), axis=0)
        averaged = jax.tree.map(lambda leaf: average(np.asarray(leaf)), unravel(diagonal))
        diagonals.append(np.asarray(ravel_pytree(averaged)[0]))
        gradients.append(np.asarray(ravel_pytree(gradient(params))[0]))
    for updates, expected in zip(history, published(gradients, diagonals), strict=True):
        np.testing.assert_allclose(ravel_pytree(updates)[0], -0.15 * expected, rtol=1e-6)


def tiny_conv_net():
    """Return a network with one convolution, whose dense Hessian is quickly compiled."""
    keys = jax.random.split(jax.random.key(6), 4)
    params = {
        "conv": {"kernel": jax.random.normal(keys[0], (2, 3, 2, 2))},
        "dense": {"kernel": jax.random.normal(keys[1], (2, 3))},
    }

    def loss(params, batch):
        dims = ("NHWC", "HWIO", "NHWC")
        kernel = params["conv"]["kernel"]
        x = jax.lax.conv_general_dilated(
            batch["image"], kernel, (1, 1), "SAME", dimension_numbers=dims
        )
        logits = jnp.tanh(x).mean((1, 2)) @ params["dense"]["kernel"]
        return networks.cross_entropy(logits, batch["label"]), None

    image = jax.random.normal(keys[2], (4, 4, 4, 2))
    return networks.Case(loss, params, {"image": image, "label": jnp.array([0, 1, 2, 0])})


@pytest.mark.parametrize("num_probes", [1, 3])
def test_a_perceptron(num_probes):
    check_network(networks.mlp(jnp.tanh), lambda leaf: leaf, num_probes=num_probes)


def mean_over_the_window(leaf):
    return np.broadcast_to(leaf.mean((0, 1)), leaf.shape) if leaf.ndim == 4 else leaf


def test_a_convolutional_network_as_the_authors_code():
    check_network(
        tiny_conv_net(), lambda leaf: mean_over_the_window(np.abs(leaf)), num_probes=1, steps=1
    )


def test_a_convolutional_network_as_the_paper():
    check_network(
        tiny_conv_net(),
        mean_over_the_window,
        num_probes=2,
        steps=1,
        spatial_average=seht.kernel_mean,
    )


def test_an_average_of_the_users_is_given_paths_and_diagonals():
    seen = {}

    def average(path, diagonal):
        seen[path] = diagonal.shape
        return diagonal.mean() if path[-1] == "kernel" else diagonal

    params = {"dense": {"kernel": jnp.array([1.0, 3.0]), "bias": jnp.array([1.0, 3.0])}}
    tx = seht.scale_by_adahessian(KEY, eps=0.0, spatial_average=average)

    def cubes(params):
        return sum(jnp.sum(leaf**3) for leaf in jax.tree.leaves(params))

    _, (updates,), _ = run(tx, cubes, params, 1)
    assert seen == {("dense", "kernel"): (2,), ("dense", "bias"): (2,)}
    np.testing.assert_allclose(updates["dense"]["kernel"], [3 / 12, 27 / 12])
    np.testing.assert_allclose(updates["dense"]["bias"], [3 / 6, 27 / 18])


# In optax


def test_settings_may_be_injected():
    tx = optax.inject_hyperparams(seht.scale_by_adahessian, static_args=STATIC)(KEY, b1=0.0)
    state = tx.init(jnp.asarray(START))
    gradients = jnp.asarray(CURVATURES * START)
    for eps in (0.0, 2.0):
        state.hyperparams["eps"] = jnp.asarray(eps)
        updates, state = tx.update(gradients, state, jnp.asarray(START), value_fn=quadratic)
        np.testing.assert_allclose(
            updates, CURVATURES * START / (np.abs(CURVATURES) + eps), rtol=1e-6
        )


def test_it_trains_a_network():
    case = networks.mlp(jnp.tanh)

    def value_fn(params):
        return without_aux(case.loss_fn)(params, case.batch)

    visited, _, _ = run(seht.adahessian(0.15, KEY), value_fn, case.params, 60)
    assert value_fn(visited[-1]) < 0.1 * value_fn(visited[0])


def test_low_precision_keeps_its_averages_in_float32():
    params = jnp.asarray(START, jnp.bfloat16)
    tx = seht.scale_by_adahessian(KEY, every=2)
    _, (updates, _), state = run(tx, quadratic, params, 2)
    assert updates.dtype == jnp.bfloat16
    assert state.mu.dtype == state.nu.dtype == jnp.float32
    np.testing.assert_allclose(updates.astype(float), np.sign(CURVATURES) * START, rtol=1e-2)


def test_it_compiles_once_and_draws_anew_on_each_step():
    case = networks.mlp(jnp.tanh)

    def value_fn(params):
        return without_aux(case.loss_fn)(params, case.batch)

    tx = seht.scale_by_adahessian(KEY, b2=0.0)

    @jax.jit
    @chex.assert_max_traces(1)
    def step(state):
        return tx.update(case.params, state, case.params, value_fn=value_fn)

    _, first = step(tx.init(case.params))
    _, second = step(first)
    assert not np.allclose(first.nu["first"]["kernel"], second.nu["first"]["kernel"])


def test_a_step_may_donate_its_state():
    key = jax.random.key(5)
    tx = seht.scale_by_adahessian(key)
    params = jnp.asarray(START)
    step = jax.jit(
        lambda state: tx.update(params, state, params, value_fn=quadratic)[1], donate_argnums=0
    )
    step(step(tx.init(params)))
    jax.random.bits(key)


# Many devices


def on_two_devices(mesh, loss_of_part, params, x):
    tx = seht.scale_by_adahessian(KEY, every=2)

    def step(params, state, x):
        value_fn = functools.partial(loss_of_part, x)
        return tx.update(jax.grad(value_fn)(params), state, params, value_fn=value_fn)

    spec = jax.sharding.PartitionSpec
    sharded = jax.shard_map(
        step, mesh=mesh, in_specs=(spec(), spec(), spec("data")), out_specs=spec()
    )
    return jax.jit(sharded)(params, tx.init(params), x)[0]


def part(x, params):
    return jnp.mean((x @ params) ** 4)


def test_the_mean_over_devices_is_the_loss_of_the_whole_batch(two_devices):
    x = jax.random.normal(KEY, (4, 3))
    params = jnp.asarray(START)

    def mean(x, params):
        return jax.lax.pmean(part(x, params), "data")

    tx = seht.scale_by_adahessian(KEY)
    _, (expected,), _ = run(tx, functools.partial(part, x), params, 1)
    np.testing.assert_allclose(on_two_devices(two_devices, mean, params, x), expected, rtol=1e-8)


def test_a_loss_that_differs_by_device_is_refused(two_devices):
    with pytest.raises(ValueError, match=r"differs over the mesh axes \['data'\].*pmean"):
        on_two_devices(two_devices, part, jnp.asarray(START), jnp.ones((4, 3)))


# Arguments


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"key": 0}, TypeError, "key must be one PRNG key"),
        ({"b1": 1.0}, ValueError, r"b1 must be in \[0, 1\), got 1.0"),
        ({"b2": -0.1}, ValueError, r"b2 must be in \[0, 1\), got -0.1"),
        ({"b2": "0.9"}, TypeError, "b2 must be a real scalar, got '0.9'"),
        ({"eps": -1e-4}, ValueError, "eps must be at least 0, got -0.0001"),
        ({"eps": jnp.ones(2)}, ValueError, r"eps must be a scalar, got shape \(2,\)"),
        ({"hessian_power": 1.5}, ValueError, r"hessian_power must be in \[0, 1\], got 1.5"),
        ({"num_probes": 0}, ValueError, "num_probes must be at least 1, got 0"),
        ({"every": 1.5}, TypeError, "every must be a whole Python number, got 1.5"),
        ({"spatial_average": None}, TypeError, "spatial_average must be a function .* got None"),
    ],
)
@pytest.mark.parametrize("build", [seht.scale_by_adahessian, functools.partial(seht.adahessian, 1)])
@pytest.mark.usefixtures("no_runtime_type_checks")
def test_wrong_settings_are_named(build, arguments, error, message):
    with pytest.raises(error, match=message):
        build(**({"key": KEY} | arguments))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, TypeError, "scale_by_adahessian needs value_fn: call update"),
        ({"params": None}, TypeError, "scale_by_adahessian needs params: call update"),
        ({"value_fn": 1.0}, TypeError, "value_fn must be a function of the params, got 1.0"),
        ({"value_fn": lambda p: p}, ValueError, "value_fn .*scalar"),
        ({"params": {"w": optax.MaskedNode()}, "value_fn": quadratic}, TypeError, "MaskedNode"),
    ],
)
@pytest.mark.usefixtures("no_runtime_type_checks")
def test_wrong_updates_are_named(arguments, error, message):
    params = jnp.asarray(START)
    tx = seht.scale_by_adahessian(KEY)
    with pytest.raises(error, match=message):
        tx.update(params, tx.init(params), **({"params": params} | arguments))


def test_an_average_that_does_not_fit_is_named():
    params = {"w": jnp.asarray(START)}
    tx = seht.scale_by_adahessian(KEY, spatial_average=lambda path, diagonal: diagonal[:2])
    with pytest.raises(ValueError, match=r"leaf w of shape \(3,\), got shape \(2,\)"):
        tx.update(params, tx.init(params), params, value_fn=lambda p: quadratic(p["w"]))


def test_masked_params_are_refused_where_the_state_is_made():
    tx = optax.masked(seht.scale_by_adahessian(KEY), {"w": True, "b": False})
    with pytest.raises(TypeError, match="Wrap what stands before or after it in the chain"):
        tx.init({"w": jnp.ones(2), "b": jnp.ones(1)})
