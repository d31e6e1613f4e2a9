"""Small networks whose dense Hessians are cheap: `loss_fn(params, batch)` returns `(loss, aux)`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax


class Case(NamedTuple):
    loss_fn: Callable[..., Any]
    params: Any
    batch: Any


def _dense(key, inputs, outputs):
    return {
        "kernel": jax.random.normal(key, (inputs, outputs)) / inputs**0.5,
        "bias": 0.1 * jax.random.normal(jax.random.fold_in(key, 1), (outputs,)),
    }


def _classification_batch(key, *shape, classes=3):
    return {
        "image": jax.random.normal(key, shape),
        "label": jax.random.randint(jax.random.fold_in(key, 1), shape[:1], 0, classes),
    }


def cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def mlp(activation):
    key = jax.random.key(1)
    params = {"first": _dense(key, 4, 5), "second": _dense(jax.random.fold_in(key, 2), 5, 3)}

    def loss_fn(params, batch):
        hidden = activation(batch["image"] @ params["first"]["kernel"] + params["first"]["bias"])
        logits = hidden @ params["second"]["kernel"] + params["second"]["bias"]
        return cross_entropy(logits, batch["label"]), {"mean_logit": logits.mean()}

    return Case(loss_fn, params, _classification_batch(key, 6, 4))


class ConvNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        for features in (2, 3):
            x = nn.Conv(features, (3, 3), param_dtype=x.dtype)(x)
            x = nn.BatchNorm(
                use_running_average=False,
                use_fast_variance=False,
                param_dtype=x.dtype,
                force_float32_reductions=False,
            )(x)
            x = nn.tanh(x)
        return nn.Dense(3, param_dtype=x.dtype)(x.mean((1, 2)))


def conv_net():
    """Batch normalisation in training mode; the new statistics are the aux."""
    key = jax.random.key(2)
    batch = _classification_batch(key, 4, 5, 5, 1)
    variables = ConvNet().init(key, batch["image"])

    def loss_fn(params, batch):
        logits, state = ConvNet().apply(
            {"params": params, "batch_stats": variables["batch_stats"]},
            batch["image"],
            mutable=["batch_stats"],
        )
        return cross_entropy(logits, batch["label"]), state["batch_stats"]

    return Case(loss_fn, variables["params"], batch)


def recurrent(params, inputs):
    """Run an LSTM by `lax.scan` over time; return its last state and the logits."""

    def cell(carry, x):
        h, c = carry
        joint = jnp.concatenate([x, h], axis=-1)
        gates = joint @ params["cell"]["kernel"] + params["cell"]["bias"]
        i, f, g, o = jnp.split(gates, 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    zeros = jnp.zeros((inputs.shape[1], params["decoder"]["kernel"].shape[0]))
    last, outputs = jax.lax.scan(cell, (zeros, zeros), inputs)
    return last, outputs @ params["decoder"]["kernel"] + params["decoder"]["bias"]


def lstm():
    """A small LSTM with random params."""
    key = jax.random.key(3)
    hidden, time = 3, 4
    params = {
        "cell": _dense(key, 2 + hidden, 4 * hidden),
        "decoder": _dense(jax.random.fold_in(key, 2), hidden, 3),
    }

    def loss_fn(params, batch):
        last, logits = recurrent(params, batch["image"])
        return cross_entropy(logits, batch["label"]), {"state": last}

    batch = {
        "image": jax.random.normal(key, (time, 2, 2)),
        "label": jax.random.randint(key, (time, 2), 0, 3),
    }
    return Case(loss_fn, params, batch)


def dropout_mlp():
    """Dropout whose key is part of the batch."""
    loss_of_mlp, params, batch = mlp(jnp.tanh)

    def loss_fn(params, batch):
        kept = jax.random.bernoulli(batch["dropout_key"], 0.5, batch["image"].shape)
        return loss_of_mlp(params, {**batch, "image": batch["image"] * kept.astype(float) * 2})

    return Case(loss_fn, params, {**batch, "dropout_key": jax.random.key(5)})


CASES = {
    "tanh_mlp": lambda: mlp(jnp.tanh),
    "relu_mlp": lambda: mlp(jax.nn.relu),
    "conv_net": conv_net,
    "lstm": lstm,
    "dropout_mlp": dropout_mlp,
}
