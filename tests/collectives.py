"""Losses that communicate, with keys and flags that differ by device: run by `test_devices.py`.

A process of its own, because devices that take different branches wait for one another for ever.
Prints one line of JSON for each form that finished.
"""

import functools
import json

import conftest  # noqa: F401 (sets up the devices)
import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

import seht_jax as seht

MESH = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))


def normalised(params, batch):
    """Statistics over all devices, as in a synchronised batch normalisation."""
    hidden = batch["image"] @ params["first"]["kernel"]
    mean = lax.pmean(hidden.mean(0), "data")
    variance = lax.pmean(((hidden - mean) ** 2).mean(0), "data")
    hidden = jnp.tanh((hidden - mean) / jnp.sqrt(variance + 0.1))
    return jnp.mean((hidden @ params["second"]["kernel"] - batch["target"]) ** 2)


def averaged(params, batch):
    hidden = jnp.tanh(batch["image"] @ params["first"]["kernel"])
    return lax.pmean(jnp.mean((hidden @ params["second"]["kernel"] - batch["target"]) ** 2), "data")


LOSSES = {"normalised": normalised, "averaged": averaged}


def data():
    keys = jax.random.split(jax.random.key(1), 4)
    params = {
        "first": {"kernel": jax.random.normal(keys[0], (4, 8))},
        "second": {"kernel": jax.random.normal(keys[1], (8,))},
    }
    batch = {
        "image": jax.random.normal(keys[2], (16, 4)),
        "target": jax.random.normal(keys[3], (16,)),
    }
    return params, batch


def gradient_step(loss_fn, by, *, check_vma):
    """A step inside a map over the devices; gradients are averaged by the documented rule."""

    def step(params, batch, key):
        index = lax.axis_index("data")
        if by == "key":
            key = jax.random.fold_in(key, index)
        active = index % 3 == 0 if by == "active" else True
        penalised = seht.regularize(
            loss_fn, key, (0.5, 0.5), 0.1, active=active, with_estimate=True
        )

        def mean_loss(params):
            loss, estimate = penalised(params, batch)
            return lax.pmean(loss, "data") if check_vma else loss, estimate

        (loss, estimate), gradients = jax.value_and_grad(mean_loss, has_aux=True)(params)
        if not check_vma:
            loss, gradients = lax.pmean((loss, gradients), "data")
        return (loss, gradients), estimate.layers_drawn[None]

    return step


def mapped(form, step):
    if form == "pmap":

        def call(params, batch, key):
            batch = jax.tree.map(lambda x: x.reshape(8, 2, *x.shape[1:]), batch)
            result, drawn = jax.pmap(step, "data", in_axes=(None, 0, None))(params, batch, key)
            return jax.tree.map(lambda x: x[0], result), drawn[:, 0]

        return call
    return jax.jit(
        jax.shard_map(
            step,
            mesh=MESH,
            in_specs=(P(), P("data"), P()),
            out_specs=(P(), P("data")),
            check_vma=form == "check_vma",
        )
    )


def main():
    for name, loss_fn in LOSSES.items():
        for form in ("check_vma", "no_check_vma", "pmap"):
            for by in ("key", "active"):
                make = functools.partial(gradient_step, check_vma=form == "check_vma")
                step = mapped(form, make(loss_fn, by))
                drawn = [step(*data(), jax.random.key(seed))[1].tolist() for seed in range(6)]
                print(json.dumps([name, form, by, drawn]), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
