"""The penalty as a gradient transformation."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import networks
import numpy as np
import optax
import pytest
from oracle import without_aux

import seht_jax as seht

KEY = jax.random.key(4)
LAM = 0.3


@pytest.fixture
def problem():
    case = networks.mlp(jnp.tanh)
    return (lambda params: without_aux(case.loss_fn)(params, case.batch)), case.params


@pytest.fixture
def standard_promotion():
    """Let optax's own arithmetic mix dtypes, which the other tests forbid."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def run(tx, value_fn, params, steps=1):
    """Return the updates of each step and the last state."""

    @jax.jit
    def step(params, state):
        gradients = jax.grad(value_fn)(params)
        updates, state = tx.update(gradients, state, params, value_fn=value_fn)
        return updates, state

    state = tx.init(params)
    history = []
    for _ in range(steps):
        updates, state = step(params, state)
        history.append(updates)
    return history, state


def step_keys(steps, key=KEY):
    """Return the keys with which the transformation penalises its steps."""
    keys = []
    for _ in range(steps):
        key, step_key = jax.random.split(key)
        keys.append(step_key)
    return keys


def penalised_gradient(value_fn, params, key, p=None, lam=LAM, **options):
    return jax.jit(jax.grad(seht.regularize(value_fn, key, p, lam, **options)))(params)


def diagonal(params):
    """A diagonal Hessian, so that the estimate does not depend on the signs."""
    return jnp.sum(params["w"] ** 4) + jnp.sum(params["b"] ** 3)


DIAGONAL = {"w": np.array([1.0, 2.0]), "b": np.array([0.5])}
DIAGONAL_TRACE = 12 * (1 + 4) + 3.0
# The gradients of the loss and of the trace.
SLOPE = {"w": np.array([4.0, 32.0]), "b": np.array([0.75])}
TRACE_SLOPE = {"w": np.array([24.0, 48.0]), "b": np.array([6.0])}


def combined(slope, trace_slope):
    return jax.tree.map(lambda x, y: slope * x + trace_slope * y, SLOPE, TRACE_SLOPE)


@pytest.fixture
def params():
    return jax.tree.map(jnp.asarray, DIAGONAL)


# Its place in the chain


@pytest.mark.parametrize(
    ("p", "options"),
    [
        (None, {}),
        (None, {"num_probes": 2, "layers": lambda path: "all" if path[0] == "first" else None}),
        ((0.7, 0.3), {"rescale": True}),
    ],
)
def test_in_front_of_the_optimizer_it_is_the_penalised_loss(problem, p, options):
    value_fn, params = problem
    tx = optax.chain(seht.add_hessian_trace(p, LAM, KEY, **options), optax.sgd(0.5))
    history, _ = run(tx, value_fn, params, steps=2)
    for updates, key in zip(history, step_keys(2), strict=True):
        gradient = penalised_gradient(value_fn, params, key, p, **options)
        chex.assert_trees_all_close(updates, jax.tree.map(lambda g: -0.5 * g, gradient), rtol=1e-9)


@pytest.mark.usefixtures("standard_promotion")
def test_behind_an_adaptive_scaling_it_is_decoupled_from_it(params):
    tx = optax.chain(
        optax.scale_by_adam(), seht.add_hessian_trace(None, LAM, KEY), optax.scale(-0.5)
    )
    (updates,), _ = run(tx, diagonal, params)
    (adam,), _ = run(optax.with_extra_args_support(optax.scale_by_adam()), diagonal, params)
    expected = jax.tree.map(lambda scaled, trace: -0.5 * (scaled + LAM * trace), adam, TRACE_SLOPE)
    chex.assert_trees_all_close(updates, expected, rtol=1e-6)


def test_the_first_step_of_a_hand_computed_loss(params):
    (updates,), state = run(seht.add_hessian_trace(None, 0.1, KEY), diagonal, params)
    chex.assert_trees_all_close(updates, combined(1, 0.1), rtol=1e-12)
    np.testing.assert_allclose(state.estimate, DIAGONAL_TRACE, rtol=1e-6)


# Steps


def test_every_third_step_is_penalised_and_the_others_are_not(params):
    tx = seht.add_hessian_trace(None, 0.1, KEY, every=3)
    history, _ = run(tx, diagonal, params, steps=5)
    for step, updates in enumerate(history):
        expected = combined(1, 0.1) if step % 3 == 0 else SLOPE
        chex.assert_trees_all_close(updates, expected, rtol=1e-12)


@pytest.mark.parametrize(
    "schedule",
    [
        lambda count: 0.1 * count.astype(float),
        optax.linear_schedule(0.0, 0.3, 3),
        lambda count: jnp.float32(0.1),
    ],
)
def test_lam_may_be_a_schedule_of_the_steps(params, schedule):
    history, _ = run(seht.add_hessian_trace(None, schedule, KEY), diagonal, params, steps=3)
    for step, updates in enumerate(history):
        expected = combined(1, float(schedule(jnp.asarray(step))))
        chex.assert_trees_all_close(updates, expected, rtol=1e-6)


def test_the_state_holds_key_count_and_estimate(params):
    tx = seht.add_hessian_trace(None, 0.1, KEY)
    update = jax.jit(lambda state: tx.update(params, state, params, value_fn=diagonal)[1])
    state = tx.init(params)
    assert (state.key, state.count, state.estimate) == (KEY, 0, 0)
    keys = [state.key]
    for step in range(3):
        state = update(state)
        assert state.count == step + 1
        np.testing.assert_allclose(state.estimate, DIAGONAL_TRACE, rtol=1e-6)
        keys.append(state.key)
    assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == 4


def test_skipped_steps_keep_the_estimate_and_change_the_key(params):
    tx = seht.add_hessian_trace(None, 0.1, KEY, every=2)
    update = jax.jit(lambda state, params: tx.update(params, state, params, value_fn=diagonal)[1])
    first = update(tx.init(params), params)
    doubled = jax.tree.map(lambda x: 2 * x, params)
    second = update(first, doubled)
    third = update(second, doubled)
    np.testing.assert_allclose(second.estimate, DIAGONAL_TRACE, rtol=1e-6)
    np.testing.assert_allclose(third.estimate, 12 * 4 * 5 + 6, rtol=1e-6)
    assert second.key != first.key


@pytest.mark.usefixtures("standard_promotion")
def test_the_step_compiles_once(problem):
    value_fn, params = problem
    chex.clear_trace_counter()
    tx = optax.chain(seht.add_hessian_trace(0.4, LAM, KEY, every=2), optax.adam(0.1))

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(params, state):
        gradients = jax.grad(value_fn)(params)
        updates, state = tx.update(gradients, state, params, value_fn=value_fn)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for _ in range(4):
        params, state = step(params, state)
    assert state[0].count == 4


def test_the_state_is_the_carry_of_a_scan(params):
    tx = optax.chain(seht.add_hessian_trace((0.5, 0.5), 0.01, KEY, every=2), optax.sgd(0.01))

    def step(carry, _):
        params, state = carry
        gradients = jax.grad(diagonal)(params)
        updates, state = tx.update(gradients, state, params, value_fn=diagonal)
        return (optax.apply_updates(params, updates), state), state[0].estimate

    (_, state), estimates = jax.lax.scan(step, (params, tx.init(params)), length=4)
    assert (state[0].count, estimates.shape) == (4, (4,))


# With optax's wrappers


@pytest.mark.usefixtures("standard_promotion")
def test_in_front_of_multi_steps_each_mini_step_is_penalised(problem):
    value_fn, params = problem
    inner = optax.MultiSteps(
        optax.sgd(1.0), every_k_schedule=2, accumulator_dtype=float
    ).gradient_transformation()
    tx = optax.chain(seht.add_hessian_trace(None, LAM, KEY), inner)
    (first, second), _ = run(tx, value_fn, params, steps=2)
    chex.assert_trees_all_equal(first, jax.tree.map(jnp.zeros_like, params))
    gradients = [penalised_gradient(value_fn, params, key) for key in step_keys(2)]
    expected = jax.tree.map(lambda x, y: -(x + y) / 2, *gradients)
    chex.assert_trees_all_close(second, expected, rtol=1e-9)


STATIC = (
    *("p", "key", "every", "num_probes", "probe_batch", "num_branches"),
    *("curvature", "layers", "rescale", "scale_free"),
)


def test_lam_may_be_injected(params):
    tx = optax.inject_hyperparams(seht.add_hessian_trace, static_args=STATIC)(
        p=None, lam=0.1, key=KEY
    )
    state = tx.init(params)
    for lam in (0.1, 0.7):
        state.hyperparams["lam"] = jnp.asarray(lam)
        updates, state = tx.update(
            jax.tree.map(jnp.asarray, SLOPE), state, params, value_fn=diagonal
        )
        chex.assert_trees_all_close(updates, combined(1, lam), rtol=1e-6)


def test_a_schedule_may_be_injected(params):
    tx = optax.inject_hyperparams(seht.add_hessian_trace, static_args=STATIC)(
        p=None, lam=optax.linear_schedule(0.0, 0.2, 2), key=KEY
    )
    history, state = run(tx, diagonal, params, steps=3)
    for updates, lam in zip(history, (0.0, 0.1, 0.2), strict=True):
        chex.assert_trees_all_close(updates, combined(1, lam), rtol=1e-6)
    assert state.inner_state.count == 3


# Dtypes and devices


@pytest.mark.parametrize("p", [None, (0.5, 0.5)])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_updates_have_the_dtypes_of_the_gradients(params, dtype, p):
    params = jax.tree.map(lambda x: x.astype(dtype), params)
    tx = seht.add_hessian_trace(p, lambda count: jnp.float32(0.1), KEY, every=2)
    (updates, _), state = run(tx, diagonal, params, steps=2)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
    assert state.estimate.dtype == jnp.float32


@pytest.mark.parametrize("p", [None, (0.5, 0.5)])
def test_on_several_devices_each_penalises_its_shard(params, p, two_devices):
    """`shard_map` with `check_vma`: both branches must vary alike."""
    tx = seht.add_hessian_trace(p, 0.1, KEY, every=2)

    def step(params, state, x):
        def value_fn(params):
            return jnp.mean(x) * diagonal(params)

        updates, state = tx.update(jax.grad(value_fn)(params), state, params, value_fn=value_fn)
        estimate = jax.lax.pmean(state.estimate, "data")
        return jax.tree.map(lambda u: jax.lax.pmean(u, "data"), updates), estimate

    spec = jax.sharding.PartitionSpec
    sharded = jax.shard_map(
        step, mesh=two_devices, in_specs=(spec(), spec(), spec("data")), out_specs=spec()
    )
    updates, estimate = jax.jit(sharded)(params, tx.init(params), jnp.array([1.0, 3.0]))
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
    assert jnp.isfinite(estimate)
    if p is None:
        # JAX sums the plain gradient over the devices (1 + 3); the penalty's is averaged.
        chex.assert_trees_all_close(updates, combined(4, 0.1 * 2), rtol=1e-10)
        np.testing.assert_allclose(estimate, 2 * DIAGONAL_TRACE, rtol=1e-6)


# A bounded strength


@pytest.mark.parametrize(
    ("lam", "relative", "share"),
    [
        (1e6, 0.25, 0.25),
        (math.inf, 0.25, 0.25),
        (-math.inf, 0.25, 0.25),
        (-1e6, 0.1, 0.1),
        (1e-9, 0.25, None),
    ],
)
@pytest.mark.parametrize("kind", [float, jnp.asarray, optax.constant_schedule])
def test_relative_bounds_the_penalty_as_a_share_of_the_updates(lam, relative, share, kind):
    tx = seht.add_hessian_trace(None, kind(lam), KEY, relative=relative)
    params, slope = jax.tree.map(jnp.asarray, (DIAGONAL, SLOPE))
    updates, _ = tx.update(slope, tx.init(params), params, value_fn=diagonal)
    penalty = jax.tree.map(jnp.subtract, updates, slope)
    direction = TRACE_SLOPE
    cosine = optax.tree.vdot(penalty, direction) / (
        optax.tree.norm(penalty) * optax.tree.norm(direction)
    )
    assert abs(abs(cosine) - 1) < 1e-6
    assert jnp.sign(cosine) == jnp.sign(lam)
    expected = (
        abs(lam) * optax.tree.norm(direction) if share is None else share * optax.tree.norm(slope)
    )
    chex.assert_trees_all_close(optax.tree.norm(penalty), expected, rtol=1e-5)


def test_a_negative_share_that_is_traced_is_none(params):
    def update(share):
        tx = seht.add_hessian_trace(None, 0.1, KEY, relative=share)
        return tx.update(params, tx.init(params), params, value_fn=diagonal)[0]

    chex.assert_trees_all_equal(jax.jit(update)(-0.25), jax.tree.map(jnp.asarray, params))


def at_full_share(share):
    """The updates of the diagonal loss with the penalty's gradient at a share of its own."""
    factor = share * optax.tree.norm(SLOPE) / optax.tree.norm(TRACE_SLOPE)
    return combined(1, factor)


def test_the_bounded_share_is_of_global_norms_where_params_are_sharded(params, two_devices):
    spec = {"w": jax.sharding.PartitionSpec("data"), "b": jax.sharding.PartitionSpec()}
    sharding = jax.tree.map(lambda s: jax.sharding.NamedSharding(two_devices, s), spec)
    tx = seht.add_hessian_trace(None, math.inf, KEY, relative=0.25)
    (updates,), _ = run(tx, diagonal, jax.device_put(params, sharding))
    chex.assert_trees_all_close(updates, at_full_share(0.25), rtol=1e-6)


def test_the_bounded_share_is_that_of_each_device_under_shard_map(params, two_devices):
    tx = seht.add_hessian_trace(None, math.inf, KEY, relative=0.25)

    def step(params, state, x):
        params = jax.tree.map(lambda leaf: jax.lax.pcast(leaf, "data", to="varying"), params)

        def value_fn(params):
            return jnp.mean(x) * diagonal(params)

        updates, _ = tx.update(jax.grad(value_fn)(params), state, params, value_fn=value_fn)
        return jax.tree.map(lambda update: update[None], updates)

    spec = jax.sharding.PartitionSpec
    sharded = jax.shard_map(
        step, mesh=two_devices, in_specs=(spec(), spec(), spec("data")), out_specs=spec("data")
    )
    updates = jax.jit(sharded)(params, tx.init(params), jnp.array([1.0, 3.0]))
    for device, scale in enumerate([1.0, 3.0]):
        expected = jax.tree.map(lambda update, scale=scale: scale * update, at_full_share(0.25))
        actual = jax.tree.map(lambda update, device=device: update[device], updates)
        chex.assert_trees_all_close(actual, expected, rtol=1e-6)


@pytest.mark.usefixtures("standard_promotion")
def test_the_bounded_share_is_that_of_a_mini_step_in_front_of_multi_steps(params):
    inner = optax.MultiSteps(
        optax.sgd(1.0), every_k_schedule=2, accumulator_dtype=float
    ).gradient_transformation()
    tx = optax.chain(seht.add_hessian_trace(None, math.inf, KEY, relative=0.25), inner)
    state = tx.init(params)
    for scale in (1.0, 3.0):
        slope = jax.tree.map(lambda x, scale=scale: jnp.asarray(scale * x), SLOPE)
        updates, state = tx.update(slope, state, params, value_fn=diagonal)
    # The mean of the two mini-steps, each with a quarter of its own norm.
    expected = jax.tree.map(lambda x: -(1 + 3) / 2 * x, at_full_share(0.25))
    chex.assert_trees_all_close(updates, expected, rtol=1e-6)


def test_the_share_may_be_injected(params):
    tx = optax.inject_hyperparams(seht.add_hessian_trace, static_args=STATIC)(
        p=None, lam=1e6, key=KEY, relative=0.5
    )
    state = tx.init(params)
    for share in (0.5, 0.1):
        state.hyperparams["relative"] = jnp.asarray(share)
        updates, state = tx.update(
            jax.tree.map(jnp.asarray, SLOPE), state, params, value_fn=diagonal
        )
        chex.assert_trees_all_close(updates, at_full_share(share), rtol=1e-6)


def test_where_no_layer_is_drawn_a_share_of_nothing_is_nothing(params):
    tx = seht.add_hessian_trace((1e-9, 0.5), math.inf, KEY, relative=0.25)
    (updates,), state = run(tx, diagonal, params)
    chex.assert_trees_all_equal(updates, jax.tree.map(jnp.asarray, SLOPE))
    assert state.estimate == 0


@pytest.mark.parametrize("value_fn", [jnp.sum, lambda w: jnp.sum(jnp.abs(w) ** 2.5)])
def test_a_penalty_without_a_finite_gradient_is_left_out(value_fn):
    tx = seht.add_hessian_trace(None, 1.0, KEY, relative=0.5)
    params = jnp.zeros(3)
    updates, _ = tx.update(jnp.ones(3), tx.init(params), params, value_fn=value_fn)
    chex.assert_trees_all_close(updates, jnp.ones(3))


def test_donating_the_state_leaves_the_key_of_the_caller(params):
    key = jax.random.key(0)
    tx = seht.add_hessian_trace(None, 0.1, key)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state):
        return tx.update(params, state, params, value_fn=diagonal)

    step(tx.init(params))
    assert not key.is_deleted()
