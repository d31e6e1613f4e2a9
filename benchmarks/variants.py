"""The rows of the step-time benchmark: which steps are compared.

Every step returns the value of the loss, the aux and the gradient, or whatever takes its place; no
step updates an optimizer.
"""

import functools
import importlib
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matfree import stochtrace

import seht_jax as seht
from benchmarks.measure import (
    PLAIN,
    AnyRow,
    ComputedRow,
    NotAvailableError,
    Program,
    Row,
    Stratum,
    compile_step,
)
from benchmarks.models import BenchmarkModel
from seht_jax.closed_loss import close_loss
from seht_jax.curvature import Curvature
from seht_jax.penalty import make_penalty, network_suffixes
from seht_jax.probes import draw_layers, layer_table

Step: TypeAlias = Callable[..., Any]
LayerGroups: TypeAlias = Sequence[Sequence[str]]

STRENGTH = 1e-4  # lambda, which does not change the cost
DRAW_PROBABILITIES = (0.01, 0.05)
LAZY_PERIOD = 4
SHARPNESS_RADIUS = 0.05  # SAM's rho, which does not change the cost

NOTHING_DRAWN = "nothing drawn"
KEYS_OF_BRANCH = 4
_FORMS = {"hessian": "", "gauss_newton": "Gauss-Newton "}
_SEEDS_AT_A_TIME = 4096
_MAX_SEEDS = 100 * _SEEDS_AT_A_TIME

ONE_KEY = (Stratum(1.0, (jax.random.key(0),)),)  # for steps that cost the same whatever is drawn


def step_time_rows(
    model: BenchmarkModel,
    *,
    num_probes: Sequence[int],
    sparse_num_probes: Sequence[int],
) -> list[AnyRow]:
    """List the rows of the step-time benchmark.

    Args:
        model: What to take steps of.
        num_probes: The numbers of probes of SEHT-H.
        sparse_num_probes: The numbers of probes of SEHT-D.

    Returns:
        The rows; the plain step is the first.
    """

    def row(name: str, step: Step) -> Row:
        return Row(name, functools.partial(compile_step, step, model, ONE_KEY))

    def sparse(p: float, probes: int, curvature: Curvature = "hessian") -> Row:
        def prepare() -> Program:
            names = seht.layer_names(model.params, model.layers)
            draws = strata(names, p, branch_layers(model, p))
            return compile_step(penalised_step(model, p, probes, curvature), model, draws)

        return Row(sparse_name(p, probes, curvature), prepare)

    def gauss_newton(probes: int) -> Row:
        step = penalised_step(model, None, probes, "gauss_newton")
        return row(dense_name(probes, "gauss_newton"), step)

    return [
        row(PLAIN, plain_step(model)),
        row(NOTHING_DRAWN, skipped_step(model)),
        *(row(dense_name(n), penalised_step(model, None, n)) for n in num_probes),
        *(sparse(p, n) for p in DRAW_PROBABILITIES for n in sparse_num_probes),
        *(lazy_row(sparse_name(p, sparse_num_probes[0])) for p in DRAW_PROBABILITIES),
        *map(gauss_newton, num_probes),
        *(sparse(p, sparse_num_probes[0], "gauss_newton") for p in DRAW_PROBABILITIES),
        row("SAM (optax.contrib)", sharpness_aware_step(model)),
        row("reverse over the HVP, 1 probe", reverse_over_hvp_step(model)),
        row("matfree, 1 probe", matfree_step(model)),
        *torch_rows(model),
    ]


def branch_layers(model: BenchmarkModel, p: float) -> LayerGroups:
    """Return the layers by the branch of the step that runs if they are the first drawn.

    Args:
        model: What steps are taken of.
        p: The probability of layers and entries.

    Returns:
        Names of layers, by branch.
    """
    penalty = make_penalty(p, curvature="hessian", layers=model.layers)
    loss, _ = close_loss(model.loss_fn, model.params, model.batch, {}, has_aux=True)
    table = layer_table(model.params, penalty.layers)
    suffixes = network_suffixes(penalty, table, loss)
    return [
        [table.names[i] for i in sorted(suffix - shorter)]
        for suffix, shorter in zip(suffixes, [*suffixes[1:], frozenset()], strict=True)
    ]


def dense_name(num_probes: int, curvature: Curvature = "hessian") -> str:
    """Name a row of SEHT-H.

    Args:
        num_probes: The number of probes.
        curvature: The matrix.
    """
    return f"{_FORMS[curvature]}SEHT-H, {_probes(num_probes)}"


def sparse_name(p: float, num_probes: int, curvature: Curvature = "hessian") -> str:
    """Name a row of SEHT-D.

    Args:
        p: The probability of layers and entries.
        num_probes: The number of probes.
        curvature: The matrix.
    """
    return f"{_FORMS[curvature]}SEHT-D, p = {p}, {_probes(num_probes)}"


def lazy_row(name: str) -> ComputedRow:
    """Compute what a row costs where it is active in one step of a few.

    Args:
        name: The name of the row.

    Returns:
        The mean of its time and that of the steps in which nothing is drawn, which run the same
        branch as those in which the penalty is not active.
    """
    share = 1 / LAZY_PERIOD
    return ComputedRow(
        f"{name}, every {LAZY_PERIOD}th step", {NOTHING_DRAWN: 1 - share, name: share}
    )


# ---------------------------------------------------------------------------------------- the steps


def plain_step(model: BenchmarkModel) -> Step:
    """Return the step without a penalty, in which nothing is ours.

    Args:
        model: What it is a step of.
    """

    def step(key: jax.Array, params: Any, *batch: jax.Array) -> Any:
        del key
        return jax.value_and_grad(model.loss_fn, has_aux=True)(params, *batch)

    return step


def penalised_step(
    model: BenchmarkModel, p: float | None, num_probes: int, curvature: Curvature = "hessian"
) -> Step:
    """Return the step of the penalised loss.

    Args:
        model: What it is a step of.
        p: `None` for SEHT-H, a number for SEHT-D.
        num_probes: The number of probes.
        curvature: The matrix.
    """

    def step(key: jax.Array, params: Any, *batch: jax.Array) -> Any:
        penalised = seht.regularize(
            model.loss_fn,
            key,
            p,
            STRENGTH,
            num_probes=num_probes,
            has_aux=True,
            curvature=curvature,
            layers=model.layers,
        )
        return jax.value_and_grad(penalised, has_aux=True)(params, *batch)

    return step


def skipped_step(model: BenchmarkModel) -> Step:
    """Return a step whose penalty is not active, which only shows when it runs.

    Args:
        model: What it is a step of.
    """

    def step(key: jax.Array, params: Any, *batch: jax.Array) -> Any:
        # False for every key made from a small seed. The condition must be one that the compiler
        # can not decide: it knows that no unsigned number is below 0.
        active = jax.random.key_data(key)[0] == jnp.uint32(2**32 - 1)
        penalised = seht.regularize(model.loss_fn, key, None, STRENGTH, has_aux=True, active=active)
        return jax.value_and_grad(penalised, has_aux=True)(params, *batch)

    return step


def sharpness_aware_step(model: BenchmarkModel) -> Step:
    """Return one whole step of sharpness-aware minimisation: two gradients, one after the other.

    Like is compared with like: the other steps return a gradient and update nothing, and so this
    one returns SAM's update with SGD, which is the gradient at the perturbed params times a
    constant. What it does beyond its two gradients is SAM's own (the norm, and the perturbation).

    Args:
        model: What it is a step of.
    """
    adversary = optax.chain(optax.contrib.normalize(), optax.sgd(SHARPNESS_RADIUS))
    tx = optax.contrib.sam(optax.sgd(1.0), adversary, opaque_mode=True)

    def step(key: jax.Array, params: Any, *batch: jax.Array) -> Any:
        del key
        value, gradients = jax.value_and_grad(model.loss_fn, has_aux=True)(params, *batch)

        def gradient_there(params: Any, index: int) -> Any:
            del index
            return jax.grad(model.loss_fn, has_aux=True)(params, *batch)[0]

        updates, _ = tx.update(gradients, tx.init(params), params, grad_fn=gradient_there)
        return value, updates

    return step


def reverse_over_hvp_step(model: BenchmarkModel) -> Step:
    """Return SEHT-H with one probe, composed literally.

    The Hessian-vector product is forward over reverse, and a reverse pass differentiates it.

    Args:
        model: What it is a step of.
    """

    def step(key: jax.Array, params: Any, *batch: jax.Array) -> Any:
        probe = optax.tree.random_like(key, params, jax.random.rademacher)

        def penalised(params: Any) -> tuple[jax.Array, Any]:
            loss, aux = model.loss_fn(params, *batch)
            product = seht.hvp(model.loss_fn, probe, has_aux=True)(params, *batch)
            return loss + STRENGTH * optax.tree.vdot(probe, product), aux

        return jax.value_and_grad(penalised, has_aux=True)(params)

    return step


def matfree_step(model: BenchmarkModel) -> Step:
    """Return SEHT-H with one probe by matfree's differentiable estimator of the trace.

    Args:
        model: What it is a step of.
    """

    def step(key: jax.Array, params: Any, *batch: jax.Array) -> Any:
        estimator = stochtrace.estimator_monte_carlo(
            stochtrace.monte_carlo_trace(), stochtrace.sampler_signs(params, num=1)
        )

        def penalised(params: Any) -> tuple[jax.Array, Any]:
            loss, aux = model.loss_fn(params, *batch)
            gradient = jax.grad(lambda params: model.loss_fn(params, *batch)[0])
            _, hessian_product = jax.linearize(gradient, params)
            return loss + STRENGTH * estimator(hessian_product, key), aux

        return jax.value_and_grad(penalised, has_aux=True)(params)

    return step


# --------------------------------------------------------------------------------------- the draws


def strata(names: Sequence[str], p: float, boundaries: LayerGroups) -> tuple[Stratum, ...]:
    """Divide SEHT-D's draws of layers into strata: nothing drawn, and one for each branch.

    Args:
        names: The layers, in the order in which they are drawn.
        p: The probability of a layer.
        boundaries: The layers of each branch of the library's switch: the branch that runs is the
            first that has a drawn layer.

    Returns:
        The strata that have a probability above 0, each with keys of `seht_jax.regularize`.
    """
    found = representative_keys(names, p, boundaries)
    undrawn = 1 - p
    before = 0
    probabilities = []
    for group in boundaries:
        probabilities.append(undrawn**before * (1 - undrawn ** len(group)))
        before += len(group)
    strata = [
        Stratum(undrawn ** len(names), found[0]),
        *map(Stratum, probabilities, found[1:]),
    ]
    return tuple(stratum for stratum in strata if stratum.probability > 0)


def representative_keys(
    names: Sequence[str], p: float, boundaries: LayerGroups, count: int = KEYS_OF_BRANCH
) -> list[tuple[jax.Array, ...]]:
    """Find keys that lead into each branch of SEHT-D, by trying seeds.

    Args:
        names: The layers, in the order in which they are drawn.
        p: The probability of a layer.
        boundaries: The layers of each branch, in the order of the branches; each layer once.
        count: How many keys to find for each branch.

    Returns:
        First the keys that draw nothing, then for each branch those whose draw has a layer of it
        and none of the branches before; none where a draw has probability 0.

    Raises:
        ValueError: If the boundaries are no partition of the layers.
        RuntimeError: If a branch is so improbable that no key was found.
    """
    if sorted(names) != sorted(name for group in boundaries for name in group):
        raise ValueError(f"boundaries must hold each of the layers {names} once, got {boundaries}")
    group_of = {name: i for i, group in enumerate(boundaries, start=1) for name in group}
    groups = jnp.array([group_of[name] for name in names])

    @jax.jit
    def branches(seeds: jax.Array) -> jax.Array:
        def branch(seed: jax.Array) -> jax.Array:
            # As `seht_jax.penalty.draw` does it: the first of two keys is that of the layers.
            key_layers, _ = jax.random.split(jax.random.key(seed))
            drawn = draw_layers(key_layers, len(names), p)
            first = jnp.min(jnp.where(drawn, groups, len(boundaries) + 1))
            return jnp.where(jnp.any(drawn), first, 0)

        return jax.vmap(branch)(seeds)

    possible = [b for b in range(len(boundaries) + 1) if b == 0 or boundaries[b - 1]]
    if p == 1:
        possible = possible[1:2]
    seeds: list[list[int]] = [[] for _ in range(len(boundaries) + 1)]
    for start in range(0, _MAX_SEEDS, _SEEDS_AT_A_TIME):
        tried = np.arange(start, start + _SEEDS_AT_A_TIME)
        found = np.asarray(branches(jnp.asarray(tried)))
        for branch in possible:
            seeds[branch] += tried[found == branch][: count - len(seeds[branch])].tolist()
        if all(len(seeds[branch]) == count for branch in possible):
            break
    if missing := [branch for branch in possible if not seeds[branch]]:
        raise RuntimeError(f"no key among {_MAX_SEEDS} leads into the branches {missing}")
    return [tuple(map(jax.random.key, of_branch)) for of_branch in seeds]


# ----------------------------------------------------------------------------------------- PyTorch


def torch_rows(model: BenchmarkModel) -> list[AnyRow]:
    """List the rows that PyTorch runs; they are divided by PyTorch's own plain step.

    Args:
        model: What to take steps of.

    Returns:
        The rows, which fail with an explanation where PyTorch is not installed.
    """
    plain = "PyTorch, plain step"

    def prepare(p: float | None, num_probes: int) -> Program:
        # Imported only here: PyTorch is a large package that nothing else needs.
        if importlib.util.find_spec("torch") is None:
            raise NotAvailableError("not installed")
        torch_peer = importlib.import_module("benchmarks.torch_peer")
        return torch_peer.prepare(model.name, model.size, p, num_probes, STRENGTH)

    return [
        Row(plain, functools.partial(prepare, None, 0), plain),
        Row("PyTorch, SEHT-H, 1 probe", functools.partial(prepare, None, 1), plain),
        *(
            Row(
                f"PyTorch, SEHT-D, p = {p}, 1 probe",
                functools.partial(prepare, p, 1),
                plain,
            )
            for p in DRAW_PROBABILITIES
        ),
    ]


def _probes(num_probes: int) -> str:
    return f"{num_probes} probe" if num_probes == 1 else f"{num_probes} probes"
