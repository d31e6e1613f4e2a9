"""Whatever the params look like, and whatever is asked for, the gradients are like the params."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import seht_jax as seht

KEY = jax.random.key(9)

leaves = st.builds(
    lambda shape, dtype: np.full(shape, 0.5, dtype),
    st.sampled_from([(), (1,), (3,), (0,), (2, 2), (2, 0)]),
    st.sampled_from([jnp.float32, jnp.float64, jnp.bfloat16]),
)
pytrees = st.recursive(
    leaves | st.none(),
    lambda children: (
        st.dictionaries(st.sampled_from(["a", "b", "value"]), children, max_size=2)
        | st.lists(children, max_size=2)
        | st.tuples(children, children)
    ),
    max_leaves=5,
).filter(jax.tree.leaves)
probabilities = st.one_of(
    st.none(),
    st.floats(0.01, 0.5),
    st.tuples(st.floats(0.01, 1.0), st.floats(0.01, 0.5)),
    st.just((1, 0.5)),
)
layer_functions = st.sampled_from(
    [
        seht.module_layer,
        "/".join,
        lambda path: "all",
        lambda path: path[0] if path else "root",
    ]
)
examples = settings(max_examples=20, deadline=None, derandomize=True)


def loss_fn(params, scale=1.0):
    terms = [jnp.sum(jnp.sin(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(params)]
    return scale * sum(terms, jnp.float32(0)) ** 2


@examples
@given(
    params=pytrees,
    p=probabilities,
    lam=st.floats(-1, 1) | st.integers(0, 3),
    num_probes=st.integers(1, 3),
    layers=layer_functions,
    rescale=st.booleans(),
    active=st.sampled_from([True, False, np.True_, np.False_]),
    has_aux=st.booleans(),
    with_estimate=st.booleans(),
)
def test_gradients_are_like_the_params(
    params, p, lam, num_probes, layers, rescale, active, has_aux, with_estimate
):
    params = jax.tree.map(jnp.asarray, params)
    aux = {"values": params, "name": "net"}

    @jax.jit
    def step(params):
        penalised = seht.regularize(
            (lambda params, scale: (loss_fn(params, scale), aux)) if has_aux else loss_fn,
            KEY,
            p,
            lam,
            num_probes=num_probes,
            has_aux=has_aux,
            layers=layers,
            rescale=rescale,
            active=jnp.asarray(active) if isinstance(active, np.bool_) else active,
            with_estimate=with_estimate,
        )
        value, gradients = jax.value_and_grad(penalised, has_aux=has_aux or with_estimate)(
            params, scale=0.5
        )
        loss, extra = value if has_aux or with_estimate else (value, None)
        if has_aux:
            returned, extra = extra if with_estimate else (extra, None)
            assert returned["name"] == "net"
            chex.assert_trees_all_equal_shapes_and_dtypes(returned["values"], params)
        return loss, extra, gradients

    loss, estimate, gradients = step(params)
    chex.assert_trees_all_equal_shapes_and_dtypes(gradients, params)
    chex.assert_tree_all_finite(gradients)
    assert (loss.shape, loss.dtype) == ((), jnp.float32)
    if with_estimate:
        assert estimate.mean.dtype == jnp.float32
        assert 0 <= estimate.layers_drawn <= len(seht.layer_names(params, layers))
        if not active:
            chex.assert_trees_all_close(loss, loss_fn(params, 0.5), rtol=1e-5)


@examples
@given(params=pytrees, p=probabilities, num_probes=st.integers(1, 3), layers=layer_functions)
def test_estimates_are_finite(params, p, num_probes, layers):
    params = jax.tree.map(jnp.asarray, params)

    @jax.jit
    def estimates(params):
        options = {"layers": layers, "num_probes": num_probes}
        return (
            seht.masked_trace(loss_fn, KEY, p, **options)(params),
            seht.layer_traces(loss_fn, KEY, **options)(params),
            seht.exact_trace(loss_fn, layers=layers)(params),
        )

    masked, by_layer, exact = estimates(params)
    assert masked.samples.shape == (num_probes,)
    assert tuple(by_layer) == seht.layer_names(params, layers)
    samples = [masked.samples, *(estimate.samples for estimate in by_layer.values()), exact]
    chex.assert_tree_all_finite(samples)
    assert jnp.isnan(masked.standard_error) == (num_probes == 1)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(params=pytrees)
def test_every_leaf_belongs_to_a_layer(params):
    names = seht.layer_names(params)
    assert 1 <= len(names) <= len(jax.tree.leaves(params))
    assert seht.layer_names(params, lambda path: "all") == ("all",)
    with pytest.raises(ValueError, match="no layer is left to probe"):
        seht.layer_names(params, lambda path: None)
