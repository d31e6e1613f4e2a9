"""One training step."""

import dataclasses
from typing import ClassVar

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.config import LanguageModelConfig, ModelConfig, OptimizerConfig, TextConfig
from experiments.data.load import load_data
from experiments.errors import SettingError
from experiments.regularizers import SAM, GaussNewton, Regularizer, SehtD, SehtH, SehtShare
from experiments.tasks.classification import epoch_order
from experiments.training.loop import build_experiment
from experiments.training.state import check_accumulation, make_optimizer, make_schedule

KEY = jax.random.key(0)


@dataclasses.dataclass(frozen=True)
class Recording(Regularizer):
    """Writes down which hooks are called."""

    calls: ClassVar[set[str]] = set()

    def model(self, **arguments):
        self.calls.add("model")
        return arguments

    def at_start(self, _initial):
        self.calls.add("at_start")
        return self

    def augment(self, _key, batch):
        self.calls.add("augment")
        return batch

    def loss(self, _logits, _labels):
        self.calls.add("loss")
        return jnp.zeros(())

    def objective(self, loss_fn, inputs):
        self.calls.add("objective")

        def with_metric(params):
            loss, outputs = loss_fn(params)
            logits, _ = inputs.network(params, inputs.batch.inputs)
            cross_entropy = optax.softmax_cross_entropy(logits, inputs.batch.labels).mean()
            return loss, outputs.with_metrics(
                recorded=inputs.step.astype(jnp.float32), again=cross_entropy
            )

        return with_metric

    def call_arguments(self, step):
        self.calls.add("call_arguments")
        return {"drop_block_rate": step.astype(jnp.float32)}

    def initial_params(self, _key, params):
        self.calls.add("initial_params")
        return params

    def optimizer_settings(self, **settings):
        self.calls.add("optimizer_settings")
        return settings

    def optimizer(self, tx):
        self.calls.add("optimizer")
        return tx

    def evaluation_params(self, params, _opt_state):
        self.calls.add("evaluation_params")
        return params


def start(config, dataset, **changes):
    experiment = build_experiment(dataclasses.replace(config, **changes), dataset)
    state = experiment.init(0)
    order = epoch_order(state.key, 0, dataset.train.labels)
    return experiment, state, order


def test_every_hook_is_called_and_metrics_of_methods_reach_the_log(plain, tiny_digits):
    Recording.calls.clear()
    experiment, state, order = start(plain, tiny_digits, method=(Recording(),), batch_size=20)
    state, metrics = experiment.train_step(state, tiny_digits.train, order)
    assert experiment.evaluation_params(state) is state.params
    hooks = {name for name in vars(Regularizer) if callable(getattr(Regularizer, name))}
    assert Recording.calls == {name for name in hooks if not name.startswith("_")}
    assert float(metrics["recorded"]) == 0
    assert float(metrics["again"]) == pytest.approx(float(metrics["loss"]), rel=1e-5)


@pytest.mark.parametrize(
    "method",
    [pytest.param(SehtH(lam=0.0), marks=pytest.mark.long), SehtD(lam=0.0, num_branches=1)],
)
def test_a_penalty_of_strength_0_changes_nothing(plain, tiny_digits, method):
    results = []
    for each in ((), (method,)):
        experiment, state, order = start(plain, tiny_digits, method=each, batch_size=20)
        results.append(experiment.train_step(state, tiny_digits.train, order)[0])
    chex.assert_trees_all_close(results[0].params, results[1].params, rtol=1e-4, atol=1e-6)
    # The penalty's passes write no running statistics.
    chex.assert_trees_all_close(results[0].network_state, results[1].network_state, rtol=1e-5)


def test_the_penalty_changes_the_step(plain, tiny_digits):
    results = []
    for each in ((), (SehtH(lam=1e-3),)):
        experiment, state, order = start(plain, tiny_digits, method=each, batch_size=20)
        results.append(experiment.train_step(state, tiny_digits.train, order)[0].params)
    difference = optax.tree.norm(jax.tree.map(jnp.subtract, *results))
    assert float(difference) > 1e-4


def test_the_step_compiles_once(plain, tiny_digits):
    experiment, state, order = start(
        plain, tiny_digits, method=(SehtD(num_branches=1),), batch_size=20
    )
    for _ in range(3):
        state, _ = experiment.train_step(state, tiny_digits.train, order)
    assert experiment.train_step.func._cache_size() == 1


def test_an_epoch_takes_every_image_once(tiny_digits):
    orders = [epoch_order(jax.random.key(0), i, tiny_digits.train.labels) for i in (0, 1)]
    assert all(np.array_equal(np.sort(order), np.arange(40)) for order in orders)
    assert not np.array_equal(*orders)


@pytest.mark.parametrize(("clip_norm", "share"), [(0.0, 1.0), (1.0, 1e-3)])
def test_clipping_is_optional_and_of_the_norm_over_all_params(clip_norm, share):
    config = OptimizerConfig(learning_rate=1.0, weight_decay=0.0, clip_norm=clip_norm)
    tx = make_optimizer(config, num_steps=10)
    gradients = {"w": jnp.asarray(600.0), "b": jnp.asarray(800.0)}
    params = jax.tree.map(jnp.zeros_like, gradients)
    updates, _ = tx.update(gradients, tx.init(params), params)
    assert float(updates["w"]) == pytest.approx(-600 * share)
    assert float(updates["b"]) == pytest.approx(-800 * share)


def test_a_batch_larger_than_the_data_is_refused(plain, tiny_digits):
    with pytest.raises(
        SettingError, match="--batch-size 100 is larger than the 40 training images"
    ):
        build_experiment(plain, tiny_digits)


def test_weight_decay_is_added_to_the_clipped_gradient_before_the_momentum():
    config = OptimizerConfig(learning_rate=1.0, momentum=0.5, weight_decay=0.1, clip_norm=1.0)
    tx = make_optimizer(config, num_steps=10**9)  # so long that the learning rate stays
    params = {"kernel": jnp.full((1, 1), 2.0), "bias": jnp.full(1, 2.0), "scale": jnp.full(1, 2.0)}
    gradients = jax.tree.map(lambda leaf: jnp.full_like(leaf, 1000.0), params)
    state = tx.init(params)
    first, state = tx.update(gradients, state, params)
    second, _ = tx.update(gradients, state, params)
    slope = 1 / 3**0.5 + 0.1 * 2
    for name in params:
        assert float(first[name].item()) == pytest.approx(-slope)
        assert float(second[name].item()) == pytest.approx(-(slope + 0.5 * slope))


def test_adahessian_divides_by_the_diagonal_and_decays_the_weights_apart_from_it():
    config = OptimizerConfig(algorithm="adahessian", weight_decay=0.1, clip_norm=0.0)
    tx = make_optimizer(config, num_steps=10)
    params, curvature = {"w": jnp.array([1.0, -2.0])}, jnp.array([3.0, 50.0])

    def value_fn(params):
        return jnp.sum(curvature * params["w"] ** 2) / 2

    updates, _ = tx.update(
        jax.grad(value_fn)(params), tx.init(params), params, value_fn=value_fn, key=KEY
    )
    step = curvature * params["w"] / (curvature + 1e-4) + 0.1 * params["w"]
    np.testing.assert_allclose(updates["w"], -config.learning_rate * step, rtol=1e-5)


def test_adahessian_draws_from_the_key_of_the_step():
    tx = make_optimizer(OptimizerConfig(algorithm="adahessian"), num_steps=10)
    params = {"w": jnp.linspace(1.0, 2.0, 20)}

    def step(key):
        return tx.update(
            params, tx.init(params), params, value_fn=lambda p: jnp.sum(p["w"]) ** 3, key=key
        )[0]["w"]

    first, again, other = map(step, (KEY, KEY, jax.random.key(1)))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


def test_steps_divide_the_learning_rate_by_five_after_60_120_and_160_of_200_epochs():
    schedule = make_schedule(OptimizerConfig(learning_rate=0.1, schedule="steps"), num_steps=200)
    rates = [float(schedule(step)) for step in (0, 59, 61, 119, 121, 159, 161, 199)]
    expected = [0.1, 0.1, 0.02, 0.02, 0.004, 0.004, 0.0008, 0.0008]
    assert rates == pytest.approx(expected)


def test_cosine_falls_from_the_learning_rate_to_zero():
    schedule = make_schedule(OptimizerConfig(learning_rate=0.1), num_steps=200)
    assert [float(schedule(step)) for step in (0, 100, 200)] == pytest.approx([0.1, 0.05, 0.0])


@pytest.mark.parametrize("augmentation", ["flip", "crop-flip"])
def test_a_step_augments_its_images_before_it_normalises_them(plain, tiny_digits, augmentation):
    seen = []

    @dataclasses.dataclass(frozen=True)
    class Looking(Regularizer):
        def augment(self, _key, batch):
            jax.debug.callback(seen.append, batch.inputs)
            return batch

    data = dataclasses.replace(plain.data, augmentation=augmentation)
    experiment, state, order = start(
        plain, tiny_digits, method=(Looking(),), data=data, batch_size=20
    )
    jax.block_until_ready(experiment.train_step(state, tiny_digits.train, order))
    jax.effects_barrier()
    scale = np.asarray(tiny_digits.standard_deviation)
    pixels = np.round(np.asarray(seen[-1]) * scale + np.asarray(tiny_digits.mean))
    originals = np.asarray(tiny_digits.train.images)[np.asarray(order)[:20]].astype(float)
    same = (pixels == originals).all((1, 2, 3))
    mirrored = (pixels == originals[:, :, ::-1]).all((1, 2, 3))
    if augmentation == "flip":
        assert same.any()
        assert mirrored.any()
        assert (same | mirrored).all()
    else:
        # Moved images have the black of the padding at two of their sides.
        assert same.mean() < 0.2
        assert (pixels == 0).mean() > (originals == 0).mean()


@pytest.mark.parametrize("one_in", [2, 3])
def test_the_loss_of_a_part_is_that_of_every_so_many_th_example(plain, tiny_digits, one_in):
    seen = {}

    @dataclasses.dataclass(frozen=True)
    class Look(Regularizer):
        def objective(self, loss_fn, inputs):
            def both(params):
                loss, outputs = loss_fn(params)
                part, _ = inputs.loss_of_part(one_in)(params)
                seen["batch"] = inputs.batch
                return loss, outputs.with_metrics(part=part)

            return both

    config = dataclasses.replace(plain, batch_size=6, method=(Look(),))
    experiment = build_experiment(config, tiny_digits)
    state = experiment.init(0)
    order = experiment.task.epoch_order(state.key, 0)
    _, metrics = experiment.train_step(state, experiment.task.train_data, order)
    task = experiment.task
    batch = task.batch(task.train_data, order, state.step, state.key)  # nothing is augmented
    part = jax.tree.map(lambda array: array[::one_in], batch)
    assert len(part.labels) == -(-6 // one_in)
    network = task.network(state.network_state, state.step, state.key, {})
    expected, _ = task.loss_fn(network, (), part)(state.params)
    assert float(metrics["part"]) == pytest.approx(float(expected), rel=1e-5)
    assert float(metrics["loss"]) != pytest.approx(float(expected), rel=1e-3)


def test_accumulated_gradients_are_those_of_one_large_batch():
    config = OptimizerConfig(
        learning_rate=0.1, schedule="cosine", momentum=0.9, weight_decay=0.1, clip_norm=1.0
    )
    accumulated = make_optimizer(dataclasses.replace(config, accumulate=2), num_steps=8)
    at_once = make_optimizer(config, num_steps=4)
    params = expected = {"w": jnp.array([1.0, -2.0])}
    state, expected_state = accumulated.init(params), at_once.init(params)
    for gradient in jax.random.normal(jax.random.key(0), (4, 2, 2)):
        for part in gradient:
            updates, state = accumulated.update({"w": part}, state, params)
            params = optax.apply_updates(params, updates)
        updates, expected_state = at_once.update({"w": gradient.mean(0)}, expected_state, expected)
        expected = optax.apply_updates(expected, updates)
        np.testing.assert_allclose(params["w"], expected["w"], rtol=1e-5)


@pytest.mark.parametrize("method", [SAM(), SehtShare()])
def test_methods_of_one_batch_do_not_go_with_accumulated_gradients(method):
    config = OptimizerConfig(accumulate=2)
    with pytest.raises(
        SettingError, match=f"{method.name} can not be used with --accumulate 2: it"
    ):
        check_accumulation(config, 10, (method,))


def gradients(config, data, changes):
    """Loss and gradient of the first batch, with the loss alone."""
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, **changes))
    with jax.numpy_dtype_promotion("standard"):  # Flax mixes both dtypes
        task = build_experiment(config, data).task
        params, network_state = task.init(jax.random.key(0))
        network = task.network(network_state, jnp.zeros((), jnp.int32), jax.random.key(1), {})
        batch = jax.tree.map(lambda array: array[:4], task.initial_batch())
        loss_fn = jax.jit(jax.value_and_grad(task.loss_fn(network, (), batch), has_aux=True))
        (loss, _), gradient = loss_fn(params)
    return float(loss), gradient


MODELS = {
    "digits-resnet": ModelConfig(width=2),
    "transformer": LanguageModelConfig(network="transformer", width=8),
    "lstm": LanguageModelConfig(width=8),
    "gru": LanguageModelConfig(network="gru", width=8),
}


@pytest.fixture
def model_config(plain):
    def model_config(name):
        model = MODELS[name]
        if name == "digits-resnet":
            return dataclasses.replace(plain, model=model, batch_size=4)
        text = TextConfig(length=4, train_tokens=400, evaluation_tokens=100)
        return dataclasses.replace(plain, data=text, model=model, batch_size=4)

    return model_config


@pytest.mark.parametrize("name", ["digits-resnet", "transformer"])
def test_activations_that_are_computed_again_change_nothing(name, model_config):
    config = model_config(name)
    data = load_data(config.data)
    loss, gradient = gradients(config, data, {})
    loss_again, gradient_again = gradients(config, data, {"remat": True})
    assert loss == pytest.approx(loss_again, rel=1e-6)
    chex.assert_trees_all_close(gradient, gradient_again, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_is_near_float32_with_params_of_float32(name, model_config):
    config = model_config(name)
    data = load_data(config.data)
    loss, gradient = gradients(config, data, {})
    rounded_loss, rounded = gradients(config, data, {"dtype": "bfloat16"})
    assert rounded_loss != loss
    assert rounded_loss == pytest.approx(loss, rel=2e-2)
    assert {leaf.dtype for leaf in jax.tree.leaves(rounded)} == {jnp.dtype("float32")}
    difference = optax.tree.norm(optax.tree.sub(rounded, gradient))
    assert float(difference) < 0.2 * float(optax.tree.norm(gradient))


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(
            ModelConfig(network="resnet18", width=2, dtype="bfloat16", remat=True),
            marks=pytest.mark.long,
        ),
        ModelConfig(network="wide-resnet", depth=10, width=1, dtype="bfloat16", remat=True),
    ],
    ids=lambda model: model.network,
)
def test_a_penalised_step_in_bfloat16_keeps_state_and_estimate_in_float32(
    plain, tiny_digits, model
):
    config = dataclasses.replace(plain, model=model, batch_size=4, method=(GaussNewton(rise=0.0),))
    with jax.numpy_dtype_promotion("standard"):  # Flax mixes both dtypes
        experiment = build_experiment(config, tiny_digits)
        state = experiment.init(0)
        order = experiment.task.epoch_order(state.key, 0)
        step = jax.make_jaxpr(experiment.train_step, return_shape=True)
        jaxpr, (after, metrics) = step(state, experiment.task.train_data, order)
    assert "bf16" in str(jaxpr)
    assert "remat" in str(jaxpr)
    described = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(after)]
    assert described == [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(state)]
    assert {name: metric.dtype for name, metric in metrics.items()} == dict.fromkeys(
        metrics, jnp.dtype("float32")
    )
    assert "trace_estimate" in metrics
