"""The figures of an analysis, the plain twin in the colour of the text."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from experiments.analyse.measure import MeasureConfig
from experiments.analyse.stability import multipliers
from experiments.analyse.tables import Analysed, estimate, halfway_loss
from experiments.report.page import Picture
from experiments.report.theme import DARK, LIGHT, Theme, colours, empty_figure, plain_text
from seht_jax.analysis import smoothed_density

Draw: TypeAlias = Callable[[Sequence[Analysed], Theme], Figure]

# Of Okabe and Ito's colours the one that stands out on white and on black.
_COLOUR = "#D55E00"
_WIDTH_SHARE = 0.01
_DENSITY_POINTS = 800
_FONT_SIZE = 11.5  # read on a phone, where the figure is two thirds of its size


def draw_figures(config: MeasureConfig, networks: Sequence[Analysed]) -> list[Picture]:
    """Draw all figures, each for light and for dark backgrounds.

    Args:
        config: How the networks were measured.
        networks: The run, and its plain twin if there is one.

    Returns:
        The pictures. Stability is missing where no network has a positive eigenvalue.
    """
    spectrum = (
        "The eigenvalues of H: how many there are per unit, on a logarithmic scale. Bands are one "
        f"standard error over {config.density_probes} random vectors; each eigenvalue is smoothed "
        f"by {_WIDTH_SHARE:.0%} of the range. Triangles are the eigenvalues at the ends."
    )
    traces = (
        f"The trace by layer: bars are tr(H) with a standard error over {config.trace_probes} "
        "random vectors, diamonds tr(G). The numbers are in the table below."
    )
    slices = (
        f"The loss along {config.slice_directions} random filter-normalised directions (thin) and "
        "its mean over them; at 1, every filter has moved by its own length. The directions are "
        "drawn from the same random numbers for every network."
    )
    stability = (
        "By what a step of plain gradient descent multiplies a displacement along the sharpest "
        "direction, over the learning rate: below 1 it contracts. The dotted line is the learning "
        "rate at the start of the training."
    )

    def ends(each: Analysed) -> str:
        smallest, largest = each.measured.smallest[0].value, each.measured.largest[0].value
        return f"from {smallest:.3g} to {largest:.3g}"

    def total(each: Analysed) -> str:
        return f"tr(H) of the whole network {estimate(each.measured.hessian.total)}"

    def rise(each: Analysed) -> str:
        halfway = halfway_loss(config, each.measured)
        return f"{each.measured.loss:.3g} in the middle, {halfway:.3g} halfway to the ends"

    def limit(each: Analysed) -> str:
        return f"contracts below a learning rate of {each.stability.max_learning_rate:.3g}"

    def picture(name: str, caption: str, draw: Draw, numbers: Callable[[Analysed], str]) -> Picture:
        said = "; ".join(f"{each.label}: {numbers(each)}" for each in networks)
        light, dark = draw(networks, LIGHT), draw(networks, DARK)
        return Picture(name, caption, light, dark, f"{caption} {said}.")

    pictures = [
        picture("spectrum", spectrum, draw_spectrum, ends),
        picture("traces", traces, draw_traces, total),
        picture("slices", slices, functools.partial(draw_slices, config), rise),
    ]
    if any(each.stability.max_learning_rate > 0 for each in networks):
        pictures.append(picture("stability", stability, draw_stability, limit))
    return pictures


def draw_spectrum(networks: Sequence[Analysed], theme: Theme = LIGHT) -> Figure:
    """Draw the densities of the spectra over one another.

    Args:
        networks: The networks.
        theme: The colours.

    Returns:
        The figure.
    """
    ends = [
        end
        for each in networks
        for end in (
            *np.asarray(each.measured.quadrature.nodes).ravel(),
            each.measured.largest[0].value,
            each.measured.smallest[0].value,
        )
    ]
    span = float(np.ptp(ends)) or 1.0
    width = _WIDTH_SHARE * span
    points = np.linspace(min(ends) - 4 * width, max(ends) + 4 * width, _DENSITY_POINTS)
    # As high as a hundredth of an eigenvalue.
    floor = 0.01 / (width * (2 * np.pi) ** 0.5)
    with _drawing(theme):
        figure, (axis,) = empty_figure(theme)
        for i, (each, style) in enumerate(_styled(networks, theme)):
            density = smoothed_density(
                each.measured.quadrature, jnp.asarray(points, jnp.float32), width
            )
            mean, error = (each.measured.num_params * np.asarray(part) for part in density)
            axis.plot(points, np.maximum(mean, floor / 10), **style, label=_label(each))
            low, high = (np.maximum(mean + sign * error, floor / 10) for sign in (-1, 1))
            axis.fill_between(points, low, high, color=style["color"], alpha=0.15, linewidth=0)
            found = [pair.value for pair in each.measured.largest + each.measured.smallest]
            axis.plot(
                found,
                np.full(len(found), floor * 1.3 * 1.6**i),
                "^",
                color=style["color"],
                markersize=5,
                alpha=0.8,
            )
        axis.set_yscale("log")
        axis.set_ylim(bottom=floor)
        axis.set_xlabel("eigenvalue")
        axis.set_title("Eigenvalues per unit")
        axis.legend(frameon=False)
    return figure


def draw_traces(networks: Sequence[Analysed], theme: Theme = LIGHT) -> Figure:
    """Draw the traces of each layer as bars.

    Args:
        networks: The networks.
        theme: The colours.

    Returns:
        The figure, which is as high as the network has layers.
    """
    layers = list(networks[0].measured.hessian.by_layer)
    places = np.arange(len(layers))
    thickness = 0.8 / len(networks)
    with _drawing(theme):
        figure, (axis,) = empty_figure(theme, size=(5.5, max(4.2, 1.4 + 0.3 * len(layers))))
        for i, (each, style) in enumerate(_styled(networks, theme)):
            hessian = [each.measured.hessian.by_layer[layer] for layer in layers]
            gauss_newton = [each.measured.gauss_newton.by_layer[layer] for layer in layers]
            shifted = places + (i - (len(networks) - 1) / 2) * thickness
            axis.barh(
                shifted,
                [trace.mean for trace in hessian],
                thickness,
                xerr=[trace.standard_error for trace in hessian],
                color=style["color"],
                alpha=0.65,
                error_kw={"ecolor": theme.text, "elinewidth": 0.8},
                label=f"tr(H), {_label(each)}",
            )
            axis.plot(
                [trace.mean for trace in gauss_newton],
                shifted,
                "D",
                markersize=4,
                markerfacecolor=theme.background,
                markeredgecolor=style["color"],
                label=f"tr(G), {_label(each)}",
            )
        axis.set_yticks(places, [plain_text(layer) for layer in layers])
        axis.invert_yaxis()
        axis.set_title("Trace by layer", loc="left")
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def draw_slices(
    config: MeasureConfig, networks: Sequence[Analysed], theme: Theme = LIGHT
) -> Figure:
    """Draw the loss along the random directions.

    Args:
        config: Where it was evaluated.
        networks: The networks.
        theme: The colours.

    Returns:
        The figure.
    """
    positions = config.slice_positions
    with _drawing(theme):
        figure, (axis,) = empty_figure(theme)
        for each, style in _styled(networks, theme):
            for losses in each.measured.slices:
                axis.plot(positions, losses, color=style["color"], linewidth=0.6, alpha=0.4)
            mean = each.measured.slices.mean(axis=0)
            axis.plot(positions, mean, **style, label=_label(each))
        axis.set_yscale("log")
        axis.set_xlabel("distance, in lengths of each filter")
        axis.set_title("Loss along random directions")
        axis.legend(frameon=False)
    return figure


def draw_stability(networks: Sequence[Analysed], theme: Theme = LIGHT) -> Figure:
    """Draw by what a step multiplies a displacement, over the learning rate.

    Args:
        networks: The networks, one of which at least has a positive eigenvalue.
        theme: The colours.

    Returns:
        The figure.
    """
    limits = [
        each.stability.max_learning_rate
        for each in networks
        if each.stability.max_learning_rate > 0
    ]
    used = sorted({each.stability.learning_rate for each in networks})
    rates = np.geomspace(min(limits + used) / 4, max(limits + used) * 2, 400)
    with _drawing(theme):
        figure, (axis,) = empty_figure(theme)
        for each, style in _styled(networks, theme):
            limit = each.stability.max_learning_rate
            if limit > 0:
                label = f"{_label(each)}: below {limit:.3g}"
                factor = multipliers(each.measured.largest[0].value, rates)
                axis.plot(rates, factor, **style, label=label)
        axis.axhline(1, color=theme.text, linewidth=0.8)
        for i, rate in enumerate(used):
            label = None if i else "learning rate at the start"
            axis.axvline(rate, color=theme.text, linestyle=":", linewidth=1.2, label=label)
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_ylim(0, 2)
        axis.set_xlabel("learning rate")
        axis.set_title("Multiplier of a step; below 1 it contracts")
        figure.legend(loc="outside lower center", ncols=1, frameon=False)
    return figure


@contextlib.contextmanager
def _drawing(theme: Theme) -> Iterator[None]:
    with colours(theme), mpl.rc_context({"font.size": _FONT_SIZE}):
        yield


def _styled(
    networks: Sequence[Analysed], theme: Theme
) -> Iterator[tuple[Analysed, Mapping[str, Any]]]:
    for each in networks:
        if each.run.config.method:
            yield each, {"color": _COLOUR, "linestyle": "-", "linewidth": 1.8}
        else:
            yield each, {"color": theme.text, "linestyle": "--", "linewidth": 1.4}


def _label(network: Analysed) -> str:
    return plain_text(network.label)
