"""What is measured of a network, against its dense Hessian in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import seht_jax as seht
from experiments.analyse.measure import MeasureConfig, measurer, total_work
from experiments.analyse.trained import TrainedNetwork
from experiments.errors import SettingError

CONFIG = MeasureConfig(
    examples=30,
    batch_size=20,
    eigenvalue_products=25,
    density_probes=2,
    density_products=8,
    trace_probes=200,
    slice_directions=2,
    slice_points=5,
    slice_range=0.5,
)


class TinyTask:
    """Regression by a perceptron, as much of a task as is measured."""

    layers = staticmethod(seht.module_layer)

    def examples(self, number):
        inputs = np.random.default_rng(1).normal(size=(30, 3)).astype(np.float32)[:number]
        return jnp.asarray(inputs), jnp.asarray(np.sin(inputs.sum(axis=1, keepdims=True)))

    @staticmethod
    def evaluation_loss(params, examples, shift):
        inputs, targets = examples
        hidden = jnp.tanh(inputs @ params["first"]["kernel"] + params["first"]["bias"] + shift)
        outputs = seht.outputs(hidden @ params["second"]["kernel"])
        return jnp.mean((outputs - targets) ** 2)


@pytest.fixture(scope="module")
def trained():
    """A network after some steps of gradient descent."""
    keys = jax.random.split(jax.random.key(0), 2)
    params = {
        "first": {"kernel": jax.random.normal(keys[0], (3, 4)), "bias": jnp.zeros(4)},
        "second": {"kernel": jax.random.normal(keys[1], (4, 1))},
    }
    task, shift = TinyTask(), jnp.asarray(0.1)
    gradient = jax.grad(task.evaluation_loss)

    @jax.jit
    def train(params, examples):
        def step(params, _):
            moved = jax.tree.map(
                lambda w, g: w - 0.05 * g, params, gradient(params, examples, shift)
            )
            return moved, None

        return jax.lax.scan(step, params, length=200)[0]

    with jax.numpy_dtype_promotion("strict"):
        return TrainedNetwork(train(params, task.examples(30)), shift)


@pytest.fixture(scope="module")
def measured(trained):
    work = []
    with jax.numpy_dtype_promotion("strict"):
        found = measurer(TinyTask(), CONFIG, lambda _, done: work.append(done))(trained)
    return found, work


@pytest.fixture(scope="module")
def dense(trained):
    """The loss, and the Hessian and the Gauss-Newton matrix, in float64."""
    with jax.enable_x64(True):
        examples, network = jax.tree.map(
            lambda leaf: jnp.asarray(leaf, jnp.float64), (TinyTask().examples(30), trained)
        )
        flat, unravel = ravel_pytree(network.params)

        def loss(flat):
            return TinyTask.evaluation_loss(unravel(flat), examples, network.network_state)

        def outputs(flat):
            params, (inputs, _) = unravel(flat), examples
            first = params["first"]
            hidden = inputs @ first["kernel"] + first["bias"] + network.network_state
            return (jnp.tanh(hidden) @ params["second"]["kernel"]).ravel()

        jacobian = jax.jit(jax.jacobian(outputs))(flat)
        return (
            float(loss(flat)),
            np.asarray(jax.jit(jax.hessian(loss))(flat)),
            np.asarray(2 / 30 * jacobian.T @ jacobian),
        )


def test_the_loss_is_the_mean_over_all_examples(measured, dense):
    assert measured[0].num_examples == 30
    assert measured[0].loss == pytest.approx(dense[0], rel=1e-5)


def test_the_eigenvalues_are_those_of_the_dense_hessian(measured, dense):
    expected = np.linalg.eigvalsh(dense[1])
    largest = np.array(measured[0].largest)
    smallest = np.array(measured[0].smallest)
    np.testing.assert_allclose(largest[:, 0], expected[::-1][:3], rtol=1e-4)
    np.testing.assert_allclose(smallest[:, 0], expected[:3], atol=1e-4 * expected[-1])
    assert np.all(largest[:, 1] > 0)
    assert np.all(largest[:, 1] < 1e-2 * largest[0, 0])


@pytest.mark.parametrize(("name", "index"), [("hessian", 1), ("gauss_newton", 2)])
def test_the_traces_are_those_of_the_dense_matrices(measured, dense, name, index):
    traces = getattr(measured[0], name)
    blocks = {"first": slice(0, 16), "second": slice(16, 20)}
    variance = 2 * (np.sum(dense[index] ** 2) - np.sum(np.diag(dense[index]) ** 2))
    known_error = np.sqrt(variance / CONFIG.trace_probes)
    assert abs(traces.total.mean - np.trace(dense[index])) < 4 * known_error
    assert 0.6 < traces.total.standard_error / known_error < 1.6
    for layer, block in blocks.items():
        exact = np.trace(dense[index][block, block])
        found = traces.by_layer[layer]
        assert abs(found.mean - exact) < 5 * found.standard_error
    assert measured[0].layer_sizes == {"first": 16, "second": 4}
    assert measured[0].num_params == 20


def test_the_slices_go_through_the_network(measured, dense):
    slices = measured[0].slices
    assert slices.shape == (2, 5)
    np.testing.assert_allclose(slices[:, 2], dense[0], rtol=1e-5)
    assert not np.allclose(slices[0], slices[1])


def test_the_density_has_the_trace_of_the_hessian(measured, dense):
    quadrature = measured[0].quadrature
    assert quadrature.nodes.shape == (2, 8)
    variance = 2 * (np.sum(dense[1] ** 2) - np.sum(np.diag(dense[1]) ** 2))
    samples = 20 * np.sum(np.asarray(quadrature.nodes * quadrature.weights), axis=1)
    assert np.all(np.abs(samples - np.trace(dense[1])) < 4 * variance**0.5)


def test_all_of_the_work_is_reported(measured):
    assert sum(measured[1]) == total_work(CONFIG, num_params=20)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("examples", 0, "--examples must be at least 1, .*, not 0"),
        ("eigenvalue_products", 2, "--eigenvalue-products must be at least 3, .*, not 2"),
        ("density_probes", 1, "--density-probes must be at least 2, .*, not 1"),
        ("trace_probes", 1, "--trace-probes must be at least 2, .*, not 1"),
        ("probe_seed", 2**31, "--probe-seed must be at least 0, and an int32, not 2147483648"),
        ("slice_points", 4, "--slice-points must be odd, not 4"),
        ("slice_range", 0.0, "--slice-range must be finite and above 0, not 0.0"),
        ("slice_range", float("nan"), "--slice-range must be finite and above 0, not nan"),
    ],
)
def test_a_number_out_of_its_range_is_named(field, value, message):
    with pytest.raises(SettingError, match=message):
        MeasureConfig(**{field: value})
