"""Language modelling: batches, carried states, evaluation, curvature."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest

import seht_jax as seht
from experiments.config import LanguageModelConfig, OptimizerConfig, TextConfig, TrainConfig
from experiments.data.corpus import Tokens, make_corpus
from experiments.errors import SettingError
from experiments.models.rnn_lm import LanguageModel
from experiments.models.transformer import Transformer
from experiments.regularizers import (
    Cutout,
    DropBlock,
    Dropout,
    GaussNewton,
    Jacobian,
    Mixup,
    SankarMiddle,
    SehtD,
    SehtH,
    SehtShare,
)
from experiments.tasks.language import (
    LanguageModelling,
    TextEvaluator,
    make_loss_fn,
    make_network,
    windows,
    zero_states,
)
from experiments.training.loop import build_experiment

VOCABULARY = 7
LSTM = LanguageModel(VOCABULARY, 4, 4, num_layers=2)
GRU = LanguageModel(VOCABULARY, 4, 4, num_layers=1, cell="gru", tied_embeddings=True)
TRANSFORMER = Transformer(VOCABULARY, max_length=5, num_blocks=1, num_heads=2, model_size=4)
MODELS = pytest.mark.parametrize("model", [LSTM, GRU, TRANSFORMER], ids=["lstm", "gru", "decoder"])

# Strong enough to show after one step.
SEHT_H = SehtH(lam=1e-1)
SEHT_D = SehtD(lam=1e-1, p=1.0, p_entries=0.5, num_branches=1)


@pytest.fixture(scope="module")
def text():
    return make_corpus(*(np.random.default_rng(i).choice(list("abcdefg"), 47) for i in range(3)))


@pytest.fixture
def task(text):
    """Two strands of 23 tokens, so 4 steps of 5 tokens in an epoch."""
    return LanguageModelling(text, LSTM, 2, 5)


def config(network="lstm", *method):
    return TrainConfig(
        data=TextConfig(length=5),
        model=LanguageModelConfig(network=network, width=4),
        optimizer=OptimizerConfig(learning_rate=1.0, clip_norm=0.0),
        method=method,
        epochs=2,
        batch_size=2,
        trace_examples=0,
    )


def run(text, steps, *method, network="lstm"):
    """Return the states before each of some steps, and after the last."""
    experiment = build_experiment(config(network, *method), text)
    states = [experiment.init(0)]
    for _ in range(steps):
        state, metrics = experiment.train_step(states[-1], experiment.task.train_data, None)
        assert all(jnp.isfinite(value) for value in metrics.values())
        states.append(state)
    return states


def params_of(model):
    init = jax.jit(partial(model.init, train=False))
    return init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]


def test_steps_read_the_strands_from_left_to_right(task, text):
    tokens = np.asarray(text.train.tokens)
    strands = tokens[:46].reshape(2, 23)
    assert task.steps_per_epoch == 4
    for step in range(8):
        batch = task.batch(task.train_data, None, jnp.asarray(step), jax.random.key(0))
        start = 5 * (step % 4)
        np.testing.assert_array_equal(batch.inputs, strands[:, start : start + 5])
        np.testing.assert_array_equal(batch.labels, strands[:, start + 1 : start + 6])


def test_states_are_carried_on_and_begin_anew_with_each_epoch(text):
    states = run(text, 5)
    experiment = build_experiment(config(), text)
    chex.assert_trees_all_equal(
        states[0].network_state, zero_states(experiment.model, states[0].params, 2)
    )
    for step, begins in ((1, False), (4, True)):
        start = states[step]
        tokens = experiment.task.train_data[:, 5 * (step % 4) :][:, :5]
        carries = None if begins else start.network_state
        _, expected = experiment.model.apply({"params": start.params}, tokens, carries, train=True)
        chex.assert_trees_all_close(states[step + 1].network_state, expected, atol=1e-5)


def test_the_gradient_ends_at_the_carried_states(task):
    params = params_of(LSTM)
    first, second = (
        task.batch(task.train_data, None, jnp.asarray(i), jax.random.key(0)) for i in (0, 1)
    )
    states = zero_states(LSTM, params, 2)

    def both(params):
        _, carried = make_network(LSTM, states, jax.random.key(0))(params, first.inputs)
        network = make_network(LSTM, carried, jax.random.key(0))
        return make_loss_fn(network, (), second)(params)[0]

    def second_alone(params):
        network = make_network(LSTM, carried, jax.random.key(0))
        return make_loss_fn(network, (), second)(params)[0]

    _, carried = make_network(LSTM, states, jax.random.key(0))(params, first.inputs)
    chex.assert_trees_all_close(
        jax.jit(jax.grad(both))(params), jax.jit(jax.grad(second_alone))(params), atol=1e-6
    )
    # And the states have an influence, so that there was something to cut.
    moved = make_loss_fn(make_network(LSTM, states, jax.random.key(0)), (), second)(params)[0]
    assert abs(float(moved - second_alone(params))) > 1e-4


@pytest.mark.parametrize("network", ["lstm", pytest.param("gru", marks=pytest.mark.long)])
@pytest.mark.parametrize(
    "method",
    [
        SEHT_D,
        GaussNewton(rise=0.0),
        pytest.param(SEHT_H, marks=pytest.mark.long),
        pytest.param(SehtShare(relative=1.0), marks=pytest.mark.long),
        pytest.param(SehtD(lam=1e2, p=0.5), marks=pytest.mark.long),
    ],
    ids=lambda part: part.name,
)
def test_states_after_a_penalised_step_are_those_after_a_plain_one(text, method, network):
    plain = run(text, 1, Dropout(0.5), network=network)
    penalised = run(text, 1, Dropout(0.5), method, network=network)
    chex.assert_trees_all_close(
        penalised[1].network_state, plain[1].network_state, rtol=1e-5, atol=1e-6
    )
    difference = jax.tree.map(jnp.subtract, penalised[1].params, plain[1].params)
    assert float(optax.tree.norm(difference)) > 1e-5


@pytest.mark.long
def test_a_transformer_is_penalised_too(text):
    plain, penalised = (
        run(text, 1, *method, network="transformer")[1] for method in ((), (SEHT_H,))
    )
    assert penalised.network_state == ()
    difference = jax.tree.map(jnp.subtract, penalised.params, plain.params)
    assert float(optax.tree.norm(difference)) > 1e-5


TIED_GRU = LanguageModel(VOCABULARY, 4, 4, 2, "gru", dropout_rate=0.5, tied_embeddings=True)
DROPPING_LSTM = LanguageModel(VOCABULARY, 4, 3, num_layers=2, dropout_rate=0.5)


def cross_entropy(logits, labels):
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


@pytest.fixture
def in_float64():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):  # flax promotes
        yield


@pytest.mark.parametrize(
    ("model", "curvature", "p"),
    [
        pytest.param(DROPPING_LSTM, "hessian", (0.6, 0.4), marks=pytest.mark.long),
        pytest.param(DROPPING_LSTM, "gauss_newton", None, marks=pytest.mark.long),
        pytest.param(TRANSFORMER, "hessian", (0.6, 0.4), marks=pytest.mark.long),
        (TRANSFORMER, "gauss_newton", None),
        pytest.param(TIED_GRU, "hessian", (0.6, 0.4), marks=pytest.mark.long),
        pytest.param(TIED_GRU, "gauss_newton", None, marks=pytest.mark.long),
    ],
)
def test_penalty_and_gradient_are_those_of_nested_derivatives(
    text, model, curvature, p, in_float64
):
    with jax.enable_x64(False):
        params = params_of(model)
        # As after some steps: no state is 0.
        states = jax.tree.map(lambda state: state + 0.3, zero_states(model, params, 2))
    params, states = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), (params, states))
    batch = windows(text.train.tokens[:11], 5)
    network = make_network(model, states, jax.random.key(0))
    layers = LanguageModelling(text, model, 2, 5).layers
    key = jax.random.key(3)  # draws some layers, not all

    def loss_of(params):
        return cross_entropy(network(params, batch.inputs)[0], batch.labels)

    def gauss_newton(params):
        (probe,) = oracle.probes(key, params, p, layers=layers)
        logits, moved = jax.jvp(
            lambda params: network(params, batch.inputs)[0], (params,), (probe,)
        )
        gradient = jax.grad(partial(cross_entropy, labels=batch.labels))
        form = jnp.vdot(moved, jax.jvp(gradient, (logits,), (moved,))[1])
        return loss_of(params) + 0.1 * form

    penalised = seht.regularize(
        make_loss_fn(network, (), batch),
        key,
        p,
        0.1,
        num_branches=2,
        has_aux=True,
        layers=layers,
        curvature=curvature,
    )
    expected = (
        gauss_newton
        if curvature == "gauss_newton"
        else oracle.composed(loss_of, key, p, 0.1, layers=layers)
    )
    (value, _), gradient = jax.jit(jax.value_and_grad(penalised, has_aux=True))(params)
    oracle.assert_close((value, gradient), jax.jit(jax.value_and_grad(expected))(params))
    assert abs(float(value - jax.jit(loss_of)(params))) > 1e-6


def test_seht_d_draws_embedding_each_recurrent_layer_and_decoder(text):
    experiment = build_experiment(config("lstm", SEHT_D), text)
    state = experiment.init(0)
    names = seht.layer_names(state.params, experiment.task.layers)
    assert set(names) == {"embedding", "lstm1", "lstm2", "head"}
    _, metrics = experiment.train_step(state, experiment.task.train_data, None)
    assert float(metrics["layers_drawn"]) == 4  # at p = 1


def test_seht_d_draws_the_layers_of_a_transformers_blocks(text):
    experiment = build_experiment(config("transformer"), text)
    names = seht.layer_names(experiment.init(0).params, experiment.task.layers)
    assert {"block1/attention/query_key_value", "block2/mlp_out", "embedding"} <= set(names)


@pytest.mark.parametrize("method", [Cutout(), Mixup(), DropBlock(), Jacobian(), SankarMiddle()])
def test_methods_for_images_are_refused(text, method):
    with pytest.raises(SettingError, match=rf"{method.name} can not be used .*: it \w+"):
        build_experiment(config("lstm", method), text)


def test_dropout_is_refused_where_the_network_has_none(text):
    with pytest.raises(SettingError, match=r"dropout .* transformer, which has no dropout_rate"):
        build_experiment(config("transformer", Dropout()), text)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train": 10}, "10 training tokens are too few for a step: --batch-size 2 .* --length 5"),
        ({"test": 19}, "the test text must have at least 20 tokens, or none, not 19"),
    ],
)
def test_a_text_that_is_too_short_is_named(text, changed, message):
    ((name, size),) = changed.items()
    short = text._replace(**{name: Tokens(getattr(text, name).tokens[:size])})
    with pytest.raises(SettingError, match=message):
        build_experiment(config(), short)


@MODELS
@pytest.mark.parametrize("size", [20, 47 * 3, 10 * 16 + 9])
def test_evaluation_weighs_every_token_alike(model, size):
    tokens = jax.random.randint(jax.random.key(2), (size,), 0, VOCABULARY, jnp.int32)
    params = params_of(model)
    found = TextEvaluator(model, 5).evaluate(params, None, Tokens(tokens))
    strands = np.asarray(tokens)[: size // 10 * 10].reshape(10, -1)
    losses = []
    carries = None
    for start in range(0, strands.shape[1] - 1, 5):
        inputs = strands[:, start : min(start + 5, strands.shape[1] - 1)]
        labels = strands[:, start + 1 : start + 6]
        if isinstance(model, LanguageModel):
            logits, carries = model.apply({"params": params}, inputs, carries, train=False)
        else:
            logits = model.apply({"params": params}, inputs, train=False)
        each = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(labels))
        losses.append(np.asarray(each).ravel())
    losses = np.concatenate(losses)
    assert len(losses) == 10 * (size // 10 - 1)
    assert found.loss == pytest.approx(losses.mean(), rel=1e-5)
    assert found.perplexity == pytest.approx(np.exp(losses.mean()), rel=1e-5)


def test_an_empty_text_has_no_perplexity():
    empty = Tokens(jnp.zeros(0, jnp.int32))
    assert np.isnan(TextEvaluator(LSTM, 5).evaluate(params_of(LSTM), None, empty)).all()


@pytest.mark.parametrize(
    "curvature", [pytest.param("hessian", marks=pytest.mark.long), "gauss_newton"]
)
def test_trace_is_that_of_the_windows_loss(text, curvature):
    model = LanguageModel(VOCABULARY, 3, 3, num_layers=1)
    params = params_of(model)
    part = Tokens(text.train.tokens[:16])
    evaluator = TextEvaluator(model, 5)
    mean, error = evaluator.trace(params, None, part, jax.random.key(0), 64, curvature)
    network = make_network(model, zero_states(model, params, 3), jax.random.key(0))
    loss_fn = make_loss_fn(network, (), windows(part.tokens, 5))
    trace = seht.exact_trace(loss_fn, has_aux=True, curvature=curvature)
    assert abs(mean - float(jax.jit(trace)(params))) < 4 * error


@pytest.mark.parametrize("network", ["lstm", "transformer"])
def test_the_loss_that_is_analysed_is_that_of_windows_from_state_0(text, network):
    experiment = build_experiment(config(network), text)
    task, params = experiment.task, experiment.init(0).params
    examples = task.examples(3)
    np.testing.assert_array_equal(examples.inputs.ravel(), text.train.tokens[:15])
    states = zero_states(task.model, params, 3)
    loss_fn = make_loss_fn(make_network(task.model, states, jax.random.key(0)), (), examples)
    loss = jax.jit(task.evaluation_loss)(params, examples, None)
    assert float(loss) == pytest.approx(float(jax.jit(loss_fn)(params)[0]), rel=1e-6)


def test_networks_are_measured_without_dropout(text):
    params = build_experiment(config("lstm"), text).init(0).params
    found = [
        build_experiment(config("lstm", *method), text)
        .evaluator.evaluate(params, None, text.validation)
        .loss
        for method in ((), (Dropout(0.9),))
    ]
    assert found[0] == found[1]
