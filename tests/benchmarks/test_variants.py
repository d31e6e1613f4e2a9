"""The steps that are compared, and the strata of SEHT-D's draws."""

import functools

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

import seht_jax as seht
from benchmarks.models import QUICK_SIZES, build_benchmark_model
from benchmarks.variants import (
    STRENGTH,
    plain_step,
    reverse_over_hvp_step,
    sharpness_aware_step,
    strata,
)

PARAMS = {name: {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)} for name in "abcde"}


def probed_layers(key, p):
    """Which layers the library probes, told by its gradient."""

    def loss_fn(params):
        return sum(jnp.sum(leaf**3) for leaf in jax.tree.leaves(params))

    gradients = jax.grad(seht.regularize(loss_fn, key, (p, 0.5), 1.0))(PARAMS)
    return jnp.stack([jnp.any(gradients[name]["bias"] > 4) for name in PARAMS])


@pytest.mark.parametrize("p", [0.05, 0.3])
@pytest.mark.parametrize("boundaries", [[["c"], ["a", "e"], ["b", "d"]], [["a"], list("bcde")]])
def test_keys_of_a_stratum_lead_into_its_branch(p, boundaries):
    found = strata(list(PARAMS), p, boundaries)
    draw = jax.jit(lambda key: probed_layers(key, p))
    assert sum(stratum.probability for stratum in found) == pytest.approx(1)
    assert found[0].probability == pytest.approx((1 - p) ** 5)
    for key in found[0].keys:
        assert not draw(key).any()
    before = set()
    for group, stratum in zip(boundaries, found[1:], strict=True):
        share = (1 - p) ** len(before) * (1 - (1 - p) ** len(group))
        assert stratum.probability == pytest.approx(share)
        assert len(stratum.keys) == len(set(map(str, stratum.keys))) == 4
        for key in stratum.keys:
            drawn = {name for name, here in zip(PARAMS, draw(key), strict=True) if here}
            assert drawn & set(group)
            assert not drawn & before
        before |= set(group)


def test_certain_layers_leave_one_stratum():
    (stratum,) = strata(list(PARAMS), 1.0, [list(PARAMS)])
    assert stratum.probability == 1


@pytest.mark.parametrize("boundaries", [[["a"], ["b"]], [list("abcde"), ["a"]]])
def test_boundaries_that_are_no_partition_are_refused(boundaries):
    with pytest.raises(ValueError, match=r"each of the layers .* once"):
        strata(list(PARAMS), 0.1, boundaries)


@pytest.fixture(scope="module")
def model():
    return build_benchmark_model("mlp", QUICK_SIZES["mlp"])


def test_the_literal_composition_penalises_along_its_probe(model):
    key = jax.random.key(3)
    probe = optax.tree.random_like(key, model.params, jax.random.rademacher)

    @jax.jit
    def expected(params):
        def penalised(params):
            loss, _ = model.loss_fn(params, *model.batch)
            product = seht.hvp(model.loss_fn, probe, has_aux=True)(params, *model.batch)
            return loss + STRENGTH * optax.tree.vdot(probe, product)

        return jax.value_and_grad(penalised)(params)

    (value, aux), gradients = jax.jit(reverse_over_hvp_step(model))(key, model.params, *model.batch)
    assert aux is None
    chex.assert_trees_all_close((value, gradients), expected(model.params), rtol=1e-4, atol=1e-6)


def test_sam_takes_the_gradient_where_the_loss_is_worse(model):
    step = jax.jit(sharpness_aware_step(model))
    _, updates = step(jax.random.key(0), model.params, *model.batch)
    gradient = jax.jit(functools.partial(plain_step(model), jax.random.key(0)))
    _, here = gradient(model.params, *model.batch)
    scale = 0.05 / optax.tree.norm(here)
    worse = jax.tree.map(lambda x, g: x + scale * g, model.params, here)
    _, there = gradient(worse, *model.batch)
    chex.assert_trees_all_close(updates, jax.tree.map(jnp.negative, there), rtol=1e-3, atol=1e-6)
