"""What the records say: means, paired differences, and rank correlations."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import scipy  # scipy.stats is loaded where it is used: it takes a second

from experiments.report import summary
from experiments.report.summary import Estimate
from experiments.study.records import Record

CONFIDENCE = 0.95


class Difference(NamedTuple):
    """A mean of paired differences.

    Attributes:
        mean: The mean.
        standard_error: Of the mean.
        half_width: Half of its 95 % interval, by Student's distribution.
        p_value: Of the two-sided t-test that it is 0.
        num_pairs: How many pairs there are, two at least.
    """

    mean: float
    standard_error: float
    half_width: float
    p_value: float
    num_pairs: int


class Correlation(NamedTuple):
    """Spearman's rank correlation.

    Attributes:
        coefficient: The coefficient, from -1 to 1.
        p_value: Of the two-sided test that it is 0, for independent points.
        num_points: How many points there are.
    """

    coefficient: float
    p_value: float
    num_points: int


def estimate(records: Iterable[Record], figure: str) -> Estimate | None:
    """Compute the mean of a figure over the runs that have it and did not diverge.

    Args:
        records: Records of several seeds.
        figure: Name of the figure.

    Returns:
        The mean; `None` if there is none.
    """
    return summary.estimate(list(by_seed(records, figure).values()))


def paired_difference(
    records: Iterable[Record], others: Iterable[Record], figure: str
) -> Difference | None:
    """Compare two methods seed by seed.

    Args:
        records: Records of one method.
        others: Records of the other.
        figure: Name of the figure.

    Returns:
        The mean of the first one's figure minus the second one's, over the seeds at which neither
        diverged; `None` if there are fewer than two.
    """
    first, second = by_seed(records, figure), by_seed(others, figure)
    differences = [first[seed] - second[seed] for seed in first if seed in second]
    if len(differences) < 2:
        return None
    mean = statistics.fmean(differences)
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    freedom = len(differences) - 1
    # Differences that are all alike leave no doubt about their mean.
    ratio = abs(mean) / error if error else (math.inf if mean else 0.0)
    return Difference(
        mean,
        error,
        float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * error,
        float(2 * scipy.stats.t.sf(ratio, freedom)),
        len(differences),
    )


def no_worse_p_value(difference: Difference, margin: float) -> float:
    """Test that a method is worse than another by no more than a margin.

    Args:
        difference: Of the method's figure, of which more is better, minus the other's.
        margin: What the method may lack, above 0.

    Returns:
        The p value of the one-sided t-test of a mean of ``-margin`` against a higher one.
    """
    gain = difference.mean + margin
    if not difference.standard_error:
        return 0.0 if gain > 0 else 1.0
    return float(scipy.stats.t.sf(gain / difference.standard_error, difference.num_pairs - 1))


def correlation(first: Sequence[float], second: Sequence[float]) -> Correlation | None:
    """Compute Spearman's rank correlation.

    Args:
        first: One figure of each run.
        second: Another.

    Returns:
        The correlation; `None` for fewer than three runs, or a figure that is the same in all.
    """
    if len(first) < 3 or len(set(first)) == 1 or len(set(second)) == 1:
        return None
    # As arrays: SciPy's own result has no types.
    found = np.asarray(scipy.stats.spearmanr(first, second))
    return Correlation(float(found[0]), float(found[1]), len(first))


def without_means(values: Sequence[float], groups: Sequence[str]) -> list[float]:
    """Take from each value the mean of its group.

    Args:
        values: One figure of each run.
        groups: The method of each run.

    Returns:
        What is left.
    """
    by_group: dict[str, list[float]] = {}
    for value, group in zip(values, groups, strict=True):
        by_group.setdefault(group, []).append(value)
    means = {group: statistics.fmean(each) for group, each in by_group.items()}
    return [value - means[group] for value, group in zip(values, groups, strict=True)]


def by_seed(records: Iterable[Record], figure: str) -> Mapping[int, float]:
    """Look up a figure of the runs that have it and did not diverge.

    Args:
        records: Records of one method, of different seeds.
        figure: Name of the figure.

    Returns:
        Its values, by seed.
    """
    return {
        record.seed: record.figures[figure]
        for record in records
        if not record.diverged and figure in record.figures
    }
