"""How a run went, epoch by epoch, from its log."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.errors import DamagedFileError
from experiments.training.logging import LOG, read_log


class Curves(NamedTuple):
    """What a log says of each epoch.

    Attributes:
        epochs: The epochs, 1, 2, ...
        train_loss: Mean cross-entropy of the epoch's training batches.
        validation: The figure of the validation data at the epoch's end.
    """

    epochs: np.ndarray
    train_loss: np.ndarray
    validation: np.ndarray


def read_curves(directory: Path, figure: str) -> Curves:
    """Read the curves of a finished run.

    Args:
        directory: The run directory.
        figure: Name of the validation figure in the result, ``"validation_accuracy"`` for one.

    Returns:
        The curves; the validation figures are nan where there are no validation data.

    Raises:
        DamagedFileError: If there is no log, or what is there is none.
    """
    in_log = figure.replace("_", "/", 1)
    rows = read_log(directory / LOG)
    if not rows:
        raise DamagedFileError(
            f"{directory / LOG} is empty or missing, and the run is finished. Restore it, or "
            "delete the run directory and run it again."
        )
    steps = np.diff([0, *(row["step"] for row in rows)])
    # A line stands for the steps since the one before, and a line ends with every epoch.
    epoch_of_line = np.ceil([row["epoch"] for row in rows]).astype(int)
    # Steps that were skipped have no loss.
    weights = steps - np.array([row.get("skipped_steps", 0.0) for row in rows])
    losses = np.array([row.get("loss", 0.0) for row in rows])
    measured = {
        epoch: row[in_log] for epoch, row in zip(epoch_of_line, rows, strict=True) if in_log in row
    }
    epochs = np.unique(epoch_of_line)
    return Curves(
        epochs=epochs,
        train_loss=np.array(
            [
                _average(losses[epoch_of_line == each], weights[epoch_of_line == each])
                for each in epochs
            ]
        ),
        validation=np.array([measured.get(epoch, np.nan) for epoch in epochs]),
    )


def _average(values: np.ndarray, weights: np.ndarray) -> float:
    """Average; nan where nothing has a weight."""
    return float(values @ weights / weights.sum()) if weights.any() else float("nan")
