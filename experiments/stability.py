"""The command `python -m experiments stability`: the paper's section 3.4 in two parameters.

A valley runs along x, with minima at both ends that are equally deep. It is twenty times steeper
across at the left end than at the right:

    L(x, y) = (x² − 1)² / 4 + k(x) y² / 2,   k(x) = 20^((1 − x) / 2).

Gradient descent stays at whichever minimum it comes to. λ tr(H) tilts the valley, and from a
critical λ on the sharp minimum is no equilibrium any more: it has met the saddle between the two,
and both are gone.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import scipy  # scipy.optimize is loaded where it is used
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

import seht_jax as seht
from experiments.environment import describe_environment
from experiments.errors import DivergedError, SettingError, option
from experiments.training.run_directory import write_json
from seht_jax.analysis.stability import (
    Classification,
    classify_params,
    descent_stability,
    gradient_flow,
)

SHARP, FLAT = (-1.0, 0.0), (1.0, 0.0)
SHARPNESS = 20.0
STARTS = ((-1.6, 0.45), (-0.7, -0.45), (-0.15, 0.45), (0.4, -0.45), (1.6, 0.45))

# What is drawn: the part of the plane, and how finely.
X_RANGE, Y_RANGE = (-1.8, 1.8), (-0.6, 0.6)
GRID = 61
VALLEY = np.linspace(*X_RANGE, 401)
STRENGTHS = 61
DRAWN_PATHS = 4

# Okabe and Ito's colours; markers and dashes say the same without colour.
COLORS = {"sharp": "#D55E00", "flat": "#0072B2", "saddle": "#000000", "path": "#009E73"}
MARKERS = {"asymptotically stable": "o", "saddle": "X", "unstable": "s", "non-hyperbolic": "d"}

Loss: TypeAlias = Callable[[jax.Array], jax.Array]
Results: TypeAlias = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class StabilityConfig:
    """What is shown."""

    lam: float = 0.05
    """Strength of the penalty; the sharp minimum is left from about 0.02 on."""
    learning_rate: float = 0.02
    """Learning rate of gradient descent; plain descent is stable at the sharp minimum below 0.1."""
    steps: int = 1500
    """Steps of gradient descent, from the sharp minimum."""
    seeds: int = 20
    """Runs with SEHT-H, each with random signs of its own; the seeds are 0, 1, ..."""
    output_dir: Path = Path("runs/stability")
    """Where phase_portraits.png, stability.png and stability.json go."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            SettingError: If one is out of its range.
        """
        for name in ("lam", "learning_rate"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise SettingError(f"{option(name)} must be finite and above 0, not {value}")
        for name in ("steps", "seeds"):
            value = getattr(self, name)
            if value < 1:
                raise SettingError(f"{option(name)} must be at least 1, not {value}")


class Equilibrium(NamedTuple):
    """A point where the flow of a loss rests.

    Attributes:
        x: Where it is in the valley; y is 0.
        classification: What linear stability analysis says of it.
    """

    x: float
    classification: Classification


def loss_fn(params: jax.Array) -> jax.Array:
    """Compute the loss of the valley.

    Args:
        params: x and y.

    Returns:
        The loss.
    """
    x, y = params
    return (x**2 - 1) ** 2 / 4 + SHARPNESS ** ((1 - x) / 2) * y**2 / 2


def penalised(lam: float | jax.Array) -> Loss:
    """Make the loss plus lambda times the exact trace of its Hessian.

    Args:
        lam: The strength.

    Returns:
        The penalised loss.
    """
    return lambda params: loss_fn(params) + lam * seht.exact_trace(loss_fn)(params)


def equilibria(lam: float) -> list[Equilibrium]:
    """Find and classify the equilibria of the flow of the penalised loss.

    All of them lie at y = 0: the loss and its trace are even in y, and curved upwards in it.

    Args:
        lam: The strength; 0 for the loss itself.

    Returns:
        The equilibria that are drawn, from left to right.
    """
    loss = penalised(lam)
    flow = jax.jit(gradient_flow(loss))

    def speed(x: float) -> float:
        return float(flow(jnp.array([x, 0.0]))[0])

    speeds = np.asarray(jax.vmap(flow)(_in_valley(VALLEY)))[:, 0]
    found = [float(x) for x in VALLEY[speeds == 0]]
    found.extend(
        float(
            scipy.optimize.root_scalar(speed, bracket=(VALLEY[i], VALLEY[i + 1]), xtol=1e-13).root
        )
        for i in np.flatnonzero(speeds[:-1] * speeds[1:] < 0)
    )
    return [Equilibrium(x, classify_params(loss, jnp.array([x, 0.0]))) for x in sorted(found)]


def critical_strength() -> float:
    """Compute the strength from which the sharp minimum is gone.

    Where the penalised loss is level, λ = −∂L/∂x / ∂tr(H)/∂x along the valley. Between the sharp
    minimum and the saddle that is greatest where the two meet.

    Returns:
        The strength.
    """
    x = _in_valley(np.linspace(SHARP[0], 0.0, 20_001))
    slope = jax.vmap(jax.grad(loss_fn))(x)[:, 0]
    trace_slope = jax.vmap(jax.grad(seht.exact_trace(loss_fn)))(x)[:, 0]
    return float(jnp.max(-slope / trace_slope))


def descend(config: StabilityConfig, start: jax.Array) -> jax.Array:
    """Run plain gradient descent.

    Args:
        config: Learning rate and number of steps.
        start: Where to begin.

    Returns:
        The points that are visited, the start first.
    """

    def step(params: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        return params - config.learning_rate * jax.grad(loss_fn)(params), params

    end, points = jax.lax.scan(step, start, length=config.steps)
    return jnp.concatenate([points, end[None]])


def descend_with_seht(config: StabilityConfig, start: jax.Array, key: jax.Array) -> jax.Array:
    """Run gradient descent with SEHT-H, the paper's stochastic estimate of the trace.

    Args:
        config: Strength, learning rate and number of steps.
        start: Where to begin.
        key: The key of the random signs.

    Returns:
        The points that are visited, the start first.
    """

    def step(params: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        objective = seht.regularize(loss_fn, key, None, config.lam)
        return params - config.learning_rate * jax.grad(objective)(params), params

    end, points = jax.lax.scan(step, start, jax.random.split(key, config.steps))
    return jnp.concatenate([points, end[None]])


def run_stability(config: StabilityConfig, console: Console) -> Results:
    """Analyse the valley, leave the sharp minimum, and write figures and numbers.

    Args:
        config: What is shown.
        console: Where the table is shown.

    Returns:
        What ``stability.json`` holds.

    Raises:
        DivergedError: If gradient descent does not stay finite.
    """
    config.output_dir.mkdir(parents=True, exist_ok=True)
    with jax.enable_x64(True), console.status("Following the flows"):
        results, portraits, conditions = _analyse(config)
    write_json(config.output_dir / "stability.json", results)
    portraits.savefig(config.output_dir / "phase_portraits.png", dpi=150)
    conditions.savefig(config.output_dir / "stability.png", dpi=150)
    console.print(stability_table(results))
    console.print(results["verdict"], highlight=False)
    console.print(f"Figures and all numbers: {config.output_dir}", highlight=False)
    return results


def verdict(results: Results) -> str:
    """Say in words what the penalty did.

    Args:
        results: What `run_stability` returns, without this.

    Returns:
        Some sentences.
    """
    lam, critical = results["settings"]["lam"], results["critical_strength"]
    plain, runs = results["plain_end"], results["seht_ends"]
    left = sum(run["x"] > 0 for run in runs)
    side = "above" if lam > critical else "not above"
    kept = "stays" if plain["x"] < 0 else "does not stay"
    return (
        f"From the sharp minimum, plain gradient descent {kept} there and ends at tr(H) = "
        f"{plain['trace']:.2f}. With SEHT-H {left} of {len(runs)} runs end on the flat side, at a "
        f"mean tr(H) of {np.mean([run['trace'] for run in runs]):.2f}. lambda = {lam:g} is {side} "
        f"the critical {critical:.4f}, from which the sharp minimum is no equilibrium any more."
    )


def stability_table(results: Results) -> Table:
    """Lay out the equilibria.

    Args:
        results: What `run_stability` returns.

    Returns:
        A table for a rich console.
    """
    table = Table()
    for heading in ("flow of", "x", "kind", "eigenvalues of J", "tr(H)", "rate below"):
        table.add_column(heading, justify="left" if heading in {"flow of", "kind"} else "right")
    names = {"plain": "the loss", "penalised": "loss + lambda tr(H)"}
    for flow, name in names.items():
        for point in results["equilibria"][flow]:
            limit = point["max_learning_rate"]
            table.add_row(
                name,
                f"{point['x']:.3f}",
                point["kind"],
                ", ".join(f"{value:.2f}" for value in point["eigenvalues"]),
                f"{point['trace']:.2f}",
                f"{limit:.3f}" if limit else "none",
            )
    return table


def draw_portraits(
    config: StabilityConfig,
    found: Mapping[str, Sequence[Equilibrium]],
    plain: np.ndarray,
    paths: np.ndarray,
) -> Figure:
    """Draw the flow of the loss, and that of the penalised loss.

    Args:
        config: What is shown.
        found: The equilibria of both, by ``plain`` and ``penalised``.
        plain: Paths of plain gradient descent from `STARTS`, of shape (starts, points, 2).
        paths: Paths with SEHT-H from the sharp minimum, of shape (seeds, points, 2).

    Returns:
        The figure.
    """
    figure = Figure(figsize=(12, 5), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    titles = {
        "plain": "Gradient descent, dω/dt = −∇L",
        "penalised": f"With the penalty, dω/dt = −∇(L + λ tr H), λ = {config.lam:g}",
    }
    strengths = {"plain": 0.0, "penalised": config.lam}
    drawn = {"plain": plain, "penalised": paths[:DRAWN_PATHS]}
    labels = {"plain": "gradient descent", "penalised": "SEHT-H from the sharp minimum"}
    for axis, (name, title) in zip(axes, titles.items(), strict=True):
        _draw_flow(axis, strengths[name])
        for i, path in enumerate(drawn[name]):
            label = labels[name] if i == 0 else None
            axis.plot(*path.T, color=COLORS["path"], linewidth=1.4, label=label)
            axis.plot(*path[0], "o", color=COLORS["path"], markersize=4, fillstyle="none")
        _draw_equilibria(axis, found[name])
        axis.set(title=title, xlabel="x", xlim=X_RANGE, ylim=Y_RANGE)
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2, frameon=False)
    axes[0].set_ylabel("y")
    return figure


def draw_conditions(config: StabilityConfig, critical: float, results: Results) -> Figure:
    """Draw the equilibria over λ, and the multipliers of a step over the learning rate.

    Args:
        config: What is shown.
        critical: The critical strength.
        results: What `run_stability` returns.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    strengths = np.linspace(0, 1.5 * max(config.lam, critical), STRENGTHS)
    curves = equilibria_over_strengths(strengths)
    styles = {True: ("-", "asymptotically stable"), False: (":", "saddle")}
    for stable, (linestyle, label) in styles.items():
        # A level line of the slope in the plane of λ and x, kept where x is of this kind.
        kind = np.where(curves.stable == stable, curves.slopes, np.nan)
        left.contour(strengths, VALLEY, kind.T, levels=[0], colors="black", linestyles=linestyle)
        left.plot([], [], color="black", linestyle=linestyle, label=label)
    left.axvline(
        critical, color=COLORS["sharp"], linestyle="--", label=f"critical λ = {critical:.4f}"
    )
    left.set(
        title="Equilibria of L + λ tr H in the valley",
        xlabel="λ",
        ylabel="x",
        xlim=(0, strengths[-1]),
        ylim=(-1.25, 1.4),
    )
    left.legend(loc="center right", framealpha=0.9, fontsize=9)
    rates = np.linspace(0, 0.15, 301)[1:]
    for name, point in (("sharp", 0), ("flat", -1)):
        minimum = results["equilibria"]["plain"][point]
        eigenvalues = -np.array(minimum["eigenvalues"])
        radius = np.max(np.abs(1 - rates[:, None] * eigenvalues), axis=1)
        right.plot(
            rates,
            radius,
            color=COLORS[name],
            linestyle="-" if name == "sharp" else "--",
            label=f"{name} minimum, stable below η = {minimum['max_learning_rate']:.3g}",
        )
    right.axhline(1, color="black", linewidth=0.8)
    right.axvline(config.learning_rate, color="grey", linestyle=":", label="learning rate used")
    right.set(
        title="max |1 − ημ|: a step contracts below 1",
        xlabel="learning rate η",
        ylabel="largest multiplier",
        xlim=(0, rates[-1]),
        ylim=(0, 2),
    )
    right.legend(loc="lower right", framealpha=0.9, fontsize=9)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    return figure


class ValleySlopes(NamedTuple):
    """The penalised loss along the valley, over strengths.

    Attributes:
        slopes: Its derivative by x, of shape (strengths, points of the valley).
        stable: Whether its Hessian has no negative eigenvalue there.
    """

    slopes: np.ndarray
    stable: np.ndarray


def equilibria_over_strengths(strengths: np.ndarray) -> ValleySlopes:
    """Compute where along the valley the penalised loss is level, and how it is curved there.

    Args:
        strengths: Values of λ.

    Returns:
        Both, on the points of `VALLEY`.
    """

    def look(lam: jax.Array, params: jax.Array) -> tuple[jax.Array, jax.Array]:
        loss = penalised(lam)
        eigenvalues = jnp.linalg.eigvalsh(jax.hessian(loss)(params))
        return jax.grad(loss)(params)[0], jnp.all(eigenvalues > 0)

    over_valley = jax.vmap(look, in_axes=(None, 0))
    over_strengths = jax.jit(jax.vmap(over_valley, in_axes=(0, None)))
    with jax.enable_x64(True):
        slopes, stable = over_strengths(jnp.asarray(strengths), _in_valley(VALLEY))
    return ValleySlopes(np.asarray(slopes), np.asarray(stable))


def _analyse(config: StabilityConfig) -> tuple[Results, Figure, Figure]:
    """Compute everything, and draw it.

    Raises:
        DivergedError: If gradient descent does not stay finite.
    """
    found = {"plain": equilibria(0.0), "penalised": equilibria(config.lam)}
    critical = critical_strength()
    plain = jax.jit(lambda start: descend(config, start))
    starts = np.array([plain(jnp.asarray(start)) for start in STARTS])
    # Exactly at the minimum plain descent could not leave even an unstable one.
    beside = jnp.array([SHARP[0] + 1e-3, 1e-3])
    keys = jax.vmap(jax.random.key)(jnp.arange(config.seeds))
    seht_runs = jax.jit(jax.vmap(lambda key: descend_with_seht(config, beside, key)))(keys)
    if not np.isfinite(starts).all() or not np.isfinite(seht_runs).all():
        raise DivergedError(
            "Gradient descent did not stay finite. Pass a smaller --learning-rate or --lam."
        )
    results: Results = {
        "settings": {
            "lam": config.lam,
            "learning_rate": config.learning_rate,
            "steps": config.steps,
            "seeds": config.seeds,
        },
        "environment": describe_environment(),
        "equilibria": {
            name: [_describe(point) for point in points] for name, points in found.items()
        },
        "critical_strength": critical,
        "plain_end": _describe_end(plain(beside)[-1]),
        "seht_ends": [_describe_end(run[-1]) for run in seht_runs],
    }
    results["verdict"] = verdict(results)
    portraits = draw_portraits(config, found, starts, np.asarray(seht_runs))
    return results, portraits, draw_conditions(config, critical, results)


def _describe(point: Equilibrium) -> dict[str, Any]:
    eigenvalues = np.real(point.classification.eigenvalues)
    params = jnp.array([point.x, 0.0])
    return {
        "x": point.x,
        "kind": point.classification.kind,
        "gradient_norm": point.classification.speed,
        "eigenvalues": eigenvalues.tolist(),
        "loss": float(loss_fn(params)),
        "trace": float(seht.exact_trace(loss_fn)(params)),
        "max_learning_rate": float(descent_stability(-eigenvalues, 1.0).max_learning_rate),
    }


def _describe_end(params: jax.Array) -> dict[str, float]:
    return {
        "x": float(params[0]),
        "y": float(params[1]),
        "loss": float(loss_fn(params)),
        "trace": float(seht.exact_trace(loss_fn)(params)),
    }


def _draw_flow(axis: Axes, lam: float) -> None:
    """Draw the loss as levels and the flow of the penalised loss as streamlines."""
    x, y = np.linspace(*X_RANGE, GRID), np.linspace(*Y_RANGE, GRID)
    grid = jnp.stack(jnp.meshgrid(x, y), axis=-1)
    over_grid = jax.vmap(jax.vmap(lambda params: (loss_fn(params), _flow(lam, params))))
    losses, field = map(np.asarray, jax.jit(over_grid)(grid))
    levels = np.geomspace(1e-3, 10, 13)
    axis.contourf(
        x, y, losses, levels=levels, norm=LogNorm(1e-3, 30), cmap="Greys", extend="both", alpha=0.6
    )
    axis.streamplot(
        x,
        y,
        field[..., 0],
        field[..., 1],
        color="#56B4E9",
        density=1.1,
        linewidth=0.7,
        arrowsize=0.8,
    )


def _flow(lam: float, params: jax.Array) -> jax.Array:
    return gradient_flow(penalised(lam))(params)


def _draw_equilibria(axis: Axes, points: Sequence[Equilibrium]) -> None:
    for point in points:
        kind = point.classification.kind
        name = "saddle" if kind != "asymptotically stable" else "sharp" if point.x < 0 else "flat"
        trace = float(seht.exact_trace(loss_fn)(jnp.array([point.x, 0.0])))
        label = kind if name == "saddle" else f"{name} minimum, tr H = {trace:.1f}"
        axis.plot(
            point.x,
            0,
            MARKERS[kind],
            color=COLORS[name],
            markersize=10,
            markeredgecolor="white",
            label=label,
            linestyle="none",
            zorder=5,
        )


def _in_valley(x: np.ndarray) -> jax.Array:
    return jnp.stack([jnp.asarray(x), jnp.zeros(len(x))], axis=-1)
