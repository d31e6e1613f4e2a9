"""Operations, and the layers that they depend on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from seht_jax.cost import dependent_operations, operations


def convolve(x, kernel, **options):
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", **options)


@pytest.mark.parametrize(
    ("function", "shapes", "expected"),
    [
        (jnp.matmul, [(3, 4), (4, 5)], 2 * 3 * 4 * 5),
        (lambda x, y: jnp.einsum("bij,bkj->bik", x, y), [(2, 3, 4), (2, 5, 4)], 2 * 2 * 3 * 4 * 5),
        (convolve, [(2, 3, 6, 6), (5, 3, 3, 3)], 2 * (2 * 5 * 36) * 27),
        (
            lambda x, y: convolve(x, y, feature_group_count=3),
            [(2, 3, 6, 6), (6, 1, 3, 3)],
            2 * (2 * 6 * 36) * 9,
        ),
        (jnp.add, [(3, 4), (3, 4)], 12),
        (jnp.tanh, [(3, 4)], 12),
    ],
)
def test_operations_of_one_equation(function, shapes, expected):
    (*_, equation) = jax.make_jaxpr(function)(*map(jnp.ones, shapes)).jaxpr.eqns
    assert operations(equation) == expected


SIZE = 16
WEIGHT = np.ones((SIZE, SIZE))
X = np.ones((4, SIZE))


def chain(weights):
    x = X
    for name in ("c", "a", "b"):
        x = jnp.tanh(x @ weights[name])  # c, a, b: not the order of the alphabet
    return x.sum()


def cast_at_the_top(weights):
    return chain(jax.tree.map(lambda w: w.astype(jnp.bfloat16).astype(float), weights))


def normalised_at_the_top(weights):
    return chain({name: w / jnp.linalg.norm(w) for name, w in sorted(weights.items())})


def in_sub_programs(weights):
    x = jax.jit(lambda x: jnp.tanh(x @ weights["c"]))(X)
    x = jax.checkpoint(lambda x: jnp.tanh(x @ weights["a"]))(x)
    return lax.cond(x[0, 0] > 0, lambda x: x @ weights["b"], lambda x: x, x).sum()


def in_loops(weights):
    x, _ = lax.scan(lambda x, _: (jnp.tanh(x @ weights["c"]), None), X, length=3)
    x = lax.fori_loop(0, 2, lambda _, x: jnp.tanh(x @ weights["a"]), x)
    return lax.while_loop(lambda x: x[0, 0] > 1, lambda x: x @ weights["b"], x).sum()


@pytest.mark.parametrize(
    "network", [chain, cast_at_the_top, normalised_at_the_top, in_sub_programs, in_loops]
)
def test_layers_are_ordered_from_first_to_last(network):
    costs = costs_of(network)
    assert sorted(costs, key=costs.get, reverse=True) == ["c", "a", "b"]


def costs_of(network, names=("a", "b", "c")):
    closed = jax.make_jaxpr(lambda *leaves: network(dict(zip(names, leaves, strict=True))))(
        *(WEIGHT for _ in names)
    )
    sources = [1 << i for i in range(len(names))]
    return dict(zip(names, dependent_operations(closed.jaxpr, sources, len(names)), strict=True))


def test_two_towers_cost_the_same():
    costs = costs_of(lambda w: jnp.tanh(X @ w["a"]) @ w["c"] + jnp.tanh(X @ w["b"]) @ w["c"])
    assert costs["a"] == costs["b"] > costs["c"] / 2


def test_tied_weights_count_from_their_first_use():
    costs = costs_of(lambda w: jnp.tanh(jnp.tanh(X @ w["a"]) @ w["b"]) @ w["a"].T)
    assert costs["a"] > costs["b"] > costs["c"] == 0


def test_a_loop_counts_as_often_as_it_runs():
    def looped(length):
        return costs_of(
            lambda w: lax.scan(lambda x, _: (x @ w["a"], None), X, length=length)[0], ("a",)
        )["a"]

    assert looped(10) == 10 * looped(1)


def test_a_carry_is_followed_from_round_to_round():
    def network(weights):
        def step(carry, _):
            first, second, _ = carry
            return (first @ weights["a"], first, second @ weights["b"]), None

        return lax.scan(step, (X, X, X), length=4)[0][2]

    costs = costs_of(network)
    assert costs["a"] > costs["b"] > 0
