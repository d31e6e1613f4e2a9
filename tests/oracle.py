"""The penalised loss written out, for JAX's own derivatives: what the library must equal."""

import functools

import chex
import jax
import jax.numpy as jnp
import networks
from jax.flatten_util import ravel_pytree

from seht_jax.probes import (
    draw_layers,
    layer_table,
    module_layer,
    probe_probabilities,
    sample_probe,
)


def sampler(key, params, p, *, layers=module_layer):
    """Return what samples the probes of `regularize` with this key, and a key to split for them."""
    p_layers, p_entries = probe_probabilities(p)
    table = layer_table(params, layers)
    leaves, structure = jax.tree.flatten(params)
    key_layers, key_probes = jax.random.split(key)
    drawn = draw_layers(key_layers, len(table.names), p_layers) if p_layers < 1 else None

    def sample(key):
        probe = sample_probe(key, leaves, table, p_entries, drawn)
        return structure.unflatten(
            [probe.get(i, jnp.zeros_like(leaf)) for i, leaf in enumerate(leaves)]
        )

    return sample, key_probes


def probes(key, params, p, *, num_probes=1, layers=module_layer):
    """Return the probes that `regularize` takes with this key, as pytrees like the params."""
    sample, key_probes = sampler(key, params, p, layers=layers)
    return [sample(key) for key in jax.random.split(key_probes, num_probes)]


def mean_over_probes(form, key, params, p, *, num_probes=1, layers=module_layer):
    """Return the mean of a function of a probe; it is compiled once for all of them."""
    sample, key_probes = sampler(key, params, p, layers=layers)
    keys = jax.random.split(key_probes, num_probes)
    return jnp.mean(jax.lax.map(lambda key: form(sample(key)), keys))


def inner(left, right):
    return ravel_pytree(left)[0] @ ravel_pytree(right)[0]


def dense_hessian(loss_fn, params, *args):
    """Return the Hessian of a scalar loss over the flattened params."""
    flat, unravel = ravel_pytree(params)
    return jax.hessian(lambda flat: loss_fn(unravel(flat), *args))(flat)


@functools.cache
def case_with_hessian(name):
    """Return a network of `networks.CASES` and the Hessian of its loss."""
    case = networks.CASES[name]()
    hessian = jax.jit(functools.partial(dense_hessian, without_aux(case.loss_fn)))
    return case, hessian(case.params, case.batch)


def dense_penalised(loss_fn, key, p, lam, **options):
    """Penalise by the dense Hessian."""

    def penalised(params, *args):
        hessian = dense_hessian(loss_fn, params, *args)

        def form(probe):
            return ravel_pytree(probe)[0] @ hessian @ ravel_pytree(probe)[0]

        return loss_fn(params, *args) + lam * mean_over_probes(form, key, params, p, **options)

    return penalised


def composed(loss_fn, key, p, lam, **options):
    """Penalise by the literal composition: sigma times the derivative of the gradient."""

    def penalised(params, *args, **kwargs):
        def gradient(params):
            return jax.grad(loss_fn)(params, *args, **kwargs)

        def form(probe):
            return inner(probe, jax.jvp(gradient, (params,), (probe,))[1])

        penalty = lam * mean_over_probes(form, key, params, p, **options)
        return loss_fn(params, *args, **kwargs) + penalty

    return penalised


def without_aux(loss_fn):
    return lambda *args, **kwargs: loss_fn(*args, **kwargs)[0]


def assert_close(actual, expected, rtol=1e-8):
    chex.assert_trees_all_close(actual, expected, rtol=rtol, atol=rtol)
