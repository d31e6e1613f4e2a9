"""Every mistake gets an error that says what is wrong, where it is made."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import seht_jax as seht

KEY = jax.random.key(0)
PARAMS = {"w": np.ones(2)}

pytestmark = pytest.mark.usefixtures("no_runtime_type_checks")


def loss_fn(params):
    return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))


def regularize(**arguments):
    defaults = {"loss_fn": loss_fn, "key": KEY, "p": None, "lam": 0.1}
    return seht.regularize(**{**defaults, **arguments})


def add_hessian_trace(**arguments):
    return seht.add_hessian_trace(**{"key": KEY, "p": None, "lam": 0.1, **arguments})


def hutchinson_trace(**arguments):
    return seht.hutchinson_trace(**{"loss_fn": loss_fn, "key": KEY, **arguments})


def masked_trace(**arguments):
    return seht.masked_trace(**{"loss_fn": loss_fn, "key": KEY, "p": None, **arguments})


# Static arguments, where the function is built

P_ERRORS = [
    (0, ValueError, r"p_layers, .* must be in \(0, 1\], got 0"),
    (-0.1, ValueError, r"must be in \(0, 1\], got -0.1"),
    (0.6, ValueError, r"p_entries, .* must be in \(0, 0.5\], got 0.6; a pair"),
    ((0.5, 0.6), ValueError, r"p_entries, .* got 0.6"),
    ((1.5, 0.5), ValueError, r"p_layers, .* got 1.5"),
    ((0.5, 0), ValueError, r"p_entries, .* got 0"),
    (float("nan"), ValueError, r"p_layers, .* got nan"),
    ((0.1, 0.2, 0.3), ValueError, r"a pair \(p_layers, p_entries\), got \(0.1, 0.2, 0.3\)"),
    ("0.1", TypeError, "p must be made of Python numbers.* p_layers is '0.1' of type str"),
    (True, TypeError, "p must be made of Python numbers.* True of type bool"),
    (np.ones(()), TypeError, "p must be made of Python numbers.* of type ndarray"),
    ((0.1, None), TypeError, "p_entries is None of type NoneType"),
]
COUNT_ERRORS = [
    (0, ValueError, "must be at least 1, got 0"),
    (-3, ValueError, "must be at least 1, got -3"),
    (1.0, TypeError, "must be a whole Python number, got 1.0 of type float"),
    (True, TypeError, "must be a whole Python number, got True of type bool"),
    (None, TypeError, "must be a whole Python number, got None"),
]
KEY_ERRORS = [
    (0, TypeError, "key must be one PRNG key, as made by jax.random.key or split, got 0"),
    (None, TypeError, "key must be one PRNG key.* got None"),
    (np.ones(2), TypeError, r"got an array of dtype float64 and shape \(2,\)"),
    (np.ones((3, 2), np.uint32), TypeError, r"dtype uint32 and shape \(3, 2\)"),
]
LAYERS_ERRORS = [
    ("conv", TypeError, "layers must be a function from the path of a leaf .* got 'conv'"),
    (None, TypeError, "layers must be a function .* got None"),
]


@pytest.mark.parametrize("build", [regularize, add_hessian_trace, masked_trace])
@pytest.mark.parametrize(("p", "error", "message"), P_ERRORS)
def test_p_is_checked_where_it_is_given(build, p, error, message):
    with pytest.raises(error, match=message):
        build(p=p)


def test_a_traced_p_is_refused():
    with pytest.raises(TypeError, match=r"fixed when the step is compiled; p_layers is .*Tracer"):
        jax.jit(lambda p: regularize(p=p)(PARAMS))(0.1)


@pytest.mark.parametrize(("count", "error", "message"), COUNT_ERRORS)
@pytest.mark.parametrize(
    ("build", "name"),
    [
        (regularize, "num_probes"),
        (add_hessian_trace, "num_probes"),
        (add_hessian_trace, "every"),
        (masked_trace, "num_probes"),
        (lambda **a: seht.hutchinson_trace(loss_fn, KEY, **a), "num_probes"),
        (lambda **a: seht.layer_traces(loss_fn, KEY, **a), "num_probes"),
        (lambda **a: seht.exact_trace(loss_fn, **a), "chunk_size"),
    ],
)
def test_counts_are_checked(build, name, count, error, message):
    with pytest.raises(error, match=f"{name} {message}"):
        build(**{name: count})


@pytest.mark.parametrize(("key", "error", "message"), KEY_ERRORS)
@pytest.mark.parametrize(
    "build",
    [
        regularize,
        add_hessian_trace,
        masked_trace,
        lambda key: seht.hutchinson_trace(loss_fn, key),
        lambda key: seht.layer_traces(loss_fn, key),
    ],
)
def test_keys_are_checked(build, key, error, message):
    with pytest.raises(error, match=message):
        build(key=key)


def test_a_schedule_in_place_of_its_value_is_refused_with_a_hint():
    with pytest.raises(TypeError, match=r"lam must be .* schedule, call it with the step"):
        regularize(lam=optax.constant_schedule(0.1))


def test_a_schedule_of_the_share_is_refused_with_a_hint():
    with pytest.raises(TypeError, match=r"relative must be .* got a schedule: .*inject_hyperpar"):
        add_hessian_trace(relative=optax.constant_schedule(0.1))


def test_several_keys_are_refused():
    with pytest.raises(TypeError, match=r"dtype key<fry> and shape \(3,\)"):
        regularize(key=jax.random.split(KEY, 3))


@pytest.mark.parametrize("build", [regularize, add_hessian_trace])
@pytest.mark.parametrize(
    ("lam", "error", "message"),
    [
        (float("nan"), ValueError, "lam must be finite, got nan"),
        (float("inf"), ValueError, "lam must be finite, got inf"),
        (np.ones(2), ValueError, r"lam must be a scalar, got shape \(2,\)"),
        ("0.1", TypeError, "lam must be a real scalar, got '0.1'"),
        (None, TypeError, "lam must be a real scalar, got None"),
        (True, TypeError, "lam must be a real scalar, got True"),
        (1j, TypeError, "lam must be a real scalar, got 1j"),
        (np.ones((), complex), TypeError, "lam must be a real scalar, got an array of dtype comp"),
    ],
)
def test_lam_is_checked(build, lam, error, message):
    with pytest.raises(error, match=message):
        build(lam=lam)


@pytest.mark.parametrize("build", [regularize, add_hessian_trace])
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"curvature": None}, ValueError, "curvature must be 'hessian' or .*, got None"),
        ({"curvature": "hesian"}, ValueError, "'hessian' or 'gauss_newton', got 'hesian'"),
        ({"rescale": 1}, TypeError, "rescale must be True or False, got 1"),
        ({"rescale": None}, TypeError, "rescale must be True or False, got None"),
    ],
)
def test_settings_are_checked(build, arguments, error, message):
    with pytest.raises(error, match=message):
        build(**arguments)


@pytest.mark.parametrize(
    ("bound", "error", "message"),
    [
        (0, ValueError, "must be finite and above 0, got 0"),
        (-0.1, ValueError, "must be finite and above 0, got -0.1"),
        (float("inf"), ValueError, "must be finite and above 0, got inf"),
        ("0.1", TypeError, "must be a Python number, got '0.1' of type str"),
        (True, TypeError, "must be a Python number, got True of type bool"),
    ],
)
def test_bound_is_checked(bound, error, message):
    with pytest.raises(error, match=f"bound {message}"):
        regularize(bound=bound)


@pytest.mark.parametrize(
    ("relative", "error", "message"),
    [
        (0, ValueError, "must be above 0, got 0"),
        (-0.1, ValueError, "must be above 0, got -0.1"),
        (float("nan"), ValueError, "must be finite, got nan"),
        ("0.1", TypeError, "must be a real scalar, got '0.1'"),
        (np.ones(2), ValueError, r"must be a scalar, got shape \(2,\)"),
    ],
)
def test_relative_is_checked(relative, error, message):
    with pytest.raises(error, match=f"relative {message}"):
        add_hessian_trace(relative=relative)


def test_a_bound_needs_all_probes_at_once():
    with pytest.raises(
        ValueError, match="raise probe_batch, which is 2, to num_probes, which is 3"
    ):
        regularize(bound=1.0, num_probes=3, probe_batch=2)


@pytest.mark.parametrize("build", [regularize, add_hessian_trace])
@pytest.mark.parametrize(("layers", "error", "message"), LAYERS_ERRORS)
def test_layers_is_a_function(build, layers, error, message):
    with pytest.raises(error, match=message):
        build(layers=layers)


@pytest.mark.parametrize(
    ("active", "error", "message"),
    [
        (1, TypeError, "active must be a boolean, got 1"),
        (None, TypeError, "active must be a boolean, got None"),
        (np.ones(()), TypeError, "active must be a boolean, got an array of dtype float64"),
        (np.ones(2, bool), ValueError, r"active must be a scalar, got shape \(2,\)"),
    ],
)
def test_active_is_checked(active, error, message):
    with pytest.raises(error, match=message):
        regularize(active=active)


@pytest.mark.parametrize(
    "build",
    [
        regularize,
        masked_trace,
        lambda loss_fn: seht.hutchinson_trace(loss_fn, KEY),
        lambda loss_fn: seht.layer_traces(loss_fn, KEY),
        seht.exact_trace,
    ],
)
def test_the_loss_is_a_function(build):
    with pytest.raises(TypeError, match=r"loss_fn must be a function of the params, got 0\.5"):
        build(loss_fn=0.5)


# Params and loss, in the call

CALLS = {
    "regularize": lambda loss_fn, **a: regularize(loss_fn=loss_fn, **a),
    "gradient": lambda loss_fn, **a: jax.value_and_grad(
        regularize(loss_fn=loss_fn, **a), has_aux=a.get("has_aux", False)
    ),
    "hutchinson_trace": lambda loss_fn, **a: seht.hutchinson_trace(loss_fn, KEY, **a),
    "masked_trace": lambda loss_fn, **a: masked_trace(loss_fn=loss_fn, **a),
    "layer_traces": lambda loss_fn, **a: seht.layer_traces(loss_fn, KEY, **a),
    "exact_trace": seht.exact_trace,
}


@pytest.fixture(params=CALLS)
def call(request):
    return CALLS[request.param]


@pytest.mark.parametrize("name", [name for name in CALLS if name != "gradient"])
@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        (np.ones(2, int), r"params\['a'\]\['b'\] is of dtype int64"),
        (np.ones(2, bool), "is of dtype bool"),
        (np.ones(2, complex), "is of dtype complex128"),
        ("name", "is of type str"),
        (3, "is of type int"),
        (jnp.tanh, "is of type .*(Function|function)"),
    ],
)
def test_params_are_real_floating_point_arrays(name, leaf, message):
    with pytest.raises(
        TypeError, match=f"must be a pytree of real floating-point arrays; .*{message}"
    ):
        CALLS[name](lambda params: jnp.ones(()))({"a": {"b": leaf}, "c": np.ones(2)})


def test_the_transformation_needs_params_that_can_be_differentiated():
    tx = add_hessian_trace()
    state = tx.init({"a": np.ones(2, int)})
    with pytest.raises(TypeError, match=r"params\['a'\] is of dtype int64"):
        tx.update({"a": np.ones(2)}, state, {"a": np.ones(2, int)}, value_fn=loss_fn)


@pytest.mark.parametrize(
    ("loss_fn", "error", "message"),
    [
        (lambda params: params["w"], ValueError, r"must return a scalar, got shape \(2,\); reduce"),
        (
            lambda params: (jnp.sum(params["w"]), 1),
            TypeError,
            "must return a real scalar, got a tuple of length 2; pass has_aux=True",
        ),
        (lambda params: None, TypeError, "must return a real scalar, got a NoneType"),
        (lambda params: {"loss": 1.0}, TypeError, "must return a real scalar, got a dict"),
        (lambda params: jnp.ones((), int), TypeError, "real scalar, got dtype int64"),
        (
            lambda params: jnp.sum(params["w"]).astype(complex),
            TypeError,
            "real scalar, got dtype compl",
        ),
    ],
)
def test_the_loss_is_a_real_scalar(call, loss_fn, error, message):
    with pytest.raises(error, match=message):
        call(loss_fn)(PARAMS)


@pytest.mark.parametrize(
    ("loss_fn", "error", "message"),
    [
        (lambda params: jnp.sum(params["w"]), TypeError, "must return .loss, aux., got a "),
        (lambda params: (jnp.ones(()), 1, 2), TypeError, "loss, aux.* got a tuple of length 3"),
        (lambda params: (params["w"], 1), ValueError, r"got shape \(2,\)"),
        (lambda params: ((jnp.ones(()), 1), 1), TypeError, "real scalar, got a tuple of length 2"),
    ],
)
def test_with_has_aux_the_loss_is_a_pair(call, loss_fn, error, message):
    with pytest.raises(error, match=message):
        call(loss_fn, has_aux=True)(PARAMS)


@pytest.mark.parametrize(
    ("params", "layers", "message"),
    [
        ({}, seht.module_layer, "no layer is left to probe: the params have no leaves, or layers"),
        ({"w": np.ones(2)}, lambda path: None, "no layer is left to probe"),
    ],
)
def test_a_layer_is_left_to_probe(call, params, layers, message):
    with pytest.raises(ValueError, match=message):
        call(lambda params: jnp.ones(()), layers=layers)(params)
    with pytest.raises(ValueError, match=message):
        add_hessian_trace(layers=layers).init(params)
    with pytest.raises(ValueError, match=message):
        seht.layer_names(params, layers)


@pytest.mark.parametrize(
    ("layers", "error", "message"),
    [
        (lambda path: 3, TypeError, "for w it returned 3"),
        (lambda path: path, TypeError, r"for w it returned \('w',\)"),
        (lambda path: seht.Stacked("stack", axis=1), ValueError, r"w has shape \(2,\).*no axis 1"),
        (lambda path: seht.Stacked("stack", axis=-2), ValueError, "has no axis -2"),
    ],
)
def test_layers_are_names_or_stacks(call, layers, error, message):
    with pytest.raises(error, match=message):
        call(loss_fn, layers=layers)(PARAMS)


def test_logits_have_an_axis_of_classes():
    with pytest.raises(ValueError, match=r"logits must have an axis of classes, got shape \(\)"):
        seht.output_trace(jnp.ones(()))


@pytest.mark.parametrize("p", [0, 0.6, -1])
def test_sparse_signs_checks_its_probability(p):
    with pytest.raises(ValueError, match=r"must be in \(0, 0.5\]"):
        seht.sparse_signs(KEY, (3,), p=p)


# The transformation's update


def test_update_says_what_it_needs():
    params = jax.tree.map(jnp.asarray, PARAMS)
    tx = add_hessian_trace()
    state = tx.init(params)
    with pytest.raises(TypeError, match=r"needs value_fn: call update\(updates, state, params"):
        tx.update(params, state, params)
    with pytest.raises(TypeError, match="add_hessian_trace needs params"):
        tx.update(params, state, value_fn=loss_fn)
    with pytest.raises(TypeError, match=r"value_fn must be a function of the params, got 0\.5"):
        tx.update(params, state, params, value_fn=0.5)


def test_the_value_of_a_schedule_is_checked():
    params = jax.tree.map(jnp.asarray, PARAMS)
    tx = add_hessian_trace(lam=lambda count: jnp.ones(2))
    with pytest.raises(ValueError, match=r"lam must be a scalar, got shape \(2,\)"):
        tx.update(params, tx.init(params), params, value_fn=loss_fn)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: optax.masked(tx, {"a": True, "b": False}),
        lambda tx: optax.partition({"x": tx, "y": optax.sgd(0.1)}, {"a": "x", "b": "y"}),
    ],
)
def test_wrappers_that_hide_params_are_refused(wrap):
    params = {"a": jnp.ones(2), "b": jnp.ones(3)}
    with pytest.raises(
        TypeError, match=r"optax.masked and optax.partition can not wrap it.*layers="
    ):
        wrap(add_hessian_trace()).init(params)


@pytest.mark.parametrize("layers", [None, "conv"])
@pytest.mark.parametrize(
    "function",
    [
        lambda layers: seht.layer_names(PARAMS, layers),
        lambda layers: seht.hutchinson_trace(loss_fn, KEY, layers=layers)(PARAMS),
        lambda layers: seht.exact_trace(loss_fn, layers=layers)(PARAMS),
    ],
)
def test_layers_are_a_function(function, layers):
    with pytest.raises(TypeError, match=f"layers must be a function.*got {layers!r}"):
        function(layers)


@pytest.mark.parametrize("name", ["rescale", "has_aux", "with_estimate"])
def test_switches_are_true_or_false(name):
    with pytest.raises(TypeError, match=f"{name} must be True or False, got 'yes'"):
        seht.regularize(loss_fn, KEY, None, 0.1, **{name: "yes"})


def test_logits_are_floating_point_numbers():
    with pytest.raises(TypeError, match="logits must be floating-point numbers, got dtype int"):
        seht.output_trace(jnp.ones((2, 3), int))


def test_the_optax_form_names_its_own_argument():
    params = {"w": jnp.ones(2)}
    tx = seht.add_hessian_trace(None, 0.1, KEY)
    with pytest.raises(TypeError, match="value_fn must return a real scalar, got a tuple of leng"):
        tx.update(params, tx.init(params), params, value_fn=lambda params: (loss_fn(params), 1))
