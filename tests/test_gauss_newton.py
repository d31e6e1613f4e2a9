"""The Gauss-Newton form equals J^T H J of the marked outputs, for every form and estimator."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import networks
import numpy as np
import oracle
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree
from jax.sharding import PartitionSpec as P

import seht_jax as seht
from seht_jax import products
from seht_jax.outputs import ENTERED
from seht_jax.taylor import _RULES_OF_BODIES

LAM = 0.3
MODES = {
    "dense": {"p": None},
    "three_probes": {"p": None, "num_probes": 3, "probe_batch": 2},
    "sparse": {"p": (0.5, 0.3)},
    "sparse_probes": {"p": (0.6, 0.5), "num_probes": 2},
}


def marked(case_name):
    """Split a network of `networks` into one that ends in outputs, and a loss of these."""
    key = jax.random.key(7)
    images = jax.random.normal(key, (6, 4))
    labels = jax.random.randint(key, (6,), 0, 3)
    if case_name == "language_model":
        case = networks.CASES["lstm"]()
        images, labels = case.batch["image"], case.batch["label"]

        def network(params, images):
            return networks.recurrent(params, images)[1]

        return network, networks.cross_entropy, case.params, images, labels
    activation = jax.nn.relu if case_name == "relu" else jnp.tanh
    params = networks.mlp(activation).params

    def network(params, images):
        hidden = activation(images @ params["first"]["kernel"] + params["first"]["bias"])
        return hidden @ params["second"]["kernel"] + params["second"]["bias"]

    def squared_error(outputs, labels):
        return 0.5 * jnp.mean(jnp.sum((outputs - jax.nn.one_hot(labels, 3)) ** 2, axis=-1))

    loss = squared_error if case_name == "squared_error" else networks.cross_entropy
    return network, loss, params, images, labels


CASES = ("cross_entropy", "squared_error", "language_model", "relu")


def loss_and_matrix(case_name):
    """Return the loss with its mark, its params, and a function from params to dense G."""
    network, loss, params, images, labels = marked(case_name)

    def loss_fn(params):
        return loss(seht.outputs(network(params, images)), labels)

    def matrix(params):
        flat, unravel = ravel_pytree(params)
        outputs = network(params, images)

        def flat_outputs(flat):
            return network(unravel(flat), images).ravel()

        jacobian = jax.jacobian(flat_outputs)(flat)
        curvature = jax.hessian(lambda z: loss(z.reshape(outputs.shape), labels))(outputs.ravel())
        return jacobian.T @ curvature @ jacobian

    return loss_fn, params, jax.jit(matrix)


def exact_trace(loss_fn, params, **options):
    """Compile one program; by itself the function would compile each operation."""
    return jax.jit(seht.exact_trace(loss_fn, **options))(params)


def penalised_by(matrix, loss_fn, key, p, num_probes=1, **_):
    def penalised(params):
        dense = matrix(params)

        def form(probe):
            return ravel_pytree(probe)[0] @ dense @ ravel_pytree(probe)[0]

        mean = oracle.mean_over_probes(form, key, params, p, num_probes=num_probes)
        return loss_fn(params) + LAM * mean

    return penalised


@pytest.fixture
def large_products(monkeypatch):
    """Take all products for large ones, which have branches for layers that were not drawn."""
    monkeypatch.setattr(products, "_WORTHWHILE_INTENSITY", 0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "case_name", ["cross_entropy", pytest.param("language_model", marks=pytest.mark.long)]
)
@pytest.mark.usefixtures("large_products")
def test_large_products_are_those_of_the_dense_matrix(case_name, mode):
    test_the_penalised_loss_and_its_gradient_are_those_of_the_dense_matrix(case_name, mode)


@pytest.mark.parametrize(
    ("case_name", "mode"),
    [(case_name, "dense") for case_name in CASES]
    + [("cross_entropy", mode) for mode in MODES if mode != "dense"],
)
def test_the_penalised_loss_and_its_gradient_are_those_of_the_dense_matrix(case_name, mode):
    loss_fn, params, matrix = loss_and_matrix(case_name)

    @jax.jit
    def both(key):
        actual = seht.regularize(loss_fn, key, lam=LAM, curvature="gauss_newton", **MODES[mode])
        expected = penalised_by(matrix, loss_fn, key, **MODES[mode])
        return jax.value_and_grad(actual)(params), jax.value_and_grad(expected)(params)

    for seed in range(4 if "sparse" in mode else 1):
        oracle.assert_close(*both(jax.random.key(seed)))


@pytest.mark.parametrize("case_name", CASES)
def test_the_exact_trace_is_that_of_the_dense_matrix(case_name):
    loss_fn, params, matrix = loss_and_matrix(case_name)
    trace = exact_trace(loss_fn, params, chunk_size=7, curvature="gauss_newton")
    oracle.assert_close(trace, jnp.trace(matrix(params)))


@pytest.mark.parametrize("case_name", ["cross_entropy", "squared_error", "language_model"])
def test_the_stochastic_estimators_have_the_trace_as_mean(case_name):
    loss_fn, params, matrix = loss_and_matrix(case_name)
    dense = matrix(params)
    trace, options = jnp.trace(dense), {"curvature": "gauss_newton"}
    key = jax.random.key(1)
    estimate = jax.jit(seht.hutchinson_trace(loss_fn, key, num_probes=500, **options))(params)
    assert abs(estimate.mean - trace) < 4 * estimate.standard_error
    assert jnp.all(estimate.samples >= 0)
    sparse = seht.masked_trace(loss_fn, key, (0.5, 0.5), num_probes=500, rescale=True, **options)
    estimate = jax.jit(sparse)(params)
    assert abs(estimate.mean - trace) < 4 * estimate.standard_error
    assert jnp.all(estimate.samples >= 0)
    by_layer = jax.jit(seht.layer_traces(loss_fn, key, num_probes=500, **options))(params)
    sizes = {name: ravel_pytree(layer)[0].size for name, layer in params.items()}
    end = 0
    for name, size in sizes.items():
        block = jnp.trace(dense[end : end + size, end : end + size])
        assert abs(by_layer[name].mean - block) < 4 * by_layer[name].standard_error
        end += size


def test_for_a_piecewise_linear_network_trace_and_layers_are_the_hessians_but_not_the_form():
    loss_fn, params, matrix = loss_and_matrix("relu")
    hessian = jax.jit(functools.partial(oracle.dense_hessian, loss_fn))(params)
    gauss_newton = matrix(params)
    chex.assert_trees_all_close(jnp.diag(hessian), jnp.diag(gauss_newton), atol=1e-12)
    end = 0
    for name, layer in params.items():
        block = slice(end, end + ravel_pytree(layer)[0].size)
        # A layer's kernel and bias enter its outputs linearly.
        chex.assert_trees_all_close(hessian[block, block], gauss_newton[block, block], atol=1e-12)
        end = block.stop
        by_curvature = [
            exact_trace(
                loss_fn,
                params,
                curvature=curvature,
                layers=lambda path, name=name: name if path[0] == name else None,
            )
            for curvature in ("hessian", "gauss_newton")
        ]
        oracle.assert_close(*by_curvature)
    difference = estimate_of(loss_fn, params, "hessian") - estimate_of(loss_fn, params)
    assert abs(difference) > 0.1


def test_the_trace_is_that_of_the_fisher_matrix_with_labels_of_the_network():
    network, _, params, images, _ = marked("cross_entropy")
    loss_fn, _, _ = loss_and_matrix("cross_entropy")

    def log_likelihood(params, image, label):
        return jax.nn.log_softmax(network(params, image[None])[0])[label]

    def squared_norm(image, label):
        gradient = jax.grad(log_likelihood)(params, image, label)
        return jnp.sum(ravel_pytree(gradient)[0] ** 2)

    probabilities = jax.nn.softmax(network(params, images))
    norms = jax.vmap(lambda image: jax.vmap(lambda c: squared_norm(image, c))(jnp.arange(3)))(
        images
    )
    fisher = jnp.mean(jnp.sum(probabilities * norms, axis=-1))
    oracle.assert_close(exact_trace(loss_fn, params, curvature="gauss_newton"), fisher)


def estimate_of(loss_fn, params, curvature="gauss_newton"):
    penalised = seht.regularize(
        loss_fn, jax.random.key(0), None, LAM, curvature=curvature, with_estimate=True
    )
    return jax.jit(penalised)(params)[1].mean


def penalty_of(loss_fn):
    penalised = seht.regularize(loss_fn, jax.random.key(0), None, 1.0, curvature="gauss_newton")
    return jax.jit(lambda params: penalised(params) - loss_fn(params))


def test_what_bypasses_the_mark_has_no_direction_in_the_matrix():
    loss_fn, params, _ = loss_and_matrix("cross_entropy")
    network, loss, _, images, labels = marked("cross_entropy")

    def with_decay(params):
        return loss_fn(params) + 3 * jnp.sum(ravel_pytree(params)[0] ** 2)

    decayed, alone = (
        jax.jit(jax.value_and_grad(penalty_of(f)))(params) for f in (with_decay, loss_fn)
    )
    chex.assert_trees_all_close(decayed, alone, rtol=1e-9, atol=1e-12)

    # A temperature behind the mark scales G, has no direction in it, and G is differentiated by it.
    def with_temperature(params, temperature):
        return loss(seht.outputs(network(params, images)) * temperature, labels)

    def with_own_temperature(params):
        return with_temperature(params, params["second"]["bias"][0])

    def separately(params, temperature):
        return penalty_of(lambda params: with_temperature(params, temperature))(params)

    temperature = params["second"]["bias"][0]
    value, slope = jax.jit(jax.value_and_grad(penalty_of(with_own_temperature)))(params)
    expected, (expected_slope, by_temperature) = jax.jit(jax.value_and_grad(separately, (0, 1)))(
        params, temperature
    )
    assert abs(by_temperature) > 1e-3
    expected_slope["second"]["bias"] += jnp.zeros(3).at[0].set(by_temperature)
    chex.assert_trees_all_close((value, slope), (expected, expected_slope), rtol=1e-9, atol=1e-12)


def through_jit(network, loss, params, images, labels):
    outputs = jax.jit(lambda params: seht.outputs(network(params, images)))(params)
    return loss(outputs, labels)


def through_checkpoint(network, loss, params, images, labels):
    outputs = jax.checkpoint(lambda params: seht.outputs(network(params, images)))(params)
    return loss(outputs, labels)


def through_scan(network, loss, params, images, labels):
    def step(total, example):
        image, label = example
        return total + loss(seht.outputs(network(params, image[None])), label[None]), None

    total, _ = jax.lax.scan(step, jnp.zeros(()), (images, labels))
    return total / len(images)


def through_vmap(network, loss, params, images, labels):
    def example_loss(image, label):
        return loss(seht.outputs(network(params, image[None])), label[None])

    return jnp.mean(jax.vmap(example_loss)(images, labels))


def through_cond(network, loss, params, images, labels):
    return jax.lax.cond(
        jnp.sum(images) < 1e9,
        lambda params: loss(seht.outputs(network(params, images)), labels),
        lambda params: loss(network(params, images), labels),
        params,
    )


def in_two_parts(network, loss, params, images, labels):
    first, second = (seht.outputs(network(params, part)) for part in (images[:2], images[2:]))
    return loss(jnp.concatenate([first, second]), labels)


TRANSFORMS = (
    through_jit,
    through_checkpoint,
    through_scan,
    through_vmap,
    through_cond,
    in_two_parts,
)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_the_mark_survives(transform):
    network, loss, params, images, labels = marked("cross_entropy")
    loss_fn, _, _ = loss_and_matrix("cross_entropy")

    def results(loss_fn):
        penalised = seht.regularize(
            loss_fn, jax.random.key(0), None, LAM, curvature="gauss_newton", with_estimate=True
        )
        return jax.jit(jax.value_and_grad(penalised, has_aux=True))(params)

    def transformed(params):
        return transform(network, loss, params, images, labels)

    chex.assert_trees_all_close(results(transformed), results(loss_fn), rtol=1e-10)


def assert_same_penalty(actual, expected, params):
    """Compare the traces, and the gradients of the penalised losses."""

    def results(loss_fn):
        trace = exact_trace(loss_fn, params, curvature="gauss_newton")
        penalised = seht.regularize(loss_fn, jax.random.key(0), None, LAM, curvature="gauss_newton")
        return trace, jax.jit(jax.grad(penalised))(params)

    found = results(actual)
    chex.assert_trees_all_close(found, results(expected), rtol=1e-9, atol=1e-12)
    assert not jnp.allclose(found[0], exact_trace(actual, params), rtol=1e-3)


class MarkedDense(nn.Module):
    @nn.compact
    def __call__(self, carry, _=None):
        return carry, seht.outputs(jnp.tanh(nn.Dense(3, param_dtype=float)(carry)))


LIFTED = {
    "jit": nn.jit(MarkedDense),
    "remat": nn.remat(MarkedDense),
    "scan": nn.scan(
        MarkedDense, variable_axes={"params": 0}, split_rngs={"params": True}, length=2
    ),
    "vmap": nn.vmap(MarkedDense, variable_axes={"params": None}, split_rngs={"params": False}),
}


@pytest.mark.parametrize(
    "lift",
    [
        pytest.param(lift, marks=pytest.mark.long if lift in {"jit", "remat"} else ())
        for lift in LIFTED
    ],
)
def test_the_mark_survives_lifted_transformations_of_flax(lift):
    images = jax.random.normal(jax.random.key(1), (4, 3))
    model = LIFTED[lift]()
    variables = model.init(jax.random.key(0), images)

    def loss_of(apply):
        def loss_fn(variables):
            logits = apply(variables).reshape(-1, 3)
            return networks.cross_entropy(logits, jnp.arange(len(logits)) % 3)

        return loss_fn

    def by_hand(variables):
        layer = next(iter(variables["params"].values()))
        # Those of both rounds of the scan, or of the one layer.
        kernels, biases = layer["kernel"].reshape(-1, 3, 3), layer["bias"].reshape(-1, 1, 3)
        return seht.outputs(jnp.tanh(images @ kernels + biases))

    lifted = loss_of(lambda variables: model.apply(variables, images)[1])
    assert_same_penalty(lifted, loss_of(by_hand), variables)


@pytest.mark.parametrize(
    "transform",
    [
        pytest.param(nnx.jit, marks=pytest.mark.long),
        pytest.param(nnx.remat, marks=pytest.mark.long),
        pytest.param(lambda function: nnx.jit(nnx.remat(function)), marks=pytest.mark.long),
        lambda function: nnx.remat(nnx.jit(nnx.jit(function))),
        functools.partial(nnx.vmap, in_axes=(None, 0)),
        functools.partial(nnx.scan, in_axes=(None, 0), out_axes=0),
    ],
    ids=["jit", "remat", "jit of remat", "remat of jit of jit", "vmap", "scan"],
)
def test_the_mark_survives_transformations_of_nnx(transform):
    images = jax.random.normal(jax.random.key(1), (4, 3))
    graph, params = nnx.split(nnx.Linear(3, 3, param_dtype=float, rngs=nnx.Rngs(0)))

    def loss_of(apply):
        def loss_fn(params):
            return networks.cross_entropy(
                apply(nnx.merge(graph, params), images), jnp.arange(4) % 3
            )

        return loss_fn

    transformed = loss_of(transform(lambda model, images: seht.outputs(jnp.tanh(model(images)))))
    plain = loss_of(lambda model, images: seht.outputs(jnp.tanh(model(images))))
    assert_same_penalty(transformed, plain, params)


@jax.custom_jvp
def identity(x):
    return seht.outputs(x)


identity.defjvp(lambda primals, tangents: (primals[0], tangents[0]))


@jax.custom_vjp
def reversal(x):
    return x


reversal.defvjp(lambda x: (x, None), lambda _, cotangent: (-cotangent,))


@jax.custom_vjp
def identity_by_vjp(x):
    return seht.outputs(x)


identity_by_vjp.defvjp(lambda x: (x, None), lambda _, cotangent: (cotangent,))


def marked_inside(transform, w):
    return transform(seht.outputs)(w * seht.outputs(w))


def marked_on_devices(w):
    mesh = jax.make_mesh((1,), ("data",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:1])
    return jax.shard_map(seht.outputs, mesh=mesh, in_specs=P("data"), out_specs=P("data"))(w)


def marked_rounds(w):
    return jax.lax.fori_loop(0, 3, lambda _, x: seht.outputs(w * x), jnp.ones(3))


def penalised_with(p, **settings):
    def call(loss_fn, w):
        options = settings | {"curvature": "gauss_newton"}
        return seht.regularize(loss_fn, jax.random.key(0), p, LAM, **options)(w)

    return call


def updated_with(loss_fn, w):
    tx = seht.add_hessian_trace(None, LAM, jax.random.key(0), curvature="gauss_newton")
    return tx.update(w, tx.init(w), w, value_fn=loss_fn)


def estimated_with(estimator, *arguments):
    def call(loss_fn, w):
        return estimator(loss_fn, *arguments, curvature="gauss_newton")(w)

    return call


CALLS = {
    "regularize": penalised_with(None),
    "SEHT-D": penalised_with(0.1),
    "not active": penalised_with(None, active=False),
    "add_hessian_trace": updated_with,
    "hutchinson_trace": estimated_with(seht.hutchinson_trace, jax.random.key(0)),
    "masked_trace": estimated_with(seht.masked_trace, jax.random.key(0), 0.1),
    "layer_traces": estimated_with(seht.layer_traces, jax.random.key(0)),
    "exact_trace": estimated_with(seht.exact_trace),
}


@pytest.mark.parametrize(
    ("loss_fn", "error", "message"),
    [
        (lambda w: jnp.sum(w**2), ValueError, "needs to know where the network ends"),
        (lambda w: jnp.sum(identity(w) ** 2), ValueError, "does not look into"),
        (lambda w: jnp.sum(identity_by_vjp(w) ** 2), ValueError, "does not look into"),
        (lambda w: jnp.sum(seht.outputs(reversal(w)) ** 2), TypeError, "a jax.custom_vjp"),
        (lambda w: jnp.sum(w * seht.outputs(jnp.ones(3))), ValueError, "do not depend on"),
        (lambda w: jnp.sum(w) + jnp.sum(0 * jnp.sign(seht.outputs(w))), ValueError, "not depend"),
        (lambda w: seht.outputs(jnp.sum(w**2)), ValueError, "the loss is linear"),
        (lambda w: jnp.sum(seht.outputs(w * seht.outputs(w)) ** 2), ValueError, "before"),
        (lambda w: jnp.sum(marked_inside(jax.jit, w) ** 2), ValueError, "before"),
        (lambda w: jnp.sum(marked_inside(jax.checkpoint, w) ** 2), ValueError, "before"),
        (lambda w: jnp.sum(marked_rounds(w) ** 2), ValueError, "in an earlier round"),
        (lambda w: jnp.sum(marked_on_devices(w) ** 2), ValueError, "does not look into"),
    ],
    ids=[
        "missing",
        "in_a_custom_jvp",
        "in_a_custom_vjp",
        "custom_vjp",
        "of_a_constant",
        "unused",
        "the_loss_itself",
        "twice",
        "twice_inside_jit",
        "twice_inside_checkpoint",
        "in_rounds",
        "in_shard_map",
    ],
)
@pytest.mark.parametrize("call", ["regularize", "hutchinson_trace"])
def test_a_mark_that_can_not_work_is_an_error(loss_fn, error, message, call):
    with pytest.raises(error, match=message):
        CALLS[call](loss_fn, jnp.ones(3))


@pytest.mark.parametrize("call", CALLS)
def test_every_function_that_has_the_form_says_where_the_mark_goes(call):
    with pytest.raises(ValueError, match=r"ends; mark the outputs .* logits = seht\.outputs\("):
        CALLS[call](lambda w: jnp.sum(w**2), jnp.ones(3))


def test_the_mark_changes_nothing_for_the_hessian():
    loss_fn, params, _ = loss_and_matrix("cross_entropy")
    network, loss, _, images, labels = marked("cross_entropy")

    def without_mark(params):
        return loss(network(params, images), labels)

    def results(loss_fn):
        penalised = seht.regularize(loss_fn, jax.random.key(0), None, LAM)
        return jax.jit(jax.value_and_grad(penalised))(params)

    chex.assert_trees_all_equal(results(loss_fn), results(without_mark))


def test_outputs_needs_an_array():
    with pytest.raises(TypeError, match="needs a floating-point array"):
        seht.outputs({"tokens": np.arange(3)})


def test_the_optax_form_takes_it():
    loss_fn, params, matrix = loss_and_matrix("cross_entropy")
    key = jax.random.key(3)
    tx = seht.add_hessian_trace(None, LAM, key, curvature="gauss_newton")
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = jax.jit(functools.partial(tx.update, value_fn=loss_fn))(
        zeros, tx.init(params), params
    )
    _, step_key = jax.random.split(key)
    penalised = penalised_by(matrix, functools.partial(lambda _: 0.0), step_key, None)
    oracle.assert_close(updates, jax.jit(jax.grad(penalised))(params))


def test_marks_are_seen_in_the_bodies_that_are_entered():
    assert set(ENTERED) == set(_RULES_OF_BODIES)


def test_a_token_that_was_chosen_is_no_output():
    """Outputs may depend on a choice that others led to: integers carry no derivative."""

    def loss_fn(w):
        first = seht.outputs(w[:2] ** 2)
        return jnp.sum(first**2) + jnp.sum(seht.outputs(w[jnp.argmax(first)]) ** 2)

    w = jnp.array([1.0, 2.0, 3.0])
    # 2 (2 w)^2 for the first two, and 2 for the chosen one, which is the second.
    trace = seht.exact_trace(loss_fn, curvature="gauss_newton")(w)
    assert float(trace) == 2 * (4 + 16) + 2
