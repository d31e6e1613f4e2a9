"""The params of every framework: layers by module, value and gradient those of the formula."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import equinox as eqx
import flax
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from flax import nnx
from oracle import composed, without_aux

import seht_jax as seht

KEY = jax.random.key(7, impl="rbg")  # compiles faster than the default
LAM = 0.3


class Model(NamedTuple):
    """A model as its framework's users write it: `loss_fn(params, batch)` returns a pair."""

    loss_fn: Callable[..., Any]
    params: Any
    batch: Any
    layers: tuple[str, ...]


def batch():
    key = jax.random.key(1)
    return {
        "image": jax.random.normal(key, (6, 4)),
        "label": jax.random.randint(key, (6,), 0, 3),
    }


def perceptron(layers, image):
    (first, first_bias), (second, second_bias) = layers
    return jnp.tanh(image @ first + first_bias) @ second + second_bias


def arrays():
    keys = jax.random.split(jax.random.key(2), 4)
    shapes = ((4, 5), (5,), (5, 3), (3,))
    first, first_bias, second, second_bias = map(jax.random.normal, keys, shapes)
    return (first, first_bias), (second, second_bias)


def hand_written(params, layers_of, names):
    def loss_fn(params, batch):
        logits = perceptron(layers_of(params), batch["image"])
        return networks.cross_entropy(logits, batch["label"]), logits

    return Model(loss_fn, params, batch(), names)


def dicts():
    names = ("first", "second")
    params = {
        name: dict(zip(("kernel", "bias"), layer, strict=True))
        for name, layer in zip(names, arrays(), strict=True)
    }
    return hand_written(
        params, lambda params: [(params[k]["kernel"], params[k]["bias"]) for k in names], names
    )


def numpy_dicts():
    model = dicts()
    return model._replace(params=jax.tree.map(np.asarray, model.params))


def tuples():
    return hand_written(arrays(), lambda params: params, ("0", "1"))


def flat_list():
    leaves = jax.tree.leaves(arrays())
    return hand_written(leaves, lambda params: (params[:2], params[2:]), ("0", "1", "2", "3"))


def of_classes(layer_class, net_class):
    first, second = (layer_class(kernel=kernel, bias=bias) for kernel, bias in arrays())
    return hand_written(
        net_class(first=first, second=second, name="perceptron"),
        lambda params: [(layer.kernel, layer.bias) for layer in (params.first, params.second)],
        ("first", "second"),
    )


class LayerTuple(NamedTuple):
    kernel: Any
    bias: Any


class NetTuple(NamedTuple):
    first: LayerTuple
    second: LayerTuple
    name: None = None


def named_tuples():
    return of_classes(LayerTuple, lambda first, second, name: NetTuple(first, second))


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    kernel: Any
    bias: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Net:
    first: Layer
    second: Layer
    name: str = dataclasses.field(metadata={"static": True}, default="")


def registered_dataclasses():
    return of_classes(Layer, Net)


@chex.dataclass
class ChexLayer:
    kernel: Any
    bias: Any


def chex_dataclasses():
    first, second = (ChexLayer(kernel=kernel, bias=bias) for kernel, bias in arrays())
    return hand_written(
        {"first": first, "second": second},
        lambda params: [
            (layer.kernel, layer.bias) for layer in (params["first"], params["second"])
        ],
        ("first", "second"),
    )


@flax.struct.dataclass
class StructLayer:
    kernel: Any
    bias: Any


@flax.struct.dataclass
class StructNet:
    first: StructLayer
    second: StructLayer
    name: str = flax.struct.field(pytree_node=False)


def flax_structs():
    return of_classes(StructLayer, StructNet)


class LinenNet(nn.Module):
    """Batch normalisation in training mode, dropout, and partitioned (boxed) kernels."""

    kernel_init: Callable[..., Any] = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(5, param_dtype=x.dtype, kernel_init=self.kernel_init)(x)
        x = nn.BatchNorm(
            use_running_average=False, param_dtype=x.dtype, force_float32_reductions=False
        )(x)
        x = nn.Dropout(0.5, deterministic=False)(nn.tanh(x))
        return nn.Dense(3, param_dtype=x.dtype, kernel_init=self.kernel_init)(x)


def linen(**options):
    net = LinenNet(**options)
    variables = net.init(
        {"params": jax.random.key(2), "dropout": jax.random.key(3)}, batch()["image"]
    )

    def loss_fn(params, batch):
        logits, updates = net.apply(
            {"params": params, "batch_stats": variables["batch_stats"]},
            batch["image"],
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(4)},
        )
        return networks.cross_entropy(logits, batch["label"]), updates["batch_stats"]

    layers = ("BatchNorm_0", "Dense_0", "Dense_1")
    return Model(loss_fn, variables["params"], batch(), layers)


def linen_partitioned():
    return linen(kernel_init=nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model")))


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(4, 5, param_dtype=float, rngs=rngs)
        self.norm = nnx.BatchNorm(5, param_dtype=float, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.second = nnx.Linear(5, 3, param_dtype=float, rngs=rngs)

    @jax.numpy_dtype_promotion("standard")  # the normalisation promotes to float32
    def __call__(self, x):
        return self.second(self.dropout(jnp.tanh(self.norm(self.first(x)))))


def nnx_net():
    """The aux is all of the other state: statistics, and the dropout's key and count."""
    graphdef, params, rest = nnx.split(NnxNet(nnx.Rngs(2)), nnx.Param, ...)
    rest = jax.tree.map(lambda x: x.astype(float) if x.dtype == jnp.float32 else x, rest)

    def loss_fn(params, batch):
        net = nnx.merge(graphdef, params, rest, copy=True)
        loss = networks.cross_entropy(net(batch["image"]), batch["label"])
        return loss, nnx.split(net, nnx.Param, ...)[2]

    return Model(loss_fn, params, batch(), ("first", "norm", "second"))


def nnx_pure():
    model = nnx_net()

    def loss_fn(pure, batch):
        params = jax.tree.unflatten(jax.tree.structure(model.params), jax.tree.leaves(pure))
        return model.loss_fn(params, batch)

    return model._replace(loss_fn=loss_fn, params=nnx.to_pure_dict(model.params))


class EquinoxNet(eqx.Module):
    first: eqx.nn.Linear
    norm: eqx.nn.LayerNorm
    dropout: eqx.nn.Dropout
    second: eqx.nn.Linear
    activation: Callable[..., Any]
    steps: jax.Array
    name: str = eqx.field(static=True)

    def __call__(self, x, key):
        hidden = self.activation(self.norm(self.first(x)))
        return self.second(self.dropout(hidden, key=key))


def equinox():
    keys = jax.random.split(jax.random.key(2))
    net = EquinoxNet(
        eqx.nn.Linear(4, 5, key=keys[0]),
        eqx.nn.LayerNorm(5),
        eqx.nn.Dropout(0.5),
        eqx.nn.Linear(5, 3, key=keys[1]),
        jnp.tanh,
        jnp.arange(3),
        "net",
    )
    params, static = eqx.partition(net, eqx.is_inexact_array)

    def loss_fn(params, batch):
        net = eqx.combine(params, static)
        keys = jax.random.split(jax.random.key(3), batch["label"].size)
        logits = jax.vmap(net)(batch["image"], keys)
        return networks.cross_entropy(logits, batch["label"]), logits

    return Model(loss_fn, params, batch(), ("first", "norm", "second"))


def haiku():
    # Its moving average mixes dtypes.
    @hk.transform_with_state
    @jax.numpy_dtype_promotion("standard")
    def net(x):
        x = hk.Linear(5, name="first")(x)
        x = hk.BatchNorm(True, True, 0.9, name="norm")(x, is_training=True)
        x = hk.dropout(hk.next_rng_key(), 0.5, jnp.tanh(x))
        return hk.Linear(3, name="second")(x)

    params, state = net.init(jax.random.key(2), batch()["image"])

    def loss_fn(params, batch):
        logits, new_state = net.apply(params, state, jax.random.key(3), batch["image"])
        return networks.cross_entropy(logits, batch["label"]), new_state

    return Model(loss_fn, params, batch(), ("first", "norm", "second"))


MODELS = {
    "dicts": dicts,
    "numpy_dicts": numpy_dicts,
    "tuples": tuples,
    "flat_list": flat_list,
    "named_tuples": named_tuples,
    "registered_dataclasses": registered_dataclasses,
    "chex_dataclasses": chex_dataclasses,
    "flax_structs": flax_structs,
    "linen": linen,
    "linen_partitioned": linen_partitioned,
    "nnx": nnx_net,
    "nnx_pure": nnx_pure,
    "equinox": equinox,
    "haiku": haiku,
}


# Beside each of these is a case of its kind: tuples, dataclasses, an NNX model.
_LONG = {"named_tuples", "flat_list", "chex_dataclasses", "flax_structs", "nnx_pure"}


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]()


def test_a_layer_is_a_module(model):
    assert sorted(seht.layer_names(model.params)) == sorted(model.layers)


@pytest.mark.parametrize(
    "model",
    [pytest.param(name, marks=[pytest.mark.long] * (name in _LONG)) for name in MODELS],
    indirect=True,
)
def test_value_gradient_and_aux_are_those_of_the_formula(model):
    p = (0.6, 0.4)
    penalised = seht.regularize(model.loss_fn, KEY, p, LAM, has_aux=True)
    (loss, aux), gradients = jax.jit(jax.value_and_grad(penalised, has_aux=True))(
        model.params, model.batch
    )
    expected = jax.value_and_grad(composed(without_aux(model.loss_fn), KEY, p, LAM))
    chex.assert_trees_all_close(
        (loss, gradients), jax.jit(expected)(model.params, model.batch), rtol=1e-8, atol=1e-10
    )
    chex.assert_trees_all_equal_shapes_and_dtypes(gradients, model.params)
    expected_aux = jax.jit(model.loss_fn)(model.params, model.batch)[1]
    chex.assert_trees_all_equal_structs(aux, expected_aux)
    for leaves in zip(*map(jax.tree.leaves, (aux, expected_aux)), strict=True):
        if jax.dtypes.issubdtype(leaves[1].dtype, jax.dtypes.prng_key):
            leaves = tuple(map(jax.random.key_data, leaves))  # noqa: PLW2901
        np.testing.assert_allclose(*leaves, rtol=1e-10)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Attention:
    query: Any
    key: Any
    value: Any


def test_a_field_called_value_is_no_box():
    layer = Attention(jnp.ones(2), jnp.ones(2), jnp.ones(2))
    assert seht.layer_names({"block": {"attention": layer}}) == ("block/attention",)


def test_an_nnx_model_that_updates_its_statistics_is_refused():
    @jax.numpy_dtype_promotion("standard")
    def loss_fn(norm):
        return jnp.sum(norm(batch()["image"].astype(jnp.float32)) ** 2)

    norm = nnx.BatchNorm(4, rngs=nnx.Rngs(2))
    with pytest.raises(TypeError, match=r"params\.mean.*nnx\.split"):
        nnx.value_and_grad(seht.regularize(loss_fn, jax.random.key(0), None, 0.1))(norm)
