"""What figures of a page have in common: two themes, and empty axes in either."""

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class Theme:
    """Colours of a figure.

    Attributes:
        text: Text and axes.
        background: What is behind them.
    """

    text: str
    background: str


LIGHT = Theme(text="#1b1b1b", background="#ffffff")
DARK = Theme(text="#e6e6e6", background="#161616")


def colours(theme: Theme) -> contextlib.AbstractContextManager[None]:
    """Let Matplotlib draw in the colours of a theme.

    Args:
        theme: The theme.

    Returns:
        A context manager.
    """
    names = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    settings: dict[Any, Any] = dict.fromkeys(names, theme.text)
    settings["axes.facecolor"] = theme.background
    return mpl.rc_context(settings)


def empty_figure(
    theme: Theme, num_axes: int = 1, size: tuple[float, float] = (5.5, 4.2)
) -> tuple[Figure, Sequence[Axes]]:
    """Make a figure with axes side by side, within `colours` of the same theme.

    Args:
        theme: The theme.
        num_axes: How many axes.
        size: Width and height of each, in inches.

    Returns:
        The figure and its axes.
    """
    width, height = size
    figure = Figure(
        figsize=(width * num_axes, height), layout="constrained", facecolor=theme.background
    )
    axes = figure.subplots(1, num_axes, squeeze=False)[0]
    for axis in axes:
        axis.grid(alpha=0.3, which="both", linewidth=0.5)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def plain_text(text: str) -> str:
    """Write text so that Matplotlib shows it as it is.

    Args:
        text: Any text.

    Returns:
        The text, in which a dollar sign is one, and no formula of TeX's.
    """
    return text.replace("$", r"\$")
