"""The penalised loss and all its derivatives equal those of the formula."""

import chex
import jax
import jax.numpy as jnp
import networks
import pytest
from oracle import assert_close, composed, dense_penalised, probes, without_aux

import seht_jax as seht

KEY = jax.random.key(7)
LAM = 0.3


@pytest.fixture(params=networks.CASES)
def case(request):
    return networks.CASES[request.param]()


# The formula


@pytest.mark.parametrize(
    ("case", "p", "num_probes"),
    [
        pytest.param(
            name,
            p,
            num_probes,
            marks=pytest.mark.long if p and name == "conv_net" else (),
        )
        for name in networks.CASES
        for p, num_probes in ((None, 3), ((0.7, 0.3), 1))
    ],
    indirect=["case"],
)
def test_equals_the_dense_formula_and_its_gradient(case, p, num_probes):
    expected = dense_penalised(without_aux(case.loss_fn), KEY, p, LAM, num_probes=num_probes)
    penalised = seht.regularize(case.loss_fn, KEY, p, LAM, num_probes=num_probes, has_aux=True)
    (loss, _), gradients = jax.jit(jax.value_and_grad(penalised, has_aux=True))(
        case.params, case.batch
    )
    assert_close(
        (loss, gradients), jax.jit(jax.value_and_grad(expected))(case.params, case.batch), 1e-10
    )


def test_the_penalty_has_a_gradient_in_every_layer(case):
    plain = jax.jit(jax.grad(without_aux(case.loss_fn)))(case.params, case.batch)
    penalised = seht.regularize(without_aux(case.loss_fn), KEY, None, LAM)
    gradients = jax.jit(jax.grad(penalised))(case.params, case.batch)
    difference = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), gradients, plain)
    largest_by_layer = [max(jax.tree.leaves(layer)) for layer in difference.values()]
    assert min(largest_by_layer) > 1e-3


def test_the_aux_is_that_of_the_loss(case):
    penalised = seht.regularize(case.loss_fn, KEY, None, LAM, has_aux=True)
    _, aux = jax.jit(penalised)(case.params, case.batch)
    assert_close(aux, jax.jit(case.loss_fn)(case.params, case.batch)[1])


def test_value_alone_and_value_with_gradient_agree(small):
    penalised = seht.regularize(small.loss_fn, KEY, None, LAM, num_probes=2)
    value = jax.jit(penalised)(small.params, small.batch)
    assert_close(value, jax.jit(jax.value_and_grad(penalised))(small.params, small.batch)[0], 1e-12)


# Derivatives by everything, in both modes


@pytest.fixture
def pair():
    """A loss that reads params, an argument, a keyword and a captured value, two ways."""

    def make(p):
        def build(regularize):
            def value(params, x, lam, captured, scale):
                def loss_fn(params, x, *, scale):
                    hidden = jnp.tanh(x @ params["w"]) * scale + captured
                    return jnp.mean(hidden**3) + jnp.sum(params["b"] ** 4) * jnp.sum(captured)

                return regularize(loss_fn, KEY, p, lam, num_probes=2)(params, x, scale=scale)

            return value

        return build(seht.regularize), build(composed)

    return make


INPUTS = (
    {"w": jnp.array([[0.3, -0.7], [0.2, 0.9]]), "b": jnp.array([0.4, 0.1])},
    jnp.array([[1.0, 2.0], [0.5, -1.0], [0.1, 0.2]]),
    jnp.array(0.2),
    jnp.array([0.7, -0.3]),
    jnp.array(1.3),
)


@pytest.fixture
def inputs():
    return jax.tree.map(lambda x: jnp.asarray(x, float), INPUTS)


TANGENTS = jax.tree.map(lambda x: 0.1 + jnp.sin(x), INPUTS)


@pytest.mark.parametrize("p", [None, (0.5, 0.4)])
@pytest.mark.parametrize(
    "derivative",
    [
        pytest.param(lambda f: jax.grad(f, argnums=(0, 1, 2, 3, 4)), id="reverse"),
        pytest.param(lambda f: jax.jacfwd(f, argnums=(0, 1, 2, 3, 4)), id="forward"),
        pytest.param(lambda f: jax.grad(f, argnums=1), id="reverse_by_an_argument_only"),
        pytest.param(lambda f: jax.grad(f, argnums=2), id="reverse_by_lam_only"),
        pytest.param(lambda f: lambda *x: jax.jvp(f, x, jax.tree.map(jnp.cos, x)), id="jvp"),
        pytest.param(
            lambda f: lambda *x: jax.linearize(f, *x)[1](*jax.tree.map(jnp.cos, x)), id="linearize"
        ),
        pytest.param(lambda f: jax.hessian(f, argnums=(0, 2, 3)), id="hessian"),
        pytest.param(lambda f: jax.grad(jax.checkpoint(f), argnums=(0, 3)), id="checkpoint"),
    ],
)
def test_derivatives_by_every_input_are_those_of_the_composition(pair, inputs, p, derivative):
    actual, expected = pair(p)
    assert_close(jax.jit(derivative(actual))(*inputs), jax.jit(derivative(expected))(*inputs))


def test_derivatives_through_the_aux_are_those_of_the_loss(small):
    loss_fn, params, batch = networks.mlp(jnp.tanh)

    def through_aux(loss_fn):
        def value(params, image):
            loss, aux = loss_fn(params, {**batch, "image": image})
            return loss * 0.5 + jnp.sin(aux["mean_logit"])

        return value

    penalised = seht.regularize(loss_fn, KEY, None, LAM, has_aux=True)

    def expected(params, batch):
        plain = composed(without_aux(loss_fn), KEY, None, LAM)
        return plain(params, batch), loss_fn(params, batch)[1]

    for mode in (jax.grad, jax.jacfwd):
        assert_close(
            jax.jit(mode(through_aux(penalised), argnums=(0, 1)))(params, batch["image"]),
            jax.jit(mode(through_aux(expected), argnums=(0, 1)))(params, batch["image"]),
        )


def test_the_estimate_carries_no_derivative(small):
    penalised = seht.regularize(small.loss_fn, KEY, None, LAM, with_estimate=True)
    mean = jax.jit(lambda params: penalised(params, small.batch)[1].mean)
    gradients = jax.grad(mean)(small.params)
    chex.assert_trees_all_equal(gradients, jax.tree.map(jnp.zeros_like, small.params))


def test_the_estimate_is_what_lam_multiplies(small):
    for p in (None, (0.6, 0.3)):
        penalised = seht.regularize(small.loss_fn, KEY, p, LAM, num_probes=3, with_estimate=True)
        loss, estimate = jax.jit(penalised)(small.params, small.batch)
        plain = jax.jit(small.loss_fn)(small.params, small.batch)
        assert_close(loss, plain + LAM * estimate.mean)
        drawn = {
            name
            for probe in probes(KEY, small.params, p, num_probes=3)
            for name, layer in probe.items()
            if any(jnp.any(leaf != 0) for leaf in jax.tree.leaves(layer))
        }
        assert estimate.layers_drawn == len(drawn)


def test_aux_and_estimate_come_out_together():
    loss_fn, params, batch = networks.mlp(jnp.tanh)
    penalised = seht.regularize(loss_fn, KEY, None, LAM, has_aux=True, with_estimate=True)
    step = jax.jit(jax.value_and_grad(penalised, has_aux=True))
    (_, (aux, estimate)), _ = step(params, batch)
    assert_close(aux, jax.jit(loss_fn)(params, batch)[1])
    assert isinstance(estimate, seht.PenaltyEstimate)


# Limit cases


@pytest.mark.parametrize("p", [None, 0.4])
def test_lam_zero_is_the_plain_loss(small, p):
    penalised = seht.regularize(small.loss_fn, KEY, p, 0.0)
    chex.assert_trees_all_close(
        jax.jit(jax.value_and_grad(penalised))(small.params, small.batch),
        jax.jit(jax.value_and_grad(small.loss_fn))(small.params, small.batch),
        rtol=1e-14,
        atol=1e-14,
    )


def test_all_layers_and_all_entries_is_seht_h_for_the_same_signs(small):
    values = [
        jax.jit(jax.value_and_grad(seht.regularize(small.loss_fn, KEY, p, LAM)))(
            small.params, small.batch
        )
        for p in (None, (1.0, 0.5))
    ]
    chex.assert_trees_all_equal(*values)


def empty_draw_key(params, p):
    for seed in range(100):
        key = jax.random.key(seed)
        if not any(jnp.any(leaf != 0) for leaf in jax.tree.leaves(probes(key, params, p))):
            return key
    pytest.fail("every key draws a layer")


@pytest.mark.parametrize("traced", [False, True])
def test_an_inactive_penalty_is_exactly_the_plain_loss(small, traced):
    def step(params, active):
        penalised = seht.regularize(
            small.loss_fn, KEY, None, LAM, active=active, with_estimate=True
        )
        return jax.value_and_grad(penalised, has_aux=True)(params, small.batch)

    (loss, estimate), gradients = (
        jax.jit(step)(small.params, False) if traced else step(small.params, False)
    )
    expected = jax.jit(jax.value_and_grad(small.loss_fn))(small.params, small.batch)
    chex.assert_trees_all_close((loss, gradients), expected, rtol=1e-15)
    assert (estimate.mean, estimate.layers_drawn) == (0, 0)


def test_an_empty_draw_is_exactly_the_plain_loss(small):
    key = empty_draw_key(small.params, 0.1)
    penalised = seht.regularize(small.loss_fn, key, 0.1, LAM, with_estimate=True)
    (loss, estimate), gradients = jax.jit(jax.value_and_grad(penalised, has_aux=True))(
        small.params, small.batch
    )
    expected = jax.jit(jax.value_and_grad(small.loss_fn))(small.params, small.batch)
    chex.assert_trees_all_close((loss, gradients), expected, rtol=1e-15)
    assert (estimate.mean, estimate.layers_drawn) == (0, 0)


@pytest.mark.parametrize("lam", [0, jnp.zeros(())])
def test_without_strength_no_layer_is_counted(small, lam):
    penalised = seht.regularize(small.loss_fn, KEY, None, lam, with_estimate=True)
    _, estimate = penalised(small.params, small.batch)
    assert (estimate.mean, estimate.layers_drawn) == (0, 0)


def test_rescaling_divides_by_the_kept_share(small):
    p = (0.6, 0.3)
    estimates = [
        jax.jit(seht.regularize(small.loss_fn, KEY, p, LAM, rescale=rescale, with_estimate=True))(
            small.params, small.batch
        )[1].mean
        for rescale in (False, True)
    ]
    assert_close(estimates[1], estimates[0] / (0.6 * 2 * 0.3))


def test_layers_left_out_are_not_probed_but_still_trained(small):
    def only_first(path):
        return "first" if path[0] == "first" else None

    penalised = seht.regularize(small.loss_fn, KEY, None, LAM, layers=only_first)
    expected = dense_penalised(small.loss_fn, KEY, None, LAM, layers=only_first)
    gradients = jax.jit(jax.grad(penalised))(small.params, small.batch)
    assert_close(gradients, jax.jit(jax.grad(expected))(small.params, small.batch))
    plain = jax.jit(jax.grad(small.loss_fn))(small.params, small.batch)
    assert jnp.abs(gradients["second"]["kernel"] - plain["second"]["kernel"]).max() > 1e-3


# Compilation, dtypes, effects


@pytest.mark.parametrize("p", [None, 0.3])
def test_the_step_compiles_once(small, p):
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(params, batch, key, lam, count):
        penalised = seht.regularize(small.loss_fn, key, p, lam, active=count % 2 == 0)
        return jax.value_and_grad(penalised)(params, batch)

    for i in range(3):
        batch = {**small.batch, "image": small.batch["image"] + i}
        step(small.params, batch, jax.random.key(i), jnp.asarray(0.1 * i), jnp.asarray(i))


@pytest.mark.parametrize(
    "dtype", [jnp.float32, jnp.bfloat16, pytest.param(jnp.float16, marks=pytest.mark.long)]
)
def test_gradients_have_the_dtypes_of_the_params(dtype):
    loss_fn, params, batch = networks.mlp(jnp.tanh)
    params = jax.tree.map(lambda x: x.astype(dtype), params)
    batch = {**batch, "image": batch["image"].astype(dtype)}
    penalised = seht.regularize(
        without_aux(loss_fn), KEY, (0.9, 0.4), 0.1, with_estimate=True, num_probes=2
    )
    (loss, estimate), gradients = jax.jit(jax.value_and_grad(penalised, has_aux=True))(
        params, batch
    )
    chex.assert_trees_all_equal_shapes_and_dtypes(gradients, params)
    assert loss.dtype == dtype
    assert estimate.mean.dtype == jnp.float32


def test_bfloat16_params_accumulate_the_estimate_in_float32():
    # 4,096 ones: a bfloat16 sum would stop at 256.
    params = jnp.ones(4096, jnp.bfloat16)

    def loss_fn(params):
        return 0.5 * jnp.sum(params.astype(jnp.float32) ** 2)

    penalised = seht.regularize(loss_fn, KEY, None, 1.0, with_estimate=True)
    assert penalised(params)[1].mean == 4096


def test_a_step_without_a_penalty_prints_once(capfd):
    def loss_fn(params):
        jax.debug.print("the loss is evaluated")
        return jnp.sum(params**2)

    penalised = seht.regularize(loss_fn, KEY, None, LAM, active=jnp.asarray(False))
    jax.jit(jax.grad(penalised))(jnp.ones(2)).block_until_ready()
    jax.effects_barrier()
    assert capfd.readouterr().out.count("the loss is evaluated") == 1


def test_a_batch_of_probes_prints_once(capfd):
    def loss_fn(params):
        loss = jnp.sum(params**2)
        jax.debug.print("the loss is {}", loss)
        return loss

    penalised = seht.regularize(loss_fn, KEY, None, LAM, num_probes=3)
    jax.jit(jax.grad(penalised))(jnp.ones(2)).block_until_ready()
    jax.effects_barrier()
    assert capfd.readouterr().out.count("the loss is 2.0") == 1


def test_many_probes_of_bfloat16_params_accumulate_the_gradient_in_float32():
    # 24 for each of 512 probes: a bfloat16 sum stops growing at 8,192 and would give 16.
    penalised = seht.regularize(lambda w: jnp.sum(w**4), KEY, None, 1.0, num_probes=512)
    gradient = jax.jit(jax.grad(penalised))(jnp.ones(4, jnp.bfloat16))
    assert gradient.tolist() == [28.0] * 4


@pytest.mark.parametrize("lam", [0.0, jnp.zeros(())])
def test_lam_zero_is_the_plain_loss_where_the_curvature_is_infinite(lam):
    def loss_fn(w):
        return jnp.sum(jnp.abs(w) ** 1.5)

    w = jnp.array([0.0, 1.0])
    assert not jnp.isfinite(seht.regularize(loss_fn, KEY, None, 0.1)(w))
    chex.assert_trees_all_equal(
        jax.value_and_grad(seht.regularize(loss_fn, KEY, None, lam))(w),
        jax.value_and_grad(loss_fn)(w),
    )


def test_a_keyword_may_be_called_params():
    def loss_fn(w, *, params):
        return jnp.sum(w**2) * params

    assert_close(seht.regularize(loss_fn, KEY, None, 0.5)(jnp.ones(3), params=2.0), 6 + 0.5 * 12)


@pytest.mark.parametrize("bound", [0.5, 1e6])
def test_a_bound_saturates_the_penalty_smoothly(bound):
    def loss_fn(w):
        return jnp.sum(w**4)

    def penalised(w, lam):
        return seht.regularize(loss_fn, KEY, None, lam, num_probes=2, bound=bound)(w)

    def expected(w, lam):
        trace = 12 * jnp.sum(w**2)  # the Hessian is diagonal
        return loss_fn(w) + lam * trace / jnp.sqrt(1 + (trace / bound) ** 2)

    operands = jnp.array([1.0, -0.5]), jnp.array(0.3)
    chex.assert_trees_all_close(
        jax.value_and_grad(penalised, (0, 1))(*operands),
        jax.value_and_grad(expected, (0, 1))(*operands),
        rtol=1e-10,
    )
    assert abs(penalised(*operands) - loss_fn(operands[0])) <= 0.3 * bound


def test_a_bound_acts_on_the_rescaled_estimate_which_is_what_is_logged():
    w, bound = jnp.linspace(0.5, 1.5, 8), 40.0

    def loss_fn(w):
        return jnp.sum(w**4)

    def penalised(**settings):
        return seht.regularize(
            loss_fn, KEY, (1.0, 0.2), 0.3, rescale=True, with_estimate=True, **settings
        )(w)

    estimate = penalised()[1].mean
    value, log = penalised(bound=bound)
    assert estimate > bound
    expected = loss_fn(w) + 0.3 * estimate / jnp.sqrt(1 + (estimate / bound) ** 2)
    chex.assert_trees_all_close((value, log.mean), (expected, estimate), rtol=1e-10)
