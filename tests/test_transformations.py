"""Every JAX transformation works around the penalised loss and inside the loss."""

import chex
import jax
import jax.numpy as jnp
import networks
import numpy as np
import optax
import pytest
from oracle import assert_close, composed, inner, probes, without_aux

import seht_jax as seht

KEY = jax.random.key(7)
LAM = 0.3
P = (0.6, 0.4)


def evaluate(function, *args, **kwargs):
    return jax.jit(jax.value_and_grad(function))(*args, **kwargs)


def assert_penalised(loss_fn, params, *args, p=P, **kwargs):
    """Compare value and gradient, jitted, with those of the plain composition."""
    actual = evaluate(seht.regularize(loss_fn, KEY, p, LAM), params, *args, **kwargs)
    assert_close(actual, evaluate(composed(loss_fn, KEY, p, LAM), params, *args, **kwargs))


# Training steps


def make_step(regularize, loss_fn, tx):
    def step(carry, batch):
        params, state, key = carry
        key, step_key = jax.random.split(key)
        penalised = regularize(loss_fn, step_key, P, LAM)
        loss, gradients = jax.value_and_grad(penalised)(params, batch)
        with jax.numpy_dtype_promotion("standard"):  # optax counts in int32
            updates, state = tx.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state, key), loss

    return step


@pytest.fixture
def batches(small):
    return jax.tree.map(lambda x: jnp.stack([x, x[::-1], x, x]), small.batch)


OPTIMIZERS = {
    "chain": lambda: optax.chain(optax.clip_by_global_norm(0.5), optax.adam(0.1)),
    "multi_steps": lambda: optax.MultiSteps(optax.sgd(0.1), every_k_schedule=2),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_scan_over_steps_trains_as_the_composition_does(small, batches, optimizer):
    tx = OPTIMIZERS[optimizer]()
    carry = (small.params, tx.init(small.params), KEY)
    (params, *_), losses = jax.jit(
        lambda *args: jax.lax.scan(make_step(seht.regularize, small.loss_fn, tx), *args)
    )(carry, batches)
    step = jax.jit(make_step(composed, small.loss_fn, tx))
    expected_losses = []
    for i in range(4):
        carry, loss = step(carry, jax.tree.map(lambda x, i=i: x[i], batches))
        expected_losses.append(loss)
    assert_close((params, losses), (carry[0], jnp.stack(expected_losses)))


def test_multi_steps_averages_the_penalised_gradients(small):
    tx = optax.MultiSteps(optax.sgd(1.0), every_k_schedule=2)

    @jax.jit
    def gradient(key):
        return jax.grad(seht.regularize(small.loss_fn, key, P, LAM))(small.params, small.batch)

    gradients = [gradient(key) for key in jax.random.split(KEY)]
    with jax.numpy_dtype_promotion("standard"):
        state = tx.init(small.params)
        first, state = jax.jit(tx.update)(gradients[0], state, small.params)
        second, _ = jax.jit(tx.update)(gradients[1], state, small.params)
    chex.assert_trees_all_equal(first, jax.tree.map(jnp.zeros_like, small.params))
    # MultiSteps counts its mini-steps in float32.
    assert_close(second, jax.tree.map(lambda a, b: -(a + b) / 2, *gradients), 1e-6)


def test_a_scan_over_steps_equals_a_loop(small, batches):
    tx = optax.sgd(0.1, momentum=0.9)
    step = jax.jit(make_step(seht.regularize, small.loss_fn, tx))
    start = (small.params, tx.init(small.params), KEY)
    scanned, losses = jax.jit(lambda *args: jax.lax.scan(step, *args))(start, batches)
    carry, loop_losses = start, []
    for i in range(4):
        carry, loss = step(carry, jax.tree.map(lambda x, i=i: x[i], batches))
        loop_losses.append(loss)
    assert_close((scanned[:2], losses), (carry[:2], jnp.stack(loop_losses)), 1e-12)


# vmap


@pytest.mark.parametrize("impl", ["threefry2x32", pytest.param("raw", marks=pytest.mark.long)])
def test_a_vmap_over_seeds_equals_a_loop(small, impl):
    key = jax.random.PRNGKey(7) if impl == "raw" else KEY
    keys = jax.random.split(key, 3)

    def step(key):
        penalised = seht.regularize(small.loss_fn, key, P, LAM, num_probes=2, with_estimate=True)
        return jax.value_and_grad(penalised, has_aux=True)(small.params, small.batch)

    single = jax.jit(step)
    expected = jax.tree.map(lambda *x: jnp.stack(x), *[single(key) for key in keys])
    assert_close(jax.jit(jax.vmap(step))(keys), expected, 1e-12)


def test_a_vmap_over_params_and_batches_equals_a_loop(small):
    params, batch = jax.tree.map(lambda x: jnp.stack([x, x[::-1]]), (small.params, small.batch))
    penalised = jax.value_and_grad(seht.regularize(small.loss_fn, KEY, P, LAM))
    single = jax.jit(penalised)
    each = [single(*jax.tree.map(lambda x, i=i: x[i], (params, batch))) for i in range(2)]
    expected = jax.tree.map(lambda *x: jnp.stack(x), *each)
    assert_close(jax.jit(jax.vmap(penalised))(params, batch), expected, 1e-12)


def test_a_gradient_of_a_vmap_is_the_sum_of_gradients(small):
    keys = jax.random.split(KEY, 3)

    def total(regularize, params):
        def one(key):
            return regularize(small.loss_fn, key, P, LAM)(params, small.batch)

        return jax.vmap(one)(keys).sum()

    assert_close(
        evaluate(lambda params: total(seht.regularize, params), small.params),
        evaluate(lambda params: total(composed, params), small.params),
    )


def test_per_example_gradients_are_those_of_the_composition(small):
    def of_one(regularize):
        def loss_fn(params, image, label):
            return small.loss_fn(params, {"image": image[None], "label": label[None]})

        return jax.jit(
            jax.vmap(jax.value_and_grad(regularize(loss_fn, KEY, None, LAM)), (None, 0, 0))
        )

    args = (small.params, small.batch["image"], small.batch["label"])
    assert_close(of_one(seht.regularize)(*args), of_one(composed)(*args))


# Rematerialisation and control flow


@pytest.mark.parametrize(
    "where",
    [
        pytest.param("around", marks=pytest.mark.long),
        pytest.param("inside", marks=pytest.mark.long),
        "both",
    ],
)
def test_checkpoint_changes_nothing(small, where):
    loss_fn = small.loss_fn if where == "around" else jax.checkpoint(small.loss_fn)
    penalised = seht.regularize(loss_fn, KEY, P, LAM)
    if where != "inside":
        penalised = jax.checkpoint(penalised)
    assert_close(
        evaluate(penalised, small.params, small.batch),
        evaluate(composed(small.loss_fn, KEY, P, LAM), small.params, small.batch),
    )


def cond(params, x):
    scaled = jax.lax.cond(x[0] > 0, lambda w: jnp.sin(w) ** 2, lambda w: w**3, params["w"])
    return jnp.sum(scaled * x)


def switch(params, x):
    branches = [jnp.sin, jnp.exp, lambda w: w**4]
    return jnp.sum(jax.lax.switch(jnp.int32(2), branches, params["w"]) * x)


def mapped(params, x):
    return jnp.mean(jax.lax.map(lambda scale: jnp.sum(jnp.sin(scale * params["w"])), x))


def scanned(params, x):
    def body(carry, scale):
        return jnp.tanh(carry * params["w"] + scale), jnp.sum(carry**2)

    last, sums = jax.lax.scan(jax.checkpoint(body), params["b"], x)
    return jnp.sum(last**3) + jnp.mean(sums)


def static_loop(params, x):
    return jax.lax.fori_loop(0, 3, lambda i, w: jnp.sin(w) * x[i], params["w"]).sum()


def associative_scan(params, x):
    return jnp.sum(jax.lax.associative_scan(jnp.multiply, params["w"]) ** 2) * x[0]


def while_loop_beside_the_params(params, x):
    steps, scale = jax.lax.while_loop(
        lambda carry: carry[0] < 3, lambda carry: (carry[0] + 1, carry[1] * 1.5), (0, x[0])
    )
    return jnp.sum(params["w"] ** 4) * scale + steps


def linear_algebra(params, x):
    matrix = jnp.outer(params["w"], params["w"]) + 2 * jnp.eye(3)
    return jnp.sum(jnp.linalg.solve(matrix, x) ** 2) + jnp.linalg.slogdet(matrix)[1]


def sorting(params, x):
    return jnp.sum(jnp.sort(params["w"]) ** 3 * x) + jax.lax.top_k(params["w"], 2)[0].prod()


def indexing(params, x):
    table = params["w"].at[jnp.array([0, 2])].multiply(x[:2])
    return jnp.sum(table[jnp.array([0, 0, 2])] ** 3)


def complex_numbers(params, x):
    return jnp.sum(jnp.abs(jnp.fft.fft(params["w"] ** 2)) ** 2 * x)


def inner_gradient(params, x):
    """A loss of a gradient, as in a gradient penalty or a physics-informed network."""
    return jnp.sum(jax.grad(lambda x: jnp.sum(jnp.sin(params["w"] * x) ** 2))(x) ** 2)


def inner_vmap(params, x):
    return jnp.mean(jax.vmap(lambda w, x: jnp.cos(w * x) ** 3)(params["w"], x))


def inner_jit(params, x):
    return jax.jit(lambda w: jnp.sum(jnp.tanh(w) ** 2 * x))(params["w"])


def stopped_gradient(params, x):
    return jnp.sum(jax.lax.stop_gradient(params["w"]) * params["w"] ** 3 * x)


LOSSES = [
    cond,
    switch,
    mapped,
    scanned,
    static_loop,
    associative_scan,
    while_loop_beside_the_params,
    linear_algebra,
    sorting,
    indexing,
    complex_numbers,
    inner_gradient,
    inner_vmap,
    inner_jit,
]


@pytest.fixture
def vectors():
    return {"w": jnp.array([0.3, -0.7, 0.5]), "b": jnp.array([0.4, 0.1, -0.2])}


X = (1.0, 0.5, -2.0)


@pytest.mark.parametrize("loss_fn", LOSSES, ids=lambda loss_fn: loss_fn.__name__)
def test_the_loss_may_contain(vectors, loss_fn):
    assert_penalised(loss_fn, vectors, jnp.asarray(X), p=(0.9, 0.4))


def test_a_stopped_gradient_has_the_curvature_of_the_gradient_that_is_left(vectors):
    assert_own_gradient(stopped_gradient, vectors, jnp.asarray(X))


def test_a_while_loop_over_the_params_is_refused_by_name(vectors):
    def loss_fn(params):
        return jax.lax.while_loop(
            lambda w: jnp.sum(w) > 0, lambda w: w - 1.0, jnp.cos(params["w"])
        ).sum()

    penalised = jax.jit(seht.regularize(loss_fn, KEY, None, LAM))
    assert jnp.isfinite(penalised(vectors))  # the value needs forward derivatives alone
    with pytest.raises(ValueError, match=r"[Rr]everse-mode differentiation .* lax\.while_loop"):
        jax.grad(penalised)(vectors)


# Arguments


def read_everything(params, image, label, key, *, scale, names=None, activation=None, flip=False):
    """Read arrays, integers, a key, and leaves that are no arrays."""
    if flip:
        image = -image
    if isinstance(key, jax.Array):
        image += 0.1 * jax.random.normal(key, image.shape)
    hidden = (activation or jnp.tanh)(image @ params["kernel"] + params["bias"])
    factor = 2.0 if names is not None and names["loss"] == "double" else 1.0
    return networks.cross_entropy(hidden * scale * factor, label)


@pytest.fixture
def dense():
    key = jax.random.key(1)
    params = {"kernel": jax.random.normal(key, (4, 3)), "bias": jnp.array([0.1, -0.2, 0.3])}
    batch = (jax.random.normal(jax.random.key(2), (5, 4)), jnp.array([0, 2, 1, 1, 0]))
    return params, batch


@pytest.mark.parametrize(
    "key_of", [jax.random.key, jax.random.PRNGKey], ids=["typed_key", "raw_key"]
)
def test_integers_keys_and_keywords_are_arguments(dense, key_of):
    params, (image, label) = dense
    assert_penalised(read_everything, params, image, label, key_of(3), scale=jnp.asarray(1.5))


def test_leaves_that_are_no_arrays_are_arguments(dense):
    params, (image, label) = dense
    rest = {
        "scale": 1.5,
        "names": {"loss": "double", "unused": [None, print, object()]},
        "activation": jnp.sin,
        "flip": True,
    }

    def step(regularize):
        return lambda params: regularize(read_everything, KEY, P, LAM)(
            params, image, label, None, **rest
        )

    assert_close(evaluate(step(seht.regularize), params), evaluate(step(composed), params))


def test_arguments_may_be_numpy_arrays_and_python_numbers(dense):
    params, (image, label) = dense
    args = (*jax.tree.map(np.asarray, (params, image, label)), None)
    penalised = jax.value_and_grad(seht.regularize(read_everything, KEY, P, LAM))
    expected = evaluate(composed(read_everything, KEY, P, LAM), params, image, label, None, scale=2)
    assert_close(penalised(*args, scale=2), expected)


def test_raw_and_typed_keys_draw_the_same(dense):
    params, (image, label) = dense
    raw, typed = (
        evaluate(
            seht.regularize(read_everything, key, P, LAM), params, image, label, None, scale=1.0
        )
        for key in (jax.random.PRNGKey(3), jax.random.key(3))
    )
    chex.assert_trees_all_equal(raw, typed)


def test_the_gradient_by_a_second_argument_is_that_of_the_composition(dense):
    params, (image, label) = dense

    def gradient(regularize):
        penalised = regularize(read_everything, KEY, P, LAM)
        return jax.jit(jax.grad(penalised, argnums=(1, 0)))(params, image, label, None, scale=1.0)

    assert_close(gradient(seht.regularize), gradient(composed))


def test_the_gradient_by_an_integer_argument_is_empty(dense):
    params, (image, label) = dense
    penalised = seht.regularize(read_everything, KEY, P, LAM)
    gradient = jax.grad(penalised, argnums=2, allow_int=True)(params, image, label, None, scale=1.0)
    assert gradient.dtype == jax.dtypes.float0


def test_an_aux_may_have_leaves_that_are_no_arrays(dense):
    params, _ = dense
    static = {"name": "loss", "none": None, "function": jnp.tanh, "flag": True, "count": 3}

    def loss_fn(params):
        key = jax.random.key(5)
        aux = {**static, "array": params["bias"], "integer": jnp.arange(2), "key": key}
        return jnp.sum(params["kernel"] ** 4), aux

    penalised = seht.regularize(loss_fn, KEY, P, LAM, has_aux=True)
    _, aux = penalised(params)
    assert {name: aux[name] for name in static} == static
    chex.assert_trees_all_equal(aux["array"], params["bias"])
    chex.assert_trees_all_equal(aux["integer"], jnp.arange(2))
    assert aux["key"] == jax.random.key(5)


# Values from outside


def captured(regularize):
    """A penalised loss of a value that the loss reads from outside."""

    def value(x, params):
        def loss_fn(params):
            return jnp.sum(jnp.tanh(params["w"] * x) ** 3) * jnp.sum(params["b"] ** 2)

        return regularize(loss_fn, KEY, (0.9, 0.4), LAM)(params)

    return value


OUTER = {
    "jit": lambda f: f,
    "grad": lambda f: jax.grad(f, argnums=(0, 1)),
    "grad_of_x_alone": jax.grad,
    "vmap": lambda f: jax.vmap(f, (0, None)),
    "grad_of_vmap": lambda f: jax.grad(lambda x, params: jax.vmap(f, (0, None))(x, params).sum()),
    "vmap_of_grad": lambda f: jax.vmap(jax.grad(f, argnums=(0, 1)), (0, None)),
    "scan": lambda f: (
        lambda x, params: jax.lax.scan(lambda total, x: (total + f(x, params), None), 0.0, x)[0]
    ),
    "grad_of_scan": lambda f: jax.grad(
        lambda x, params: jax.lax.scan(lambda total, x: (total + f(x, params), None), 0.0, x)[0],
        argnums=(0, 1),
    ),
    "checkpoint": lambda f: jax.grad(jax.checkpoint(f), argnums=(0, 1)),
    "grad_inside_grad": lambda f: jax.grad(
        lambda x, params: sum(jnp.sum(g**2) for g in jax.tree.leaves(jax.grad(f, 1)(x, params)))
    ),
    "cond": lambda f: (
        lambda x, params: jax.lax.cond(x.sum() > 0, f, lambda x, params: 0 * x.sum(), x, params)
    ),
}


@pytest.mark.parametrize("outer", OUTER)
def test_the_loss_may_capture_a_traced_value(vectors, outer):
    x = jnp.asarray(X)
    actual = jax.jit(OUTER[outer](captured(seht.regularize)))(x, vectors)
    assert_close(actual, jax.jit(OUTER[outer](captured(composed)))(x, vectors))


# Custom derivative rules


@jax.custom_jvp
def softplus(x):
    return jnp.logaddexp(x, 0.0)


@softplus.defjvp
def softplus_jvp(primals, tangents):
    return softplus(primals[0]), jax.nn.sigmoid(primals[0]) * tangents[0]


@jax.custom_jvp
def clipped(x):
    return x


@clipped.defjvp
def clipped_jvp(primals, tangents):
    """Follow the rule, which is not the derivative of the function."""
    return primals[0], jnp.exp(-(primals[0] ** 2)) * tangents[0]


def with_vjp(forward, backward):
    @jax.custom_vjp
    def function(x):
        return forward(x)

    function.defvjp(lambda x: (forward(x), x), lambda x, g: (backward(x, g),))
    return function


straight_through = with_vjp(jnp.round, lambda x, g: g)
reversed_gradient = with_vjp(lambda x: x, lambda x, g: -g)
clipped_gradient = with_vjp(lambda x: x, lambda x, g: jnp.clip(g, -0.1, 0.1))
safe_norm = with_vjp(
    lambda x: jnp.sqrt(jnp.sum(x**2)),
    lambda x, g: g * x / jnp.where(jnp.sum(x**2) == 0, 1.0, jnp.sqrt(jnp.sum(x**2))),
)
surrogate_spike = with_vjp(
    lambda x: (x > 0).astype(x.dtype), lambda x, g: g / (1 + jnp.abs(4 * x)) ** 2
)


def elementwise(function):
    def loss_fn(params, x):
        hidden = function(3 * params["w"] * x + params["b"])
        return jnp.sum(hidden**2 * jnp.sin(params["w"]))

    return loss_fn


@pytest.mark.parametrize("activation", [jax.nn.relu, jax.nn.silu, softplus])
def test_a_custom_jvp_is_followed_by_its_rule(vectors, activation):
    assert_penalised(elementwise(activation), vectors, jnp.asarray(X), p=(0.9, 0.4))


def own_gradient(loss_fn, p=P):
    """The loss plus the curvature of the gradient that its author wrote, and the gradients."""

    def value_and_gradient(params, *args):
        (probe,) = probes(KEY, params, p)

        def gradient(params):
            return jax.grad(loss_fn)(params, *args)

        def slope(params):
            return jax.jvp(gradient, (params,), (probe,))

        (gradients, slopes), (_, curvatures) = jax.jvp(slope, (params,), (probe,))
        value = loss_fn(params, *args) + LAM * inner(probe, slopes)
        return value, jax.tree.map(lambda g, c: g + LAM * c, gradients, curvatures)

    return value_and_gradient


def assert_own_gradient(loss_fn, params, *args, p=P):
    actual = evaluate(seht.regularize(loss_fn, KEY, p, LAM), params, *args)
    assert_close(actual, jax.jit(own_gradient(loss_fn, p))(params, *args))


@pytest.mark.parametrize(
    "function",
    [straight_through, reversed_gradient, clipped_gradient, safe_norm, surrogate_spike],
    ids=["straight_through", "reversal", "clipping", "safe_norm", "spike"],
)
def test_the_curvature_of_a_custom_rule_is_that_of_the_gradient_its_author_wrote(vectors, function):
    assert_own_gradient(elementwise(function), vectors, jnp.asarray(X), p=(0.9, 0.4))


def with_the_derivatives_of_the_rule(x):
    integral = jnp.sqrt(jnp.pi) / 2 * jax.lax.erf(x)  # of exp(-x^2)
    return jax.lax.stop_gradient(x - integral) + integral


def test_a_forward_rule_is_followed_to_the_second_order(vectors):
    x = jnp.asarray(X)
    penalised = seht.regularize(elementwise(clipped), KEY, P, LAM)
    expected = composed(elementwise(with_the_derivatives_of_the_rule), KEY, P, LAM)
    assert_close(evaluate(penalised, vectors, x), evaluate(expected, vectors, x))


def loss_in_scan(params, x):
    def body(carry, scale):
        return clipped_gradient(jnp.tanh(carry * params["w"] + scale)), None

    return jnp.sum(jax.lax.scan(body, params["b"], x)[0] ** 3)


def loss_in_remat(params, x):
    return jnp.sum(jax.checkpoint(lambda w: reversed_gradient(jnp.sin(w)) * w)(params["w"]) * x)


def loss_in_cond(params, x):
    return jax.lax.cond(x[0] > 0, lambda w: jnp.sum(clipped_gradient(w**3)), jnp.sum, params["w"])


def loss_in_vmap(params, x):
    return jnp.sum(jax.vmap(lambda w, x: clipped_gradient(w**2 * x) * w)(params["w"], x))


@pytest.mark.parametrize(
    "loss_fn",
    [loss_in_scan, loss_in_remat, loss_in_cond, loss_in_vmap],
    ids=lambda loss_fn: loss_fn.__name__,
)
def test_a_custom_vjp_may_stand_inside_other_transformations(vectors, loss_fn):
    assert_own_gradient(loss_fn, vectors, jnp.asarray(X), p=None)


def test_a_reversed_gradient_reverses_the_penalty(vectors):
    def plain(params):
        return jnp.sum(params["w"] ** 4) + jnp.sum(params["w"]) * jnp.sum(params["b"] ** 3)

    def loss_fn(params):
        return plain(jax.tree.map(reversed_gradient, params))

    value, gradients = evaluate(seht.regularize(loss_fn, KEY, P, LAM), vectors)
    penalty, penalised = (
        evaluate(composed(function, KEY, P, LAM), vectors)
        for function in (lambda params: plain(params) * 1.0, plain)
    )
    assert_close(value, 2 * plain(vectors) - penalty[0])
    assert_close(gradients, jax.tree.map(jnp.negative, penalised[1]))


def test_a_straight_through_estimator_trains_the_same_on_drawn_and_undrawn_steps(vectors):
    def loss_fn(params):
        rounded = straight_through(4 * params["w"]) / 4
        return jnp.sum((rounded - 1.0) * params["b"])

    @jax.jit
    def step(params, active):
        penalised = seht.regularize(loss_fn, KEY, None, LAM, active=active, with_estimate=True)
        return jax.value_and_grad(penalised, has_aux=True)(params)

    (_, estimate), drawn = step(vectors, True)
    _, undrawn = step(vectors, False)
    assert estimate.layers_drawn == 2
    assert_close(drawn, undrawn, 1e-15)
    assert_close(drawn, jax.grad(loss_fn)(vectors), 1e-15)
    assert jnp.abs(drawn["w"]).min() > 0.01


def test_a_custom_vjp_works_in_reverse_mode_with_a_float_aux(vectors):
    def loss_fn(params, x):
        hidden = reversed_gradient(jnp.sin(params["w"]) * x)
        return jnp.sum(hidden**2), {"hidden": hidden}

    def through_both(params, x):
        loss, aux = seht.regularize(loss_fn, KEY, P, LAM, has_aux=True)(params, x)
        return loss + jnp.sum(aux["hidden"]), aux

    def expected_aux(params, x):
        return jnp.sum(loss_fn(params, x)[1]["hidden"])

    x = jnp.asarray(X)
    (value, aux), gradients = jax.jit(jax.value_and_grad(through_both, has_aux=True))(vectors, x)
    loss, loss_gradients = jax.jit(own_gradient(without_aux(loss_fn)))(vectors, x)
    aux_sum, aux_gradients = evaluate(expected_aux, vectors, x)
    assert_close(value, loss + aux_sum)
    assert_close(gradients, jax.tree.map(jnp.add, loss_gradients, aux_gradients))
    assert_close(aux, loss_fn(vectors, x)[1])


def test_forward_mode_refuses_a_custom_vjp_as_jax_does(vectors):
    def loss_fn(params):
        return jnp.sum(clipped_gradient(params["w"]) ** 2), clipped_gradient(params["w"])

    penalised = seht.regularize(loss_fn, KEY, None, LAM, has_aux=True)
    with pytest.raises(TypeError, match=r"forward-mode autodiff .* custom_vjp"):
        jax.jvp(lambda params: penalised(params)[1], (vectors,), (vectors,))


def test_forward_mode_by_the_loss_alone_works_with_a_custom_vjp(vectors):
    penalised = seht.regularize(
        lambda params: jnp.sum(clipped_gradient(params["w"]) ** 2), KEY, None, LAM
    )
    forward = jax.jit(jax.jacfwd(penalised))(vectors)
    assert_close(forward, jax.jit(jax.grad(penalised))(vectors))


# Effects


@pytest.mark.parametrize(
    ("active", "num_probes", "has_aux", "count"),
    [(False, 3, False, 1), (True, 1, False, 1), (True, 3, False, 3), (True, 1, True, 2)],
)
def test_a_print_in_the_loss_happens_at_most_once_for_each_probe_and_once_for_a_float_aux(
    capfd, active, num_probes, has_aux, count
):
    def loss_fn(params):
        jax.debug.print("evaluated")
        return (jnp.sum(params**2), params) if has_aux else jnp.sum(params**2)

    @jax.jit
    def step(params, active):
        penalised = seht.regularize(
            loss_fn, KEY, None, LAM, active=active, num_probes=num_probes, has_aux=has_aux
        )
        return jax.value_and_grad(penalised, has_aux=has_aux)(params)

    jax.block_until_ready(step(jnp.ones(2), active))
    jax.effects_barrier()
    assert 1 <= capfd.readouterr().out.count("evaluated") <= count
