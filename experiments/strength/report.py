"""What a study says: every cell against plain training at the same seeds."""

import itertools
import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import scipy  # scipy.stats is loaded where it is used: it takes a second

CONFIDENCE = 0.95


class Comparison(NamedTuple):
    """The runs of one cell against the plain ones at the same seeds and learning rate.

    Attributes:
        network: Name and width of the network.
        form: The form of the penalty.
        learning_rate: The learning rate.
        strength: The strength.
        num_seeds: How many pairs there are.
        num_diverged: How many of the penalised runs did not stay finite.
        plain_loss: Mean validation loss of the plain runs.
        loss: Mean validation loss of the penalised ones.
        difference: Mean of the differences; infinite where a penalised run diverged, and not a
            number where a plain one did.
        half_width: Half of their confidence interval.
        p_value: That of a paired t-test of the difference, two-sided; 0 where a penalised run
            diverged, 1 where a plain one did.
        trace_ratio: Mean tr(G) over that of the plain runs.
        share: Mean over the runs of the penalty gradient's share of the loss gradient's norm.
        loss_gradient_norm: Mean over the runs of that norm.
    """

    network: str
    form: str
    learning_rate: float
    strength: float
    num_seeds: int
    num_diverged: int
    plain_loss: float
    loss: float
    difference: float
    half_width: float
    p_value: float
    trace_ratio: float
    share: float
    loss_gradient_norm: float


def compare(rows: Iterable[dict[str, Any]]) -> list[Comparison]:
    """Compare every cell with the plain runs.

    Args:
        rows: The rows of `run_study`.

    Returns:
        One comparison for each cell with a penalty.
    """

    def place(row: dict[str, Any]) -> tuple[Any, ...]:
        return row["network"], row["width"], row["form"], row["learning_rate"]

    comparisons = []
    for (network, width, form, rate), group in itertools.groupby(rows, place):
        by_strength: dict[float, list[dict[str, Any]]] = {}
        for row in group:
            by_strength.setdefault(row["strength"], []).append(row)
        plain = by_strength.pop(0.0)
        comparisons += [
            _compare(f"{network}-{width}", form, rate, strength, plain, runs)
            for strength, runs in by_strength.items()
        ]
    return comparisons


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for their number, by Holm's step-down method.

    Args:
        p_values: The p-values of all tests.

    Returns:
        The adjusted ones, in the same order: a test is significant at 5 % if its own is below.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def markdown(comparisons: Sequence[Comparison]) -> str:
    """Write the comparisons as a table.

    Args:
        comparisons: The comparisons of a study.

    Returns:
        A Markdown table.
    """
    headings = (
        "network",
        "form",
        "learning rate",
        "strength",
        "validation loss, plain",
        "penalised",
        f"difference ({CONFIDENCE:.0%} interval)",
        "n",
        "p (Holm)",
        "tr(G) / plain",
        "gradient share",
        "loss gradient",
        "diverged",
    )
    lines = [_line(headings), _line(["---"] * len(headings))]
    adjusted = holm([comparison.p_value for comparison in comparisons])
    for comparison, p_value in zip(comparisons, adjusted, strict=True):
        lines.append(
            _line(
                (
                    comparison.network,
                    comparison.form,
                    f"{comparison.learning_rate:.2g}",
                    f"{comparison.strength:.0e}",
                    f"{comparison.plain_loss:.4f}",
                    f"{comparison.loss:.4f}",
                    f"{comparison.difference:+.4f} ± {comparison.half_width:.4f}",
                    str(comparison.num_seeds),
                    f"{p_value:.2g}",
                    f"{comparison.trace_ratio:.2f}",
                    f"{comparison.share:.2g}",
                    f"{comparison.loss_gradient_norm:.2g}",
                    str(comparison.num_diverged),
                )
            )
        )
    return "\n".join(lines) + "\n"


def overview(comparisons: Sequence[Comparison]) -> str:
    """Write the comparisons as one small table for each form, strengths side by side.

    Args:
        comparisons: The comparisons of a study.

    Returns:
        Markdown tables: the difference of the validation losses, with a star where it is
        significant at 5 % (Holm, over all comparisons), and tr(G) over that of plain training; the
        best of a line in bold, where it is better than plain.
    """
    adjusted = holm([comparison.p_value for comparison in comparisons])
    lines = []
    for form in dict.fromkeys(comparison.form for comparison in comparisons):
        chosen = [pair for pair in zip(comparisons, adjusted, strict=True) if pair[0].form == form]
        strengths = sorted({comparison.strength for comparison, _ in chosen})
        lines += [
            _line((form, "learning rate", "plain", *(f"{strength:g}" for strength in strengths))),
            _line(["---"] * (3 + len(strengths))),
        ]
        places = dict.fromkeys((each.network, each.learning_rate) for each, _ in chosen)
        for network, rate in places:
            cells = [
                pair
                for pair in chosen
                if (pair[0].network, pair[0].learning_rate) == (network, rate)
            ]
            best = min(0.0, *(comparison.difference for comparison, _ in cells))
            entries = {
                comparison.strength: _entry(comparison, p_value, best)
                for comparison, p_value in cells
            }
            plain = f"{cells[0][0].plain_loss:.4f}"
            lines.append(
                _line((network, f"{rate:.2g}", plain, *(entries[key] for key in strengths)))
            )
        lines.append("")
    return "\n".join(lines)


def verdict(comparisons: Sequence[Comparison], form: str, strength: float) -> str:
    """Say whether one form at one strength is worse than plain training in some cell.

    The correction is over the cells of this form and strength alone, so that other cells of a study
    do not make it more lenient.

    Args:
        comparisons: The comparisons of a study.
        form: The form.
        strength: The strength.

    Returns:
        A paragraph; empty, if the study has no such cell.
    """
    cells = [each for each in comparisons if (each.form, each.strength) == (form, strength)]
    if not cells:
        return ""
    adjusted = holm([cell.p_value for cell in cells])
    worse = [cell for cell in cells if cell.difference > 0]
    significant = [
        f"{_place(cell)} ({_gap(cell)}, p = {p_value:.2g})"
        for cell, p_value in zip(cells, adjusted, strict=True)
        if cell.difference > 0 and p_value < 1 - CONFIDENCE
    ]
    largest = max(cells, key=lambda cell: cell.difference)
    relative = max(cells, key=lambda cell: cell.difference / cell.plain_loss)
    ratios = [cell.trace_ratio for cell in cells]
    return (
        f"{form}, {strength:g}: the validation loss is higher than plain in {len(worse)} of "
        f"{len(cells)} cells, significantly (Holm, over these {len(cells)}) in "
        f"{'; '.join(significant) or 'none'}. Largest mean gap: {_gap(largest)} "
        f"({_place(largest)}); in relation to the loss: {_gap(relative)} ({_place(relative)}). "
        f"tr(G) ends at {min(ratios):.2f} to {max(ratios):.2f} times that of plain training.\n"
    )


def _place(cell: Comparison) -> str:
    return f"{cell.network} at {cell.learning_rate:.2g}"


def _gap(cell: Comparison) -> str:
    return f"{cell.difference:+.4f} of {cell.plain_loss:.4f}"


def _entry(comparison: Comparison, p_value: float, best: float) -> str:
    star = "*" if p_value < 1 - CONFIDENCE else ""
    difference = f"{comparison.difference:+.4f}{star}"
    if comparison.difference == best:
        difference = f"**{difference}**"
    return f"{difference} ({comparison.trace_ratio:.2f})"


def _compare(
    network: str,
    form: str,
    learning_rate: float,
    strength: float,
    plain: Sequence[dict[str, Any]],
    runs: Sequence[dict[str, Any]],
) -> Comparison:
    losses = [row["validation_loss"] for row in runs]
    plain_losses = [row["validation_loss"] for row in plain]
    differences = [a - b for a, b in zip(losses, plain_losses, strict=True)]
    num_diverged = sum(map(_diverged, runs))
    num_seeds = len(differences)
    difference, half_width, p_value = math.inf, math.nan, 0.0
    if any(map(_diverged, plain)):
        # There is nothing to compare with, and nothing is claimed.
        difference, p_value = math.nan, 1.0
    elif num_diverged == 0:
        difference = statistics.fmean(differences)
        error = statistics.stdev(differences) / math.sqrt(num_seeds)
        quantile = float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, num_seeds - 1))
        half_width = quantile * error
        # Differences that are all alike leave no doubt about their mean.
        ratio = abs(difference) / error if error else (math.inf if difference else 0.0)
        p_value = float(2 * scipy.stats.t.sf(ratio, num_seeds - 1))
    plain_trace = _mean([row["trace"] for row in plain])
    return Comparison(
        network,
        form,
        learning_rate,
        strength,
        num_seeds,
        num_diverged,
        _mean(plain_losses),
        _mean(losses),
        difference,
        half_width,
        p_value,
        _mean([row["trace"] for row in runs]) / plain_trace if plain_trace else math.nan,
        _mean([row["share"] for row in runs]),
        _mean([row["loss_gradient_norm"] for row in runs]),
    )


def _mean(values: Sequence[float]) -> float:
    """Compute a mean, which is not finite where a value is not; `statistics` may raise there."""
    if all(map(math.isfinite, values)):
        return statistics.fmean(values)
    return sum(values) / len(values)


def _diverged(row: dict[str, Any]) -> bool:
    return row["first_non_finite_step"] >= 0 or not math.isfinite(row["validation_loss"])


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
