"""Eigenvalues and spectral densities, against the dense matrices."""

import chex
import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from oracle import case_with_hessian, without_aux

import seht_jax as seht
from seht_jax.analysis import (
    SpectralQuadrature,
    extreme_eigenpairs,
    smoothed_density,
    spectral_quadrature,
)
from seht_jax.probes import layer_table, sample_probe

KEY = jax.random.key(7)


def quadratic(eigenvalues):
    """Return a loss whose Hessian has these eigenvalues, in a rotated basis."""
    eigenvalues = np.asarray(eigenvalues, float)
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(len(eigenvalues),) * 2))[0]
    matrix = rotation @ np.diag(eigenvalues) @ rotation.T
    return lambda params: 0.5 * params @ jnp.asarray(matrix, params.dtype) @ params


def gauss_newton_case():
    """Return a network with marked outputs, and its dense Gauss-Newton matrix."""
    _, params, batch = networks.mlp(jnp.tanh)

    def logits_of(params):
        hidden = jnp.tanh(batch["image"] @ params["first"]["kernel"] + params["first"]["bias"])
        return hidden @ params["second"]["kernel"] + params["second"]["bias"]

    def loss_fn(params, labels):
        return networks.cross_entropy(seht.outputs(logits_of(params)), labels)

    flat, unravel = ravel_pytree(params)

    @jax.jit
    def dense():
        jacobian = jax.jacobian(lambda flat: logits_of(unravel(flat)).ravel())(flat)
        logits = logits_of(params)
        inner = jax.hessian(
            lambda z: networks.cross_entropy(z.reshape(logits.shape), batch["label"])
        )(logits.ravel())
        return jacobian.T @ inner @ jacobian

    return loss_fn, params, batch["label"], dense()


def flat_vectors(vectors):
    """Return stacked pytrees as the rows of a matrix."""
    return jax.vmap(lambda tree: ravel_pytree(tree)[0])(vectors)


def assert_pairs(pairs, matrix, expected):
    """Assert that pairs are eigenpairs of a dense matrix."""
    np.testing.assert_allclose(pairs.values, expected, rtol=1e-9, atol=1e-12)
    vectors = flat_vectors(pairs.vectors)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1)
    np.testing.assert_allclose(vectors @ matrix, pairs.values[:, None] * vectors, atol=1e-7)
    np.testing.assert_array_less(pairs.residuals, 1e-7)


def test_the_ends_of_the_spectrum_are_those_of_the_dense_hessian():
    case, hessian = case_with_hessian("tanh_mlp")
    loss_fn = without_aux(case.loss_fn)
    largest, smallest = jax.jit(
        extreme_eigenpairs(loss_fn, KEY, num_pairs=3, num_products=len(hessian))
    )(case.params, case.batch)
    eigenvalues = np.linalg.eigvalsh(hessian)
    assert_pairs(largest, hessian, eigenvalues[::-1][:3])
    assert_pairs(smallest, hessian, eigenvalues[:3])


def test_the_greatest_eigenvalues_are_those_of_the_dense_gauss_newton_matrix():
    loss_fn, params, labels, matrix = gauss_newton_case()
    largest, smallest = jax.jit(
        extreme_eigenpairs(loss_fn, KEY, num_pairs=2, num_products=30, curvature="gauss_newton")
    )(params, labels)
    assert_pairs(largest, matrix, np.linalg.eigvalsh(matrix)[::-1][:2])
    assert smallest.values[0] > -1e-12


def test_layers_that_are_left_out_have_no_part_in_the_eigenvectors():
    case, hessian = case_with_hessian("tanh_mlp")
    block = hessian[25:, 25:]
    largest, _ = jax.jit(
        extreme_eigenpairs(
            case.loss_fn,
            KEY,
            num_products=len(block),
            has_aux=True,
            layers=lambda path: "second" if path[0] == "second" else None,
        )
    )(case.params, case.batch)
    np.testing.assert_allclose(largest.values, np.linalg.eigvalsh(block)[-1:])
    assert not np.any(flat_vectors(largest.vectors["first"]))


def test_a_residual_bounds_the_error():
    eigenvalues = np.linspace(0.0, 1.0, 60) ** 2
    largest, _ = jax.jit(extreme_eigenpairs(quadratic(eigenvalues), KEY, num_products=12))(
        jnp.zeros(60)
    )
    error = np.min(np.abs(eigenvalues - largest.values[0]))
    assert 0 < error <= largest.residuals[0] < 0.1


@pytest.mark.parametrize(
    ("eigenvalues", "largest", "smallest"),
    [
        ([3, 3, 3, -1, -1, -1, -1, -1], [3, -1, np.nan], [-1, 3, np.nan]),
        ([2] * 6, [2, np.nan, np.nan], [2, np.nan, np.nan]),
        ([0] * 6, [0, np.nan, np.nan], [0, np.nan, np.nan]),
        ([5, 0, 0, 0, 0, 0], [5, 0, np.nan], [0, 5, np.nan]),
    ],
)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_an_exhausted_space_gives_each_eigenvalue_once(eigenvalues, largest, smallest, dtype):
    pairs = jax.jit(extreme_eigenpairs(quadratic(eigenvalues), KEY, num_pairs=3))(
        jnp.zeros(len(eigenvalues), dtype)
    )
    np.testing.assert_allclose(pairs.largest.values, np.array(largest, float), atol=1e-5)
    np.testing.assert_allclose(pairs.smallest.values, np.array(smallest, float), atol=1e-5)


def test_params_that_the_loss_does_not_use_do_no_harm():
    def loss_fn(params):
        return 2 * params["used"] ** 2 + jnp.sum(0 * params["unused"])

    params = {"used": jnp.array(1.0), "unused": jnp.ones(4)}
    largest, smallest = extreme_eigenpairs(loss_fn, KEY)(params)
    np.testing.assert_allclose([largest.values[0], smallest.values[0]], [4, 0], atol=1e-12)
    np.testing.assert_allclose(jnp.abs(largest.vectors["used"]), [1])


def test_vectors_have_the_dtypes_of_the_params():
    params = {"half": jnp.ones(3, jnp.bfloat16), "single": jnp.ones(2, jnp.float32)}

    def loss_fn(params):
        half = params["half"].astype(jnp.float32)
        return jnp.sum(half**2) + 3 * jnp.sum(params["single"] ** 2)

    largest, _ = extreme_eigenpairs(loss_fn, KEY)(params)
    assert largest.values.dtype == jnp.float32
    assert jax.tree.map(lambda leaf: leaf.dtype, largest.vectors) == {
        "half": jnp.bfloat16,
        "single": jnp.float32,
    }


def test_each_product_is_reported():
    calls = []
    extreme_eigenpairs(
        quadratic(range(9)), KEY, num_products=5, progress=lambda: calls.append(None)
    )(jnp.zeros(9))
    jax.effects_barrier()
    assert len(calls) == 5


# Density


def test_the_quadrature_has_the_moments_of_the_probes():
    case, hessian = case_with_hessian("tanh_mlp")
    nodes, weights = jax.jit(
        spectral_quadrature(without_aux(case.loss_fn), KEY, num_probes=400, num_products=6)
    )(case.params, case.batch)
    np.testing.assert_allclose(weights.sum(1), 1)
    size = len(hessian)
    for power in (1, 2, 3):
        samples = np.sum(weights * nodes**power, axis=1)
        matrix = np.linalg.matrix_power(hessian, power)
        variance = 2 * (np.sum(matrix**2) - np.sum(np.diag(matrix) ** 2)) / size**2
        error = samples.mean() - np.trace(matrix) / size
        assert abs(error) < 4 * np.sqrt(variance / len(samples))


def test_a_probe_of_the_quadrature_is_one_of_the_trace():
    case, hessian = case_with_hessian("tanh_mlp")
    loss_fn = without_aux(case.loss_fn)
    nodes, weights = jax.jit(spectral_quadrature(loss_fn, KEY, num_probes=3, num_products=2))(
        case.params, case.batch
    )
    leaves, structure = jax.tree.flatten(case.params)
    table = layer_table(case.params, seht.module_layer)
    for i, key in enumerate(jax.random.split(KEY, 3)):
        probe = structure.unflatten(sample_probe(key, leaves, table, 0.5, None).values())
        sigma = ravel_pytree(probe)[0]
        np.testing.assert_allclose(
            len(sigma) * np.sum(weights[i] * nodes[i]), sigma @ hessian @ sigma
        )


def test_with_as_many_products_as_rows_the_smoothed_density_is_the_exact_one():
    eigenvalues = np.array([-1.0, 0.0, 0.5, 2.0])
    quadrature = jax.jit(spectral_quadrature(quadratic(eigenvalues), KEY, num_probes=2000))(
        jnp.zeros(4)
    )
    points = jnp.linspace(-4.0, 5.0, 91)
    density = jax.jit(smoothed_density)(quadrature, points, 0.3)
    exact = np.mean(jax.scipy.stats.norm.pdf(points[:, None], eigenvalues, 0.3), axis=1)
    assert np.all(np.abs(density.mean - exact) < 4.5 * density.standard_error + 1e-12)
    np.testing.assert_allclose(np.trapezoid(density.mean, points), 1, rtol=1e-6)


def test_an_exhausted_space_leaves_nodes_without_weight():
    nodes, weights = spectral_quadrature(quadratic([2, 2, 2, 2]), KEY, num_probes=1)(jnp.zeros(4))
    np.testing.assert_allclose(nodes, np.full((1, 4), 2.0))
    np.testing.assert_allclose(np.sort(weights), [[0, 0, 0, 1]], atol=1e-12)


def test_one_probe_has_no_standard_error():
    quadrature = SpectralQuadrature(jnp.zeros((1, 1)), jnp.ones((1, 1)))
    density = smoothed_density(quadrature, jnp.zeros(2), 1.0)
    np.testing.assert_array_equal(density.standard_error, [np.nan, np.nan])


# Sharded


def test_sharded_params_and_data_give_what_one_device_does(two_devices):
    P = jax.sharding.PartitionSpec

    def loss_fn(params, batch):
        return networks.cross_entropy(jnp.tanh(batch["x"] @ params["kernel"]), batch["label"])

    params = {"kernel": jax.random.normal(KEY, (4, 3))}
    data = {"x": jax.random.normal(KEY, (8, 4)), "label": jnp.arange(8) % 3}
    calls = []
    compute = extreme_eigenpairs(
        seht.mean_over_batches(loss_fn, 4),
        KEY,
        num_products=12,
        progress=lambda: calls.append(None),
    )
    expected = compute(params, data)
    shard = jax.sharding.NamedSharding
    sharded = jax.device_put(params, shard(two_devices, P("data", None)))
    actual = compute(sharded, jax.device_put(data, shard(two_devices, P("data"))))
    chex.assert_trees_all_close(actual, expected, rtol=1e-7, atol=1e-9)
    assert actual.largest.vectors["kernel"].sharding.spec == P(None, "data", None)
    jax.effects_barrier()
    assert len(calls) == 24  # and not once for each device


@pytest.mark.parametrize("spec", [("data", None), (None, "data")])
def test_params_on_a_mesh_of_explicit_axes(spec):
    explicit = (jax.sharding.AxisType.Explicit,)
    mesh = jax.make_mesh((2,), ("data",), explicit, devices=jax.devices()[:2])

    def loss_fn(params):
        return jnp.sum(jnp.cos(params["kernel"]) * jnp.arange(8.0).reshape(4, 2))

    params = {"kernel": jax.random.normal(KEY, (4, 2))}
    compute = jax.jit(extreme_eigenpairs(loss_fn, KEY, num_pairs=2, num_products=8))
    expected = compute(params)
    with jax.set_mesh(mesh):
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
        actual = compute(jax.device_put(params, sharding))
    chex.assert_trees_all_close(actual, expected, rtol=1e-7, atol=1e-9)
    assert tuple(jax.typeof(actual.largest.vectors["kernel"]).sharding.spec) == (None, *spec)
