"""What fine-tunings of pruned networks say: a table, differences seed by seed, a figure."""

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
import scipy  # scipy.stats is loaded where it is used: it takes a second
from matplotlib.figure import Figure

CONFIDENCE = 0.95

HESSIAN, IMPLANT, MAGNITUDE, RANDOM = "hessian", "hessian + implant", "magnitude", "random"
CRITERIA = (HESSIAN, IMPLANT, MAGNITUDE, RANDOM)
COMPARED = ((HESSIAN, MAGNITUDE), (IMPLANT, MAGNITUDE), (RANDOM, MAGNITUDE), (IMPLANT, HESSIAN))

# Okabe and Ito's colours; markers say the same without colour.
STYLES = {
    HESSIAN: ("#0072B2", "o"),
    IMPLANT: ("#009E73", "s"),
    MAGNITUDE: ("#D55E00", "^"),
    RANDOM: ("#000000", "x"),
}

FineTuning: TypeAlias = dict[str, Any]
"""A network that was pruned and fine-tuned: keep, criterion, seed, weights, and what is measured,
``before`` and ``after``, with test_loss and test_accuracy in each."""


def markdown(original: dict[str, float], fine_tunings: Sequence[FineTuning]) -> str:
    """Write the results as a table, and the differences between criteria as another.

    Args:
        original: What was measured of the network before it was pruned, and its ``weights``.
        fine_tunings: The fine-tunings, of all criteria at the same seeds.

    Returns:
        Markdown: mean ± standard error over n seeds; paired differences with their confidence
        interval.
    """
    headings = (
        "weights of convolutions",
        "criterion",
        "n",
        "weights left",
        "test accuracy, pruned",
        "fine-tuned",
        "test loss, pruned",
        "fine-tuned",
    )
    unpruned = (
        "all",
        "not pruned",
        "1",
        f"{original['weights']:,}",
        "",
        f"{100 * original['test_accuracy']:.2f} %",
        "",
        f"{original['test_loss']:.4f}",
    )
    lines = [_line(headings), _line(["---"] * len(headings)), _line(unpruned)]
    for keep in _sizes(fine_tunings):
        for criterion in CRITERIA:
            runs = _chosen(fine_tunings, keep, criterion)
            accuracies = [
                _mean(_values(runs, when, "test_accuracy"), 100, 2, " %") for when in _WHEN
            ]
            losses = [_mean(_values(runs, when, "test_loss"), 1, 4) for when in _WHEN]
            weights = _mean([run["weights"] for run in runs], 1, 0)
            n = str(len(runs))
            lines.append(_line((_percent(keep), criterion, n, weights, *accuracies, *losses)))
    heading = (
        f"Differences of fine-tuned networks, seed by seed: mean and {CONFIDENCE:.0%} interval, "
        "accuracy in points."
    )
    return "\n".join([*lines, "", heading, "", *_comparisons(fine_tunings)]) + "\n"


def draw_figure(original: dict[str, float], fine_tunings: Sequence[FineTuning]) -> Figure:
    """Draw test accuracy and loss after fine-tuning, a marker for each network.

    Args:
        original: What was measured of the network before it was pruned.
        fine_tunings: The fine-tunings.

    Returns:
        The figure; a line is the mean over the seeds.
    """
    sizes = _sizes(fine_tunings)
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    panels = (("test_accuracy", "Test accuracy, %", 100), ("test_loss", "Test loss", 1))
    for axis, (name, title, scale) in zip(figure.subplots(1, 2), panels, strict=True):
        axis.axhline(scale * original[name], color="grey", linestyle="--", label="not pruned")
        for i, criterion in enumerate(CRITERIA):
            color, marker = STYLES[criterion]
            offset = 0.18 * (i - (len(CRITERIA) - 1) / 2)
            for place, keep in enumerate(sizes):
                values = _values(_chosen(fine_tunings, keep, criterion), "after", name)
                heights = scale * np.array(values)
                x = place + offset
                label = criterion if place == 0 else None
                axis.plot([x] * len(heights), heights, marker, color=color, label=label, alpha=0.7)
                axis.hlines(heights.mean(), x - 0.07, x + 0.07, color=color, linewidth=2)
        axis.set_xticks(range(len(sizes)), [_percent(keep) for keep in sizes])
        axis.set(title=title, xlabel="weights of convolutions left")
        axis.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False, fontsize=8)
    return figure


_WHEN = ("before", "after")


def _comparisons(fine_tunings: Sequence[FineTuning]) -> list[str]:
    headings = ("weights of convolutions", "criterion", "minus", "n", "test accuracy", "test loss")
    lines = [_line(headings), _line(["---"] * len(headings))]
    for keep in _sizes(fine_tunings):
        for criterion, other in COMPARED:
            runs, others = (_chosen(fine_tunings, keep, each) for each in (criterion, other))
            differences = [
                _difference(
                    _values(runs, "after", name), _values(others, "after", name), scale, digits
                )
                for name, scale, digits in (("test_accuracy", 100, 2), ("test_loss", 1, 4))
            ]
            lines.append(_line((_percent(keep), criterion, other, str(len(runs)), *differences)))
    return lines


def _percent(keep: float) -> str:
    return f"{100 * keep:g} %"


def _sizes(fine_tunings: Iterable[FineTuning]) -> list[float]:
    return sorted({run["keep"] for run in fine_tunings}, reverse=True)


def _chosen(fine_tunings: Iterable[FineTuning], keep: float, criterion: str) -> list[FineTuning]:
    chosen = (run for run in fine_tunings if (run["keep"], run["criterion"]) == (keep, criterion))
    return sorted(chosen, key=lambda run: run["seed"])


def _values(runs: Iterable[FineTuning], when: str, name: str) -> list[float]:
    return [run[when][name] for run in runs]


def _mean(values: Sequence[float], scale: float, digits: int, unit: str = "") -> str:
    scaled = [scale * value for value in values]
    error = statistics.stdev(scaled) / math.sqrt(len(scaled))
    return f"{statistics.fmean(scaled):,.{digits}f} ± {error:,.{digits}f}{unit}"


def _difference(values: Sequence[float], others: Sequence[float], scale: float, digits: int) -> str:
    differences = [scale * (a - b) for a, b in zip(values, others, strict=True)]
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    quantile = float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, len(differences) - 1))
    return f"{statistics.fmean(differences):+.{digits}f} ± {quantile * error:.{digits}f}"


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
