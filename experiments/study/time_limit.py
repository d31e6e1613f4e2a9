"""Whether a run would end in time."""

from collections.abc import Iterable

from experiments.study.records import Record
from experiments.study.stages import StudyRun


class TimeLimitError(BaseException):
    """There is no time for another run; no error of a run, which is given back to the queue."""


def expected_seconds(run: StudyRun, records: Iterable[Record]) -> float | None:
    """Estimate how long a run takes, its measurement included, by runs like it.

    Args:
        run: The run.
        records: The records so far.

    Returns:
        The longest time of the runs that are most like it: those of its stage, setting, condition
        and method; else those of its setting and method; else those of its setting. The latter two
        count in proportion to the epochs. `None` if there is none of them.
    """
    finished = [each for each in records if "seconds" in each.figures]
    same = [
        each.figures["seconds"]
        for each in finished
        if (each.stage, each.setting, each.condition, each.method)
        == (run.stage, run.setting, run.condition, run.method)
    ]
    if same:
        return max(same)
    alike = [each for each in finished if each.setting == run.setting]
    alike = [each for each in alike if each.method == run.method] or alike
    return max(
        (each.figures["seconds"] * run.config.epochs / each.figures["epochs"] for each in alike),
        default=None,
    )
