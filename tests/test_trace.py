"""Estimates of the trace, against the dense Hessian and the variances that theory gives them."""

import functools

import chex
import jax
import jax.numpy as jnp
import networks
import numpy as np
import optax
import pytest
from oracle import case_with_hessian, without_aux

import seht_jax as seht
from seht_jax.probes import draw_layers, layer_table, module_layer, sample_probe

KEY = jax.random.key(5)
PROBES = 2000


def layer_labels(params):
    """Return the name of the layer of each entry of the flattened params."""
    return np.concatenate(
        [np.full(leaf.size, path[0].key) for path, leaf in jax.tree.leaves_with_path(params)]
    )


def dense_parts(name):
    """Return a network, its Hessian, and each layer's entries."""
    case, hessian = case_with_hessian(name)
    labels = layer_labels(case.params)
    return case, np.asarray(hessian), {layer: labels == layer for layer in dict.fromkeys(labels)}


def masked_variance(hessian, members, p_layers, p_entries):
    """Return the variance of one rescaled sample with a layer draw and Q(p)."""
    kept = 2 * p_entries
    squares = hessian**2 - np.diag(np.diag(hessian) ** 2)
    within = sum(squares[np.ix_(entries, entries)].sum() for entries in members)
    traces = sum(np.trace(hessian[np.ix_(entries, entries)]) ** 2 for entries in members)
    return (
        (1 - p_layers) / p_layers * traces
        + (1 - kept) / (p_layers * kept) * np.sum(np.diag(hessian) ** 2)
        + 2 / p_layers * within
        + 2 * (squares.sum() - within)
    )


def assert_estimates(estimate, expected, variance):
    """Assert a mean within four known standard deviations, and a standard error like the known."""
    samples = np.asarray(estimate.samples, float)
    count = len(samples)
    assert abs(estimate.mean - expected) <= 4 * np.sqrt(variance / count)
    np.testing.assert_allclose(estimate.mean, samples.mean())
    # The variance of a sample variance is (kurtosis - 1) / count of its square.
    kurtosis = np.mean((samples - samples.mean()) ** 4) / samples.var() ** 2
    ratio = estimate.standard_error**2 / (variance / count)
    assert abs(ratio - 1) < 4 * np.sqrt((kurtosis - 1) / count)


# Exact


@pytest.mark.parametrize("name", networks.CASES)
def test_the_exact_trace_is_the_dense_one_and_the_sum_over_layers(name):
    case, hessian, members = dense_parts(name)

    def only(layer):
        return lambda path: layer if path[0] == layer else None

    traces = jax.jit(
        lambda *args: {
            layer: seht.exact_trace(case.loss_fn, has_aux=True, chunk_size=7, layers=only(layer))(
                *args
            )
            for layer in members
        }
    )(case.params, case.batch)
    for layer, entries in members.items():
        np.testing.assert_allclose(
            traces[layer], np.trace(hessian[np.ix_(entries, entries)]), rtol=1e-8, atol=1e-10
        )
    total = jax.jit(seht.exact_trace(without_aux(case.loss_fn)))(case.params, case.batch)
    np.testing.assert_allclose(total, np.trace(hessian), rtol=1e-8)
    np.testing.assert_allclose(sum(traces.values()), total, rtol=1e-8)


@pytest.mark.parametrize("shape", [(8,), (4, 3), (2, 3, 5)])
def test_the_output_trace_is_that_of_the_hessian_in_the_logits(shape):
    logits = 2 * jax.random.normal(KEY, shape)
    labels = jax.random.randint(KEY, shape[:-1], 0, shape[-1])
    hessian = jax.jit(jax.hessian(lambda z: networks.cross_entropy(z.reshape(shape), labels)))
    np.testing.assert_allclose(seht.output_trace(logits), jnp.trace(hessian(logits.ravel())))


def test_the_output_trace_is_at_least_float32():
    trace = seht.output_trace(jnp.zeros((4096, 4), jnp.bfloat16))
    assert (trace, trace.dtype) == (0.75, jnp.float32)


# Estimates


@pytest.mark.parametrize("name", networks.CASES)
def test_hutchinson_is_within_its_known_deviation(name):
    case, hessian, _ = dense_parts(name)
    estimate = jax.jit(seht.hutchinson_trace(case.loss_fn, KEY, num_probes=PROBES, has_aux=True))(
        case.params, case.batch
    )
    variance = 2 * (np.sum(hessian**2) - np.sum(np.diag(hessian) ** 2))
    assert_estimates(estimate, np.trace(hessian), variance)


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize(
    ("name", "p"),
    [
        ("tanh_mlp", (0.5, 0.5)),
        ("tanh_mlp", (1.0, 0.2)),
        ("tanh_mlp", 0.3),
        ("lstm", (0.4, 0.3)),
        pytest.param("conv_net", (0.5, 0.3), marks=pytest.mark.long),
    ],
)
def test_the_masked_estimate_is_within_its_known_deviation(name, p, rescale):
    case, hessian, members = dense_parts(name)
    estimate = jax.jit(
        seht.masked_trace(
            case.loss_fn, KEY, p, num_probes=2 * PROBES, has_aux=True, rescale=rescale
        )
    )(case.params, case.batch)
    p_layers, p_entries = p if isinstance(p, tuple) else (p, p)
    share = 1 if rescale else p_layers * 2 * p_entries
    variance = masked_variance(hessian, members.values(), p_layers, p_entries)
    assert_estimates(estimate, share * np.trace(hessian), share**2 * variance)


@pytest.mark.parametrize("name", ["tanh_mlp", "conv_net"])
def test_the_layers_estimates_are_within_their_known_deviations(name):
    case, hessian, members = dense_parts(name)
    estimates = jax.jit(seht.layer_traces(case.loss_fn, KEY, num_probes=PROBES, has_aux=True))(
        case.params, case.batch
    )
    assert tuple(estimates) == tuple(members)
    squares = hessian**2 - np.diag(np.diag(hessian) ** 2)
    for layer, entries in members.items():
        own, others = np.ix_(entries, entries), np.ix_(entries, ~entries)
        variance = 2 * squares[own].sum() + squares[others].sum()
        assert_estimates(estimates[layer], np.trace(hessian[own]), variance)


def test_the_samples_of_the_layers_add_up_to_a_rademacher_probes():
    case, hessian, _ = dense_parts("tanh_mlp")
    loss_fn = without_aux(case.loss_fn)
    by_layer = jax.jit(seht.layer_traces(loss_fn, KEY, num_probes=8))(case.params, case.batch)
    table = layer_table(case.params, module_layer)

    def form(key):
        probe = sample_probe(key, jax.tree.leaves(case.params), table, 0.5, None)
        flat = jnp.concatenate([direction.ravel() for direction in probe.values()])
        return flat @ hessian @ flat

    expected = jax.vmap(form)(jax.random.split(KEY, 8))
    total = sum(estimate.samples for estimate in by_layer.values())
    np.testing.assert_allclose(total, expected, rtol=1e-8)


def test_given_the_zeros_the_estimate_is_unbiased_for_the_kept_diagonal():
    """Eq. (13): for every pattern of zeros that occurs, over the probes that have it."""
    matrix = np.array([[2.0, 1.0, -0.5], [1.0, 3.0, 0.7], [-0.5, 0.7, -1.0]])
    params = {"a": jnp.ones(1), "b": {"c": jnp.ones(2)}}
    count, p_layers, p_entries = 8000, 0.8, 0.35

    def loss_fn(params):
        flat = jnp.concatenate(jax.tree.leaves(params))
        return 0.5 * flat @ matrix @ flat

    @jax.vmap
    def probe_of(key):
        key_layers, key_probe = jax.random.split(key)
        drawn = draw_layers(key_layers, 2, p_layers)
        table = layer_table(params, module_layer)
        probe = sample_probe(key_probe, jax.tree.leaves(params), table, p_entries, drawn)
        return jnp.concatenate(list(probe.values()))

    estimate = jax.jit(seht.masked_trace(loss_fn, KEY, (p_layers, p_entries), num_probes=count))(
        params
    )
    samples = np.asarray(estimate.samples)
    probes = np.asarray(probe_of(jax.random.split(KEY, count)))
    np.testing.assert_allclose(samples, np.einsum("ni,ij,nj->n", probes, matrix, probes))
    for pattern in np.ndindex(2, 2, 2):
        kept = np.asarray(pattern)
        group = samples[np.all((probes != 0) == kept, axis=1)]
        assert len(group) > 100
        block = matrix * np.outer(kept, kept)
        variance = 2 * (np.sum(block**2) - np.sum(np.diag(block) ** 2))
        assert abs(group.mean() - np.trace(block)) <= 4 * np.sqrt(variance / len(group)) + 1e-12


# Layers, dtypes, shapes


def quadratic(params):
    """A diagonal Hessian with a trace of 2, 4 and 6 for each entry of slice 0, 1 and 2."""
    scale = jnp.arange(1.0, 4.0, dtype=params["stack"].dtype)
    return jnp.sum(scale * jnp.sum(params["stack"] ** 2, axis=0)) + jnp.sum(params["rest"] ** 2)


def stacked(path):
    return seht.Stacked("stack", axis=-1) if path[0] == "stack" else "rest"


STACK = {"stack": np.ones((2, 3)), "rest": np.ones(5)}


def test_stacked_layers_have_their_own_traces():
    params = jax.tree.map(jnp.asarray, STACK)
    traces = seht.layer_traces(quadratic, KEY, num_probes=2, layers=stacked)(params)
    assert {name: float(trace.mean) for name, trace in traces.items()} == {
        "rest": 10,
        "stack[0]": 4,
        "stack[1]": 8,
        "stack[2]": 12,
    }


def test_stacked_layers_are_drawn_one_by_one():
    params = jax.tree.map(jnp.asarray, STACK)
    trace = seht.masked_trace(quadratic, KEY, (0.5, 0.5), num_probes=200, layers=stacked)
    values = set(np.asarray(trace(params).samples).tolist())
    assert values == {
        float(4 * a + 8 * b + 12 * c + 10 * d) for a, b, c, d in np.ndindex(2, 2, 2, 2)
    }


@pytest.mark.parametrize(
    "estimator",
    [
        functools.partial(seht.hutchinson_trace, key=KEY, num_probes=3),
        functools.partial(seht.masked_trace, key=KEY, p=(1.0, 0.5), num_probes=3),
    ],
)
def test_leaves_without_a_layer_are_left_out_of_the_estimate(estimator):
    params = jax.tree.map(jnp.asarray, STACK)
    trace = estimator(quadratic, layers=lambda path: None if path[0] == "rest" else "stack")
    assert trace(params).mean == 24


ESTIMATORS = {
    "hutchinson_trace": lambda loss_fn: lambda *x: seht.hutchinson_trace(loss_fn, KEY)(*x).mean,
    "masked_trace": lambda loss_fn: lambda *x: seht.masked_trace(loss_fn, KEY, None)(*x).mean,
    "layer_traces": lambda loss_fn: lambda *x: seht.layer_traces(loss_fn, KEY)(*x)["params"].mean,
    "exact_trace": lambda loss_fn: seht.exact_trace(loss_fn, chunk_size=1024),
}


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("loss_dtype", [jnp.float32, jnp.bfloat16])
def test_bfloat16_params_accumulate_in_float32(name, loss_dtype):
    # 2,049 needs 12 bits, bfloat16 has 8, and a bfloat16 sum of ones stops at 256.
    params = jnp.ones(2049, jnp.bfloat16)

    def loss_fn(params):
        return 0.5 * jnp.sum(params.astype(loss_dtype) ** 2)

    trace = jax.jit(ESTIMATORS[name](loss_fn))(params)
    assert (trace, trace.dtype) == (2049, jnp.float32)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_arguments_are_passed_on(name):
    def loss_fn(params, power, label, scale=1.0):
        return scale * jnp.sum(params**power) if label == "used" else jnp.sum(params)

    trace = ESTIMATORS[name](functools.partial(loss_fn, scale=0.5))
    np.testing.assert_allclose(trace(jnp.ones(3), 4, "used"), 18, rtol=1e-6)


def test_one_probe_has_no_standard_error():
    params = jax.tree.map(jnp.asarray, STACK)
    estimate = seht.hutchinson_trace(quadratic, KEY, num_probes=1)(params)
    assert estimate.mean == 34
    assert jnp.isnan(estimate.standard_error)
    assert estimate.samples.shape == (1,)


@pytest.mark.parametrize("name", ["relu_mlp", pytest.param("conv_net", marks=pytest.mark.long)])
def test_estimates_inside_and_outside_of_jit_agree(name):
    case, _ = case_with_hessian(name)
    estimate = seht.hutchinson_trace(case.loss_fn, KEY, num_probes=2, has_aux=True)
    chex.assert_trees_all_close(
        estimate(case.params, case.batch), jax.jit(estimate)(case.params, case.batch), rtol=1e-10
    )


def test_an_estimate_can_be_differentiated():
    loss_fn = optax.tree.norm
    estimate = seht.hutchinson_trace(loss_fn, KEY, num_probes=3)
    gradient = jax.grad(lambda params: estimate(params).mean)(jnp.array([1.0, 2.0]))
    assert jnp.all(gradient != 0)
