"""Short runs: the strength does what it says, and a seed is the same run."""

import functools

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

from experiments.strength import cells
from experiments.strength.cells import Cell, grid, train_cells
from experiments.strength.forms import FORMS, RECOMMENDED, RISE, Losses, penalty_gradient
from experiments.strength.tasks import TASKS, WIDTHS, build_task


@pytest.fixture(scope="module")
def mlp():
    return build_task("mlp", 8)


def test_a_grid_has_every_combination():
    combinations = grid([0.1, 0.2], [0.0, 1.0], 3)
    assert len(set(combinations)) == 12
    assert combinations[0] == Cell(0.1, 0.0, 0)


def test_a_run_depends_on_its_cell_alone(mlp):
    settings = [Cell(0.05, 0.0, 0), Cell(0.05, 0.1, 0), Cell(0.05, 0.1, 1)]
    runs = train_cells(mlp, "gauss-newton", settings, 30)
    assert runs == train_cells(mlp, "gauss-newton", settings[::-1], 30)[::-1]
    plain, penalised, _ = runs
    assert plain.share == 0 < penalised.share
    assert penalised.trace < plain.trace
    assert plain.validation_loss < jnp.log(10)
    assert all(run.first_non_finite_step == -1 for run in runs)


def test_a_calibrated_strength_is_lambda_times_the_trace_at_the_start(mlp):
    init_key, _, _, trace_key = jax.random.split(jax.random.key(0), 4)
    trace = cells._trace(mlp, *mlp.init(init_key), trace_key)
    (calibrated,) = train_cells(mlp, "gauss-newton, calibrated", [Cell(0.05, 0.1, 0)], 30)
    (given,) = train_cells(mlp, "gauss-newton", [Cell(0.05, float(0.1 / trace), 0)], 30)
    assert calibrated.share > 0
    assert calibrated == pytest.approx(given, rel=1e-4)


@pytest.mark.parametrize(
    ("form", "part"),
    [
        pytest.param("gauss-newton, calibrated, rising", 1 / 2, marks=pytest.mark.long),
        (RECOMMENDED, 1 / 4),
    ],
)
def test_a_rising_strength_is_a_part_after_the_first_of_two_steps(mlp, monkeypatch, form, part):
    def share(num_steps):
        # At a learning rate of 0 each step is the same in both; the median of two is a mean.
        return train_cells(mlp, form, [Cell(0.0, 0.1, 0)], num_steps)[0].share

    rising = share(2)
    monkeypatch.delitem(RISE, form)
    first = share(1)
    second = 2 * share(2) - first
    assert rising == pytest.approx((part * first + second) / 2, rel=1e-5)


def test_the_first_step_that_is_not_finite_is_reported(mlp):
    (run,) = train_cells(mlp, "gauss-newton", [Cell(1e30, 0.0, 0)], 5)
    assert 0 < run.first_non_finite_step < 5


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.long if name in {"resnet", "transformer"} else ())
        for name in TASKS
    ],
)
def test_every_task_has_a_loss_with_marked_outputs(name):
    task = build_task(name, WIDTHS[name][0])
    params, batch_stats = task.init(jax.random.key(0))
    batch = tuple(array[:2] for array in task.train)

    def value_fn(params, *, train):
        return task.loss(params, batch_stats, batch, train=train)[0]

    losses = Losses(*(functools.partial(value_fn, train=train) for train in (True, False)))
    slope = jax.tree.map(jnp.ones_like, params)
    gradient = jax.jit(penalty_gradient, static_argnums=(0, 1))(
        "gauss-newton", losses, params, slope, jax.random.key(1), jnp.float32(1.0)
    )
    assert optax.tree.norm(gradient) > 0


# The others need a mark, which the tasks above have; two of these run in every run of the tests.
@pytest.mark.parametrize(
    "form",
    [
        pytest.param(form, marks=() if form in {"hessian", "hessian, bound"} else pytest.mark.long)
        for form in FORMS
        if "gauss-newton" not in form
    ],
)
def test_every_form_has_a_gradient_that_its_strength_scales(form):
    def quartic(params):
        return sum(jnp.sum(leaf**4) for leaf in jax.tree.leaves(params))

    losses = Losses(quartic, lambda params: 2 * quartic(params))
    # So many layers and entries that SEHT-D draws some.
    params = {f"layer{i}": {"kernel": jnp.linspace(-2, 2, 40)} for i in range(40)}
    slope = jax.grad(quartic)(params)
    gradient = jax.jit(functools.partial(penalty_gradient, form, losses, params, slope))
    once, twice = (gradient(jax.random.key(0), jnp.float32(strength)) for strength in (0.1, 0.2))
    assert optax.tree.norm(once) > 0
    chex.assert_trees_all_close(optax.tree.scale(2, once), twice, rtol=1e-4)


def test_running_statistics_are_those_of_the_evaluation_mode():
    losses = Losses(lambda params: jnp.sum(params**4), lambda params: 2 * jnp.sum(params**4))
    params, slope = jnp.array([1.0, -2.0]), jnp.array([4.0, -32.0])
    batch, running = (
        penalty_gradient(form, losses, params, slope, jax.random.key(0), jnp.float32(0.1))
        for form in ("hessian", "hessian, running statistics")
    )
    assert jnp.allclose(2 * batch, running)
