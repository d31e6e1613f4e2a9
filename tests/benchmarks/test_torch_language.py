"""Our recurrent language model against PyTorch's, with the same weights; skipped without it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.data.corpus import Tokens
from experiments.models.rnn_lm import LanguageModel
from experiments.tasks.language import TextEvaluator, cut_into_strands

torch = pytest.importorskip("torch", reason="needs the extra `bench`")
from benchmarks import torch_language  # noqa: E402  # imports PyTorch

BATCH, TIME, VOCABULARY = 3, 7, 13


@pytest.fixture(autouse=True)
def enable_x64():
    """Compute in float32, as in a training."""
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture(params=["lstm", "gru"])
def models(request):
    """Our model, its params, and PyTorch's model with the same weights."""
    model = LanguageModel(
        VOCABULARY, 6, 5, num_layers=2, cell=request.param, initialisation="uniform"
    )
    tokens = jnp.zeros((BATCH, TIME), jnp.int32)
    params = jax.jit(partial(model.init, train=False))(jax.random.key(0), tokens)["params"]
    # So large that every gate, and every bias, has an influence.
    params = jax.tree.map(lambda weights: 10 * weights, params)
    network = torch_language.TorchLanguageModel(model, dropout_rate=0.0)
    network.load_state_dict(torch_language.to_torch(network, params))
    return model, params, network


def tokens_of(seed):
    tokens = np.random.default_rng(seed).integers(0, VOCABULARY, (BATCH, TIME + 1))
    return tokens[:, :-1], tokens[:, 1:]


def test_outputs_and_carried_states_agree(models):
    model, params, network = models
    states, theirs = None, None
    apply = jax.jit(partial(model.apply, train=False))
    for seed in (0, 1):
        inputs, _ = tokens_of(seed)
        logits, states = apply({"params": params}, jnp.asarray(inputs), states)
        expected, theirs = network(torch_language.as_tokens(inputs), theirs)
        np.testing.assert_allclose(logits, expected.detach().numpy(), atol=1e-4)
        for ours, their in zip(states, theirs, strict=True):
            # Flax's LSTM carries (c, h), PyTorch's (h, c); both GRUs carry h.
            parts = reversed(their) if isinstance(their, tuple) else [their]
            for state, part in zip(jax.tree.leaves(ours), parts, strict=True):
                np.testing.assert_allclose(state, part[0].numpy(), atol=1e-4)


def test_gradients_agree(models):
    model, params, network = models
    inputs, labels = tokens_of(0)

    @jax.jit
    @jax.value_and_grad
    def loss_and_gradient(params):
        logits, _ = model.apply({"params": params}, jnp.asarray(inputs), train=True)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(labels))
        return losses.mean()

    loss, gradient = loss_and_gradient(params)
    expected = torch_language.mean_loss(
        network(torch_language.as_tokens(inputs))[0], torch_language.as_tokens(labels)
    )
    expected.backward()
    assert float(loss) == pytest.approx(float(expected.detach()), abs=1e-5)
    gradients = {name: param.grad for name, param in network.named_parameters()}
    for redundant in torch_language.redundant_entries(network, gradients):
        redundant.zero_()
    # Of a GRU's hidden biases the candidate's counts; of an LSTM's one vector none does.
    wholly_redundant = {f"layers.{i}.bias_ih_l0" for i in (0, 1) if network.cell == "lstm"}
    found = torch_language.to_torch(network, gradient)
    assert found.keys() == gradients.keys()
    for name, value in found.items():
        assert float(gradients[name].abs().max()) > 1e-3 or name in wholly_redundant
        np.testing.assert_allclose(value.numpy(), gradients[name].numpy(), atol=1e-5, rtol=1e-4)


def test_evaluation_of_a_text_agrees(models):
    model, params, network = models
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, 10 * 12 + 3).astype(np.int32)
    found = TextEvaluator(model, 5).evaluate(params, None, Tokens(jnp.asarray(tokens)))
    strands = torch_language.as_tokens(cut_into_strands(jnp.asarray(tokens), 10))
    assert found.loss == pytest.approx(torch_language.evaluate(network, strands, 5), rel=1e-5)


def test_redundant_biases_are_drawn_as_zero_and_stay_it(models):
    _, _, network = models
    torch_language.draw_uniformly(network)
    inputs, labels = map(torch_language.as_tokens, tokens_of(0))
    before = network.head.bias.detach().clone()
    torch_language.train_step(network, inputs, labels, None, learning_rate=20.0, clip_norm=0.25)
    assert not torch.equal(before, network.head.bias)
    found = list(torch_language.redundant_entries(network, dict(network.named_parameters())))
    assert len(found) == 2 * {"lstm": 4, "gru": 2}[network.cell]
    assert not any(part.any() for part in found)
