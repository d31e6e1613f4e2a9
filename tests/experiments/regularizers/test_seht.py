"""The SEHT methods and the hooks that they leave alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.regularizers import Batch, Outputs, Regularizer, SehtD, SehtH

PARAMS = {"layer": {"w": jnp.array([1.0, 2.0])}}


def loss_fn(params):
    loss = jnp.sum(params["layer"]["w"] ** 4)  # a diagonal Hessian, 12 w^2: trace 60
    return loss, Outputs(batch_stats={}, metrics={"loss": loss})


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


@pytest.mark.parametrize(("step", "share"), [(0, 0.25), (1, 0.5), (3, 1.0), (100, 1.0)])
def test_warm_up_is_linear(step, share, inputs_of):
    objective, _ = evaluate(SehtH(lam=0.1, warmup_steps=4), inputs_of(step))
    assert float(objective) == pytest.approx(17 + share * 0.1 * 60)


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
