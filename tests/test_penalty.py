"""Which program a step runs, and that the result does not depend on it."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import assert_close, composed

import seht_jax as seht
from seht_jax import penalty as penalty_module
from seht_jax.closed_loss import close_loss
from seht_jax.penalty import Draw, make_penalty, network_suffixes, switch
from seht_jax.probes import layer_table, module_layer

NUM_LAYERS = 6
X = np.linspace(-1.0, 1.0, 3 * 8).reshape(3, 8)


def params_of():
    keys = jax.random.split(jax.random.key(1), NUM_LAYERS)
    # Names run against the order of the network.
    return {f"layer{NUM_LAYERS - i}": jax.random.normal(k, (8, 8)) / 3 for i, k in enumerate(keys)}


def loss_fn(params):
    x = X
    for i in range(NUM_LAYERS):
        x = jnp.tanh(x @ params[f"layer{NUM_LAYERS - i}"])
    return jnp.mean(x**2)


def suffixes(p, num_branches, loss_fn=loss_fn, params=None):
    params = params_of() if params is None else params
    penalty = make_penalty(p, curvature="hessian", layers=module_layer, num_branches=num_branches)
    loss, _ = close_loss(loss_fn, params, (), {}, has_aux=False)
    table = layer_table(params, module_layer)
    return penalty, table, loss, network_suffixes(penalty, table, loss)


def named(table, suffix):
    return sorted(table.names[i] for i in suffix)


@pytest.mark.parametrize("num_branches", [1, 2, 4, 6, 9])
def test_suffixes_are_ends_of_the_network(num_branches):
    _, table, _, ends = suffixes(0.1, num_branches)
    assert len(ends) == min(num_branches, NUM_LAYERS)
    assert len(ends[0]) == NUM_LAYERS
    for longer, shorter in itertools.pairwise(ends):
        assert shorter < longer
    for end in ends:
        assert named(table, end) == [f"layer{i}" for i in range(1, len(end) + 1)]


def test_likely_draws_have_ends_near_the_beginning():
    lengths = {p: [len(end) for end in suffixes(p, 3)[3]] for p in (0.01, 0.5)}
    assert lengths[0.01] == [6, 4, 2]
    assert lengths[0.5] == [6, 5, 4]


def test_all_layers_are_one_end_where_all_are_drawn():
    assert len(suffixes(None, 4)[3]) == len(suffixes((1.0, 0.1), 4)[3]) == 1


def test_a_loss_that_is_not_propagated_has_one_end():
    @jax.custom_vjp
    def identity(x):
        return x

    identity.defvjp(lambda x: (x, None), lambda _, cotangent: (cotangent,))
    assert len(suffixes(0.1, 4, lambda params: loss_fn(identity(params)))[3]) == 1


@pytest.mark.parametrize("first", [*range(NUM_LAYERS), None])
def test_a_step_runs_the_shortest_end_that_holds_all_drawn_layers(first):
    penalty, table, loss, ends = suffixes(0.1, 3)
    drawn = np.zeros(NUM_LAYERS, bool)
    if first is not None:
        drawn[[table.names.index(f"layer{i}") for i in range(1, NUM_LAYERS - first + 1)]] = True
    ran = switch(
        penalty,
        table,
        loss,
        Draw(jax.random.key(0), jnp.asarray(drawn), None),
        lambda draw: jnp.asarray(0),
        lambda suffix, draw: jnp.asarray(len(suffix)),
    )
    layers = {i for i, d in enumerate(drawn) if d}
    assert ran == (min(len(end) for end in ends if layers <= end) if layers else 0)


@pytest.mark.parametrize("num_branches", [1, pytest.param(3, marks=pytest.mark.long), 6])
def test_the_result_does_not_depend_on_the_branches(num_branches, monkeypatch):
    from seht_jax import products

    monkeypatch.setattr(products, "_WORTHWHILE_INTENSITY", 1)
    params = params_of()

    @jax.jit
    def both(key):
        penalised = seht.regularize(loss_fn, key, (0.3, 0.4), 0.1, num_branches=num_branches)
        expected = composed(loss_fn, key, (0.3, 0.4), 0.1)
        return jax.value_and_grad(penalised)(params), jax.value_and_grad(expected)(params)

    for seed in range(8):
        assert_close(*both(jax.random.key(seed)), rtol=1e-10)


@pytest.mark.parametrize(
    ("num_probes", "probe_batch"),
    [
        (1, 1),
        (1, 3),
        (2, 10),
        *(pytest.param(3, batch, marks=pytest.mark.long) for batch in (1, 2)),
        (5, 2),
        *(pytest.param(7, batch, marks=pytest.mark.long) for batch in (3, 10)),
    ],
)
def test_the_result_does_not_depend_on_the_batches(num_probes, probe_batch):
    key, params = jax.random.key(0), params_of()
    penalised = seht.regularize(
        loss_fn, key, None, 0.1, num_probes=num_probes, probe_batch=probe_batch
    )
    expected = composed(loss_fn, key, None, 0.1, num_probes=num_probes)
    assert_close(
        jax.jit(jax.value_and_grad(penalised))(params),
        jax.jit(jax.value_and_grad(expected))(params),
        rtol=1e-10,
    )


def test_smaller_batches_take_less_memory():
    def memory(probe_batch):
        def step(params, key):
            penalised = seht.regularize(
                loss_fn, key, None, 0.1, num_probes=8, probe_batch=probe_batch
            )
            return jax.grad(penalised)(params)

        compiled = jax.jit(step).lower(params_of(), jax.random.key(0)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert memory(2) < memory(8)


def test_a_strength_of_zero_is_a_plain_step():
    penalised = seht.regularize(loss_fn, jax.random.key(0), None, jnp.zeros(()), with_estimate=True)
    (loss, estimate), gradients = jax.jit(jax.value_and_grad(penalised, has_aux=True))(params_of())
    chex.assert_trees_all_close(
        (loss, gradients), jax.jit(jax.value_and_grad(loss_fn))(params_of()), rtol=1e-15
    )
    assert estimate.mean == 0


def test_the_derivative_by_a_strength_of_zero_is_the_estimate():
    def value(lam):
        return seht.regularize(loss_fn, jax.random.key(0), None, lam)(params_of())

    slope = jax.jit(jax.grad(value))(jnp.zeros(()))
    assert_close(slope, value(jnp.asarray(1.0)) - loss_fn(params_of()))


@pytest.mark.parametrize(("p", "expected"), [(None, 5), ((1.0, 0.1), 5), (0.1, 1)])
def test_the_probes_of_seht_d_are_taken_one_by_one_by_default(p, expected):
    penalty = make_penalty(p, curvature="hessian", layers=seht.module_layer, num_probes=10)
    assert penalty.probe_batch == expected


@pytest.mark.parametrize("name", ["probe_batch", "num_branches"])
@pytest.mark.parametrize("value", [0, 1.5, True])
def test_counts_are_checked(name, value):
    with pytest.raises((TypeError, ValueError), match=name):
        seht.regularize(loss_fn, jax.random.key(0), 0.1, 0.1, **{name: value})


def test_the_branch_probabilities_are_those_of_the_draw():
    costs, penalty = [6, 5, 4, 3, 2, 1], suffixes(0.1, 3)[0]
    starts = penalty_module._cheapest_starts(costs, penalty)

    def expected_cost(starts):
        return sum(
            0.1 * 0.9**i * costs[max(start for start in starts if start <= i)] for i in range(6)
        )

    every = [[0, i, j] for i in range(1, 6) for j in range(i + 1, 6)]
    assert expected_cost(starts) == pytest.approx(min(map(expected_cost, every)))
