"""The SEHT methods and the hooks that they leave alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import seht_jax as seht
from experiments.regularizers import Batch, Outputs, Regularizer, SehtD, SehtH, SehtShare

PARAMS = {"layer": {"w": jnp.array([1.0, 2.0])}}


def loss_fn(params):
    loss = jnp.sum(params["layer"]["w"] ** 4)  # a diagonal Hessian, 12 w^2: trace 60
    return loss, Outputs(network_state={}, metrics={"loss": loss})


def evaluate(method, inputs):
    return method.objective(loss_fn, inputs)(PARAMS)


@pytest.mark.parametrize("method", [Regularizer(), SehtH(), SehtD()])
def test_other_hooks_are_the_identity(method):
    logits = labels = jnp.ones((2, 3))
    batch = Batch(jnp.ones((2, 4, 4, 1)), labels)
    tx = optax.sgd(0.1)
    assert method.model(width=3) == {"width": 3}
    assert method.augment(jax.random.key(0), batch) is batch
    assert method.optimizer(tx) is tx
    assert method.optimizer_settings(momentum=0.5) == {"momentum": 0.5}
    assert method.call_arguments(jnp.zeros((), jnp.int32)) == {}
    assert method.initial_params(jax.random.key(0), PARAMS) is PARAMS
    assert method.evaluation_params(PARAMS, tx.init(PARAMS)) is PARAMS
    assert float(method.loss(logits, labels)) == 0.0


def test_the_objective_defaults_to_the_loss(inputs_of):
    assert Regularizer().objective(loss_fn, inputs_of()) is loss_fn


@pytest.mark.parametrize("method", [SehtH(lam=0.1), SehtD(lam=0.1, p=1.0, p_entries=0.5)])
def test_the_penalty_is_lambda_times_the_trace(method, inputs_of):
    objective, outputs = evaluate(method, inputs_of())
    assert float(objective) == pytest.approx(17 + 0.1 * 60)
    assert float(outputs.metrics["trace_estimate"]) == pytest.approx(60)
    assert float(outputs.metrics["layers_drawn"]) == 1
    assert float(outputs.metrics["loss"]) == pytest.approx(17)


@pytest.mark.parametrize(("rescale", "expected"), [(True, 60.0), (False, 60.0 * 2 * 0.25)])
def test_rescaling_makes_the_mean_the_trace(rescale, expected, inputs_of):
    method = SehtD(lam=0.1, p=1.0, p_entries=0.25, rescale=rescale)

    @jax.jit
    def estimate(seed):
        return evaluate(method, inputs_of(seed=seed))[1].metrics["trace_estimate"]

    estimates = [float(estimate(seed)) for seed in range(64)]
    error = np.std(estimates) / 8
    assert abs(np.mean(estimates) - expected) < 4 * error
    assert error > 0


def test_a_scale_free_strength_is_of_the_fourth_root_of_the_loss(inputs_of):
    def loss_of(params):
        loss = jnp.sum(seht.outputs(params["layer"]["w"]) ** 4)
        return loss, Outputs(network_state={}, metrics={"loss": loss})

    method = SehtH(lam=0.1, curvature="gauss_newton", scale_free=True)
    (objective, _), gradient = jax.value_and_grad(
        method.objective(loss_of, inputs_of()), has_aux=True
    )(PARAMS)
    w = PARAMS["layer"]["w"]
    root = 17**0.25
    assert float(objective) == pytest.approx(17 + 0.1 * root)
    # The trace is the sum of 12 w^2.
    expected = 4 * w**3 + 0.1 * root * 24 * w / 60
    np.testing.assert_allclose(gradient["layer"]["w"], expected, rtol=1e-5)


@pytest.mark.parametrize(("step", "share"), [(0, 0.25), (1, 0.5), (3, 1.0), (100, 1.0)])
@pytest.mark.parametrize("power", [1, 2])
def test_the_strength_rises_with_a_power_of_the_steps(step, share, power, inputs_of):
    method = SehtH(lam=0.1, warmup_steps=4, warmup_power=power)
    objective, _ = evaluate(method, inputs_of(step))
    assert float(objective) == pytest.approx(17 + share**power * 0.1 * 60)


def test_the_curvature_may_be_that_of_a_part_of_the_batch(inputs_of):
    def loss_of_part(one_in):
        def part(params):
            loss = one_in * jnp.sum(params["layer"]["w"] ** 2)  # a trace of 4 one_in
            return loss, Outputs(network_state={}, metrics={"loss": loss})

        return part

    method = SehtH(lam=0.1, one_in=3)
    inputs = inputs_of(loss_of_part=loss_of_part)
    (objective, outputs), gradient = jax.value_and_grad(
        method.objective(loss_fn, inputs), has_aux=True
    )(PARAMS)
    assert float(objective) == pytest.approx(17 + 0.1 * 12)
    assert float(outputs.metrics["trace_estimate"]) == pytest.approx(12)
    assert float(outputs.metrics["loss"]) == pytest.approx(17)
    # The trace of the part is the same everywhere.
    plain = jax.grad(lambda params: loss_fn(params)[0])(PARAMS)
    np.testing.assert_allclose(gradient["layer"]["w"], plain["layer"]["w"], rtol=1e-5)


@pytest.mark.parametrize("method", [SehtH(lam=0.1), SehtD(lam=0.1, p=1.0, p_entries=0.5)])
@pytest.mark.parametrize(("step", "trace"), [(0, 60), (1, 0), (3, 0), (4, 60)])
def test_a_lazy_penalty_is_there_on_every_so_many_th_step(method, step, trace, inputs_of):
    lazy = dataclasses.replace(method, every=4)
    objective, outputs = evaluate(lazy, inputs_of(step))
    assert float(objective) == pytest.approx(17 + 0.1 * trace)
    assert float(outputs.metrics["trace_estimate"]) == pytest.approx(trace)


def test_a_lazy_penalty_of_a_part_of_the_batch_leaves_the_loss_of_the_whole(inputs_of):
    method = SehtH(lam=0.1, one_in=2, every=3)
    inputs = inputs_of(step=2, loss_of_part=lambda one_in: loss_fn)
    assert float(evaluate(method, inputs)[0]) == pytest.approx(17)


@pytest.mark.parametrize("method", [SehtH(lam=0.1), SehtD(lam=0.1, p=1.0, p_entries=0.5)])
def test_a_bound_saturates_the_penalty_and_its_gradient(method, inputs_of):
    bounded = dataclasses.replace(method, bound=80.0)
    (objective, outputs), gradient = jax.value_and_grad(
        bounded.objective(loss_fn, inputs_of()), has_aux=True
    )(PARAMS)
    root = (1 + (60 / 80) ** 2) ** 0.5  # 1.25
    assert float(objective) == pytest.approx(17 + 0.1 * 60 / root)
    assert float(outputs.metrics["trace_estimate"]) == pytest.approx(60)  # as it was before
    w = PARAMS["layer"]["w"]
    np.testing.assert_allclose(gradient["layer"]["w"], 4 * w**3 + 0.1 * 24 * w / root**3, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every": 0}, "every must be at least 1, got 0"),
        ({"bound": 0.0}, "bound must be"),
        ({"bound": 1.0, "num_probes": 7}, "bound needs all probes at once"),
        (
            {"bound": 1.0, "scale_free": True, "curvature": "gauss_newton"},
            "bound=1.0 and scale_free=True exclude each other",
        ),
    ],
)
@pytest.mark.parametrize("method", [SehtH, SehtD])
def test_mistakes_about_laziness_and_bound_are_named(method, settings, message):
    if method is SehtD and "scale_free" in settings:
        settings = settings | {"p": 1.0, "p_entries": 0.5}
    with pytest.raises(ValueError, match=message):
        method(**settings)


def test_one_probability_stands_for_layers_and_entries():
    assert SehtD(p=0.1).settings["p"] == (0.1, 0.1)
    assert SehtD(p=0.1, p_entries=0.5).settings["p"] == (0.1, 0.5)
    assert SehtH().settings["p"] is None


def test_methods_combine(inputs_of):
    inner = SehtH(lam=0.1).objective(loss_fn, inputs_of())
    outer = SehtH(lam=0.0).objective(inner, inputs_of(seed=1))
    (value, _), gradients = jax.value_and_grad(outer, has_aux=True)(PARAMS)
    assert float(value) == pytest.approx(17 + 0.1 * 60)
    np.testing.assert_allclose(gradients["layer"]["w"], [4 + 2.4, 32 + 4.8], rtol=1e-5)


@pytest.mark.parametrize("relative", [0.1, 2.0])
def test_the_penalty_is_a_share_of_the_gradient_in_front_of_the_optimizer(relative):
    def value_fn(params):
        return jnp.sum(seht.outputs(params["layer"]["w"] ** 2) ** 2)

    gradients = jax.grad(value_fn)(PARAMS)
    tx = SehtShare(relative=relative).optimizer(optax.sgd(1.0))
    updates, _ = tx.update(
        gradients, tx.init(PARAMS), PARAMS, value_fn=value_fn, key=jax.random.key(0)
    )
    penalty = -(updates["layer"]["w"] + gradients["layer"]["w"])
    # The Gauss-Newton matrix has 2 * (2 w)^2 on its diagonal, so the trace has the gradient 16 w.
    direction = PARAMS["layer"]["w"] / jnp.linalg.norm(PARAMS["layer"]["w"])
    norm = relative * jnp.linalg.norm(gradients["layer"]["w"])
    np.testing.assert_allclose(penalty, norm * direction, rtol=1e-5)


def test_the_probes_of_a_share_are_those_of_the_steps_key():
    def value_fn(params):
        return seht.outputs(jnp.prod(params["layer"]["w"])) ** 2

    tx = SehtShare().optimizer(optax.identity())
    state = tx.init(PARAMS)

    def update(seed):
        gradients = jax.grad(value_fn)(PARAMS)
        return tx.update(gradients, state, PARAMS, value_fn=value_fn, key=jax.random.key(seed))[0]

    first = update(0)["layer"]["w"]
    np.testing.assert_array_equal(first, update(0)["layer"]["w"])
    assert any(not np.array_equal(first, update(seed)["layer"]["w"]) for seed in range(1, 9))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"relative": 0.0}, "relative must be finite and above 0"),
        ({"relative": float("inf")}, "relative must be finite and above 0"),
        ({"every": 0}, "every must be at least 1"),
        ({"curvature": "fisher"}, "curvature must be"),
        ({"p": 0.7}, "p"),
    ],
)
def test_a_share_checks_its_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        SehtShare(**settings)
