"""The networks other than the residual ones of resnet.py."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.models.mlp import MLP
from experiments.models.rnn_lm import LanguageModel
from experiments.models.transformer import Transformer
from experiments.models.wide_resnet import wide_resnet

IMAGES = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
TOKENS = jax.ShapeDtypeStruct((2, 5), jnp.int32)
language_model = partial(LanguageModel, vocabulary_size=11, embedding_size=6, hidden_size=4)
transformer = partial(
    Transformer, vocabulary_size=11, max_length=7, num_blocks=2, num_heads=2, model_size=4
)


def outputs_and_params(model, inputs):
    outputs, variables = jax.eval_shape(
        lambda key, inputs: model.init_with_output(key, inputs, train=False),
        jax.random.key(0),
        inputs,
    )
    return outputs, variables["params"]


def number_of_parameters(model, inputs):
    _, params = outputs_and_params(model, inputs)
    return sum(leaf.size for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(
    ("depth", "widen_factor", "num_classes", "expected"),
    [(16, 4, 10, 2_748_890), (28, 10, 10, 36_479_194), (28, 10, 100, 36_536_884)],
)
def test_parameters_of_wide_resnets(depth, widen_factor, num_classes, expected):
    assert number_of_parameters(wide_resnet(depth, widen_factor, num_classes), IMAGES) == expected


def test_wide_resnet_has_a_logit_per_class():
    logits, _ = outputs_and_params(wide_resnet(10, 1, 7), IMAGES)
    assert logits.shape == (2, 7)


@pytest.mark.parametrize("depth", [4, 17, -2])
def test_a_depth_that_no_wide_resnet_has_is_named(depth):
    with pytest.raises(ValueError, match=f"6n \\+ 4 .*, not {depth}"):
        wide_resnet(depth, 4, 10)


def test_groups_of_a_wide_resnet_halve_the_image_and_double_the_channels():
    _, state = jax.eval_shape(
        lambda key, images: wide_resnet(10, 3, 10).init_with_output(
            key, images, train=False, capture_intermediates=True
        ),
        jax.random.key(0),
        IMAGES,
    )
    blocks = state["intermediates"]
    found = [blocks[f"group{i}_block1"]["__call__"][0].shape[1:] for i in (1, 2, 3)]
    assert found == [(32, 32, 48), (16, 16, 96), (8, 8, 192)]


def test_initial_weights_of_a_wide_resnet():
    init = jax.jit(partial(wide_resnet(10, 4, 10).init, train=False))
    params = init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
    block = params["group1_block1"]
    for layer in (params["stem_conv"], block["conv1"], block["shortcut_conv"]):
        kernel = np.asarray(layer["kernel"])
        height, width, inputs, outputs = kernel.shape
        assert inputs < outputs
        expected = (2 / (height * width * outputs)) ** 0.5
        assert kernel.std() == pytest.approx(expected, rel=4 / (2 * kernel.size) ** 0.5)
    # Neither uniform nor truncated at two standard deviations.
    kernel = np.asarray(block["conv1"]["kernel"])
    assert np.abs(kernel).max() > 3 * kernel.std()
    head = params["head"]
    np.testing.assert_array_equal(head["bias"], 0)
    bound = head["kernel"].shape[0] ** -0.5
    assert 0.99 * bound < np.abs(head["kernel"]).max() <= bound


def test_wide_resnet_drops_out_in_training():
    model = wide_resnet(10, 1, 10, dropout_rate=0.5)
    images = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    variables = jax.jit(partial(model.init, train=False))(jax.random.key(0), images)

    @jax.jit
    def logits(key):
        rngs = {"dropout": key}
        return model.apply(variables, images, train=True, rngs=rngs, mutable=["batch_stats"])[0]

    first, second = logits(jax.random.key(0)), logits(jax.random.key(1))
    assert not np.allclose(first, second)


def test_parameters_of_an_mlp():
    inputs = jax.ShapeDtypeStruct((2, 28, 28, 1), jnp.float32)
    logits, _ = outputs_and_params(MLP((1024, 1024), 10), inputs)
    assert logits.shape == (2, 10)
    expected = 785 * 1024 + 1025 * 1024 + 1025 * 10
    assert number_of_parameters(MLP((1024, 1024), 10), inputs) == expected


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        # Embedding; per layer and gate two kernels and the recurrent bias; head.
        ("lstm", 11 * 6 + 4 * (6 * 4 + 4 * 4 + 4) + 4 * (4 * 4 + 4 * 4 + 4) + 5 * 11),
        # The GRU's candidate has a bias more.
        ("gru", 11 * 6 + 3 * (6 * 4 + 4 * 4 + 4) + 4 + 3 * (4 * 4 + 4 * 4 + 4) + 4 + 5 * 11),
    ],
)
def test_parameters_of_recurrent_language_models(cell, expected):
    assert number_of_parameters(language_model(cell=cell), TOKENS) == expected


@pytest.mark.parametrize(
    ("cell", "tied", "expected"),
    [
        # PyTorch's LSTM and GRU have 4,096 and 2,048 biases more, which are redundant; and its
        # example keeps the bias of a tied decoder, 33,278 numbers.
        ("lstm", False, 38_308_350),
        ("gru", False, 37_259_774),
        ("lstm", True, 21_236_736),
        ("gru", True, 20_188_160),
    ],
)
def test_parameters_of_the_papers_language_models(cell, tied, expected):
    size = {"vocabulary_size": 33_278, "embedding_size": 512, "hidden_size": 512}
    model = language_model(**size, cell=cell, tied_embeddings=tied)
    assert number_of_parameters(model, TOKENS) == expected


@pytest.mark.parametrize(
    ("initialisation", "recurrent_bound", "head_bias_bound"),
    [("uniform", 0.1, 0.1), ("pytorch", 16**-0.5, 0.0)],
)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_initial_weights_of_a_language_model(
    cell, initialisation, recurrent_bound, head_bias_bound
):
    model = LanguageModel(101, 16, 16, cell=cell, initialisation=initialisation)
    init = jax.jit(partial(model.init, train=False))
    params = init(jax.random.key(0), jnp.zeros(TOKENS.shape, jnp.int32))["params"]
    bounds = {"embedding": 0.1, "head": 0.1, f"{cell}1": recurrent_bound}
    for name, bound in bounds.items():
        for path, leaf in jax.tree.leaves_with_path(params[name]):
            is_bias = path[-1].key == "bias"
            expected = head_bias_bound if name == "head" and is_bias else bound
            largest = np.abs(leaf).max()
            assert (0.8 if is_bias else 0.95) * expected <= largest <= expected
            assert abs(np.mean(leaf)) <= 0.35 * expected  # both signs


def test_tied_embeddings_leave_the_head_out():
    model = language_model(embedding_size=4, tied_embeddings=True)
    (logits, _), params = outputs_and_params(model, TOKENS)
    assert logits.shape == (2, 5, 11)
    assert params.keys() == {"embedding", "lstm1", "lstm2"}


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        (language_model(cell="rnn"), {}, "one of lstm, gru, not 'rnn'"),
        (language_model(tied_embeddings=True), {}, "which are 4 and 6"),
        (language_model(), {"carries": [None]}, "each of 2 layers, not 1"),
        (transformer(max_length=4), {}, "max_length=4, not 5"),
        (transformer(num_heads=3), {}, "model_size=4, not 3"),
    ],
)
def test_what_does_not_fit_is_named(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        model.init(jax.random.key(0), jnp.zeros(TOKENS.shape, jnp.int32), train=False, **arguments)


def test_parameters_of_a_transformer():
    block = (4 * 12 + 12) + (4 * 4 + 4) + (4 * 16 + 16) + (16 * 4 + 4) + 2 * 8
    expected = 11 * 4 + 7 * 4 + 2 * block + 8 + 4 * 11
    assert number_of_parameters(transformer(), TOKENS) == expected


@pytest.mark.parametrize(
    "model",
    [language_model(cell="lstm"), language_model(cell="gru"), transformer()],
    ids=["lstm", "gru", "transformer"],
)
def test_logits_depend_on_the_tokens_up_to_them(model):
    tokens = jax.random.randint(jax.random.key(1), TOKENS.shape, 0, 11)
    variables = jax.jit(partial(model.init, train=False))(jax.random.key(0), tokens)

    @jax.jit
    def logits(tokens):
        outputs = model.apply(variables, tokens, train=False)
        return outputs[0] if isinstance(outputs, tuple) else outputs

    before, after = logits(tokens), logits(tokens.at[:, 3].add(1) % 11)
    assert before.shape == (2, 5, 11)
    assert before.dtype == jnp.float32
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    for position in (3, 4):
        assert not np.allclose(before[:, position], after[:, position])


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_language_model_goes_on_from_its_carries(cell):
    model = language_model(cell=cell)
    tokens = jax.random.randint(jax.random.key(1), (2, 6), 0, 11)
    variables = jax.jit(partial(model.init, train=False))(jax.random.key(0), tokens)
    apply = jax.jit(partial(model.apply, train=False))
    whole, _ = apply(variables, tokens)
    first, carries = apply(variables, tokens[:, :3])
    second, _ = apply(variables, tokens[:, 3:], carries)
    np.testing.assert_allclose(jnp.concatenate([first, second], axis=1), whole, atol=1e-5)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("tied", [False, True])
def test_dropout_acts_on_embeddings_between_layers_and_on_outputs(cell, tied):
    model = LanguageModel(11, 64, 64, 2, cell, dropout_rate=0.25, tied_embeddings=tied)
    tokens = jax.random.randint(jax.random.key(0), (4, 16), 0, 11)
    params = jax.jit(partial(model.init, train=False))(jax.random.key(1), tokens)["params"]

    @jax.jit
    def apply(key):
        return model.apply(
            {"params": params},
            tokens,
            train=True,
            rngs={"dropout": key},
            capture_intermediates=lambda module, _: isinstance(module, nn.Dropout),
        )

    (logits, _), captured = apply(jax.random.key(2))
    dropped = [outputs["__call__"][0] for outputs in captured["intermediates"].values()]
    assert [values.shape for values in dropped] == [(4, 16, 64)] * 3
    for values in dropped:
        assert 0.2 < float(jnp.mean(values == 0)) < 0.3
    embedded = params["embedding"]["embedding"][tokens]
    first = dropped[0]
    np.testing.assert_allclose(first[first != 0], embedded[first != 0] / 0.75, rtol=1e-6)
    np.testing.assert_array_equal(apply(jax.random.key(2))[0][0], logits)
    assert not np.allclose(apply(jax.random.key(3))[0][0], logits)


@pytest.mark.parametrize(
    "network", [language_model(dtype=jnp.bfloat16), transformer(dtype=jnp.bfloat16)]
)
def test_logits_of_a_language_model_are_float32_whatever_it_computes_in(network):
    with jax.numpy_dtype_promotion("standard"):
        outputs = jax.eval_shape(
            lambda tokens: network.init_with_output(jax.random.key(0), tokens, train=False)[0],
            TOKENS,
        )
    assert jax.tree.leaves(outputs)[0].dtype == jnp.float32
