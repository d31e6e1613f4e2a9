"""PyTorch's draws, and its penalised gradient against ours; skipped where PyTorch is not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import seht_jax as seht
from benchmarks.models import QUICK_SIZES, SIZES, build_benchmark_model

torch = pytest.importorskip("torch", reason="needs the extra `bench`")
from benchmarks import torch_peer  # noqa: E402  # imports PyTorch


@pytest.mark.parametrize(("num_layers", "p"), [(20, 0.05), (3, 0.3)])
def test_every_stratum_has_its_first_drawn_layer(num_layers, p):
    found = torch_peer.strata(num_layers, p)
    assert sum(stratum.probability for stratum in found) == pytest.approx(1)
    assert found[0].probability == pytest.approx((1 - p) ** num_layers)
    last = -1
    for stratum in found[1:]:
        firsts = [torch_peer.draw_layers(seed, num_layers, p).index(True) for seed in stratum.keys]
        assert min(firsts) > last
        last = max(firsts)
    assert not any(map(any, (torch_peer.draw_layers(s, num_layers, p) for s in found[0].keys)))


@pytest.mark.parametrize("name", SIZES)
def test_its_layers_are_as_many_as_ours(name):
    model = build_benchmark_model(name, QUICK_SIZES[name])
    network, _ = torch_peer._BUILDERS[name](QUICK_SIZES[name])
    assert len(torch_peer.layers_of(network)) == len(seht.layer_names(model.params, model.layers))


def test_its_penalty_is_differentiated():
    """On w -> sum w^4 the Hessian is diagonal, so that the signs do not matter."""
    w = torch.tensor([1.0, -2.0, 0.5], requires_grad=True)
    gradients = torch_peer._penalised_gradients((w**4).sum(), [w], [w], 0.5, 1, 0.1)
    penalised = seht.regularize(lambda w: jnp.sum(w**4), jax.random.key(0), None, 0.1)
    expected = jax.grad(penalised)(jnp.array(w.detach().numpy()))
    np.testing.assert_allclose(gradients[0].detach().numpy(), expected, rtol=1e-6)
