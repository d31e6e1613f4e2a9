"""Table 2 of the paper: WRN-28-10 on CIFAR-100, with dropout and without.

    python -m experiments sweep table2 --seeds 5 --data-dir DIR
    python -m experiments sweep table2-grid --seeds 5 --data-dir DIR
    python -m experiments sweep table2-tenth --seeds 5 --data-dir DIR
    python -m experiments report runs/sweeps/table2

Settings are those of the paper's section 4.1.2: learning rate 0.1, divided by 5 after epochs 60,
120 and 160 of 200, batches of 32, momentum 0.9, weight decay 5e-4 on all parameters. Each method
has the strength that the grid search of that section chose; `table2-grid` runs the grid itself, and
`table2-tenth` has the strength 0.1 for all three methods, which the same section states before. The
paper's figures, printed beside, are 74.61 % top-1 for the baseline and 79.53 to 80.31 % for SEHT-D.
Of the 50,000 training images 5,000 are held out for validation. A plain run is one to two days of
one GPU by estimate (none was at hand), the table with its 5 seeds, or `table2-tenth`, some five
months, the grid a year.

Each has a twin at a size for two CPU cores: WRN-10-2 on CIFAR-10, batches of 64, 6 epochs, the
first 10,000 training images, of which 1,000 are held out, and the first 2,000 test images.

    python -m experiments sweep table2-small --seeds 1 --data-dir DIR
    python -m experiments sweep table2-grid-small --seeds 1 --data-dir DIR
    python -m experiments sweep table2-tenth-small --seeds 1 --data-dir DIR

A plain run takes some two minutes by estimate, a table at one seed three quarters of an hour, the
grid under two hours. Gradients are not clipped, at either size.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.config import DataConfig, ModelConfig, OptimizerConfig, TrainConfig
from experiments.presets.table1 import CALIBRATED_NOTE, FULL_NOTE, SMALL_SIZE, table_row
from experiments.regularizers import (
    CalibratedGaussNewton,
    ConfidencePenalty,
    Cutout,
    Dropout,
    LabelSmoothing,
    Mixup,
    Regularizer,
    SehtD,
)
from experiments.sweep.definition import Column, Reported, Row, Sweep

BASELINE = "Baseline"
CONFIG = TrainConfig(
    data=DataConfig(dataset="cifar100", validation_size=5000, augmentation="crop-flip"),
    model=ModelConfig(network="wide-resnet", width=10, depth=28),
    optimizer=OptimizerConfig(learning_rate=0.1, schedule="steps", clip_norm=0.0),
    method=(),
    epochs=200,
    batch_size=32,
    trace_examples=128,  # one batch; a thousand take 50 GB
)
SMALL_CONFIG = dataclasses.replace(
    CONFIG,
    data=dataclasses.replace(
        CONFIG.data, dataset="cifar10", train_images=10_000, test_images=2_000, validation_size=1000
    ),
    model=ModelConfig(network="wide-resnet", width=2, depth=10),
    epochs=6,
    batch_size=64,
    trace_examples=512,
    trace_probes=8,
)
COLUMNS = (
    Column("test_accuracy", "top-1 accuracy, %"),
    Column("test_top5_accuracy", "top-5 accuracy, %"),
)

_STRENGTHS = (0.0001, 0.001, 0.01, 0.1)
GRIDS = {
    "confidence-penalty.weight": _STRENGTHS,
    "label-smoothing.weight": _STRENGTHS,
    "seht-d.lam": _STRENGTHS,
}
"""The values that the paper tried."""


@dataclasses.dataclass(frozen=True)
class Strengths:
    """The strengths of the three methods that have one.

    Attributes:
        confidence_penalty: Without and with dropout.
        label_smoothing: Without and with dropout.
        seht: Without and with dropout.
    """

    confidence_penalty: tuple[float, float] = (0.001, 0.0001)
    label_smoothing: tuple[float, float] = (0.0001, 0.001)
    seht: tuple[float, float] = (0.001, 0.01)


def table2_rows(
    config: TrainConfig,
    strengths: Strengths,
    grids: Mapping[str, Sequence[Any]],
) -> tuple[Row, ...]:
    """List all rows.

    Args:
        config: The plain configuration.
        strengths: Strengths where `grids` has none.
        grids: Values to try, by regularizer and field, in the form of `Row.grid`.

    Returns:
        The rows.
    """

    def row(
        label: str,
        *method: Regularizer,
        top1: tuple[float, float] | None = None,
        top5: tuple[float, float] | None = None,
        note: str = "",
    ) -> Row:
        figures = {"test_accuracy": top1, "test_top5_accuracy": top5}
        paper = {name: Reported(*figure) for name, figure in figures.items() if figure}
        return table_row(label, config, method, grids, paper=paper, note=note)

    def seht_d(p: float, *, dropout: bool) -> SehtD:
        return SehtD(lam=strengths.seht[dropout], p=p, rescale=False)

    return (
        row(BASELINE, top1=(74.61, 0.52), top5=(92.48, 0.40)),
        row(
            "Confidence penalty",
            ConfidencePenalty(strengths.confidence_penalty[0]),
            top1=(77.15, 1.54),
            top5=(93.97, 0.66),
        ),
        row(
            "Label smoothing",
            LabelSmoothing(strengths.label_smoothing[0]),
            top1=(79.38, 0.26),
            top5=(94.39, 0.33),
        ),
        row(
            "SEHT-D (maxIter=1, prob=0.01)",
            seht_d(0.01, dropout=False),
            top1=(79.53, 0.72),
            top5=(95.00, 0.24),
        ),
        row(
            "SEHT-D (maxIter=1, prob=0.05)",
            seht_d(0.05, dropout=False),
            top1=(80.31, 0.33),
            top5=(94.96, 0.05),
        ),
        row("Dropout", Dropout(0.3), top1=(73.13, 1.00), top5=(91.89, 0.52)),
        row(
            "Confidence penalty + dropout",
            ConfidencePenalty(strengths.confidence_penalty[1]),
            Dropout(0.3),
            top1=(77.69, 0.16),
            top5=(94.32, 0.46),
        ),
        row(
            "Label smoothing + dropout",
            LabelSmoothing(strengths.label_smoothing[1]),
            Dropout(0.3),
            top1=(78.55, 1.10),
            top5=(94.23, 0.34),
        ),
        row(
            "SEHT-D (maxIter=1, prob=0.01) + dropout",
            seht_d(0.01, dropout=True),
            Dropout(0.3),
            top1=(77.75, 0.37),
            top5=(94.38, 0.09),
        ),
        row("Cutout", Cutout(size=8), top1=(76.70, 0.79), top5=(93.72, 0.40)),
        row("Mixup", Mixup(alpha=1.0), top1=(78.38, 0.31), top5=(94.37, 0.31)),
        *(
            row(
                f"Gauss-Newton SEHT-D (maxIter=1, prob={p}){suffix}",
                CalibratedGaussNewton(p=p),
                *dropout,
                note=CALIBRATED_NOTE,
            )
            for suffix, dropout in (("", ()), (" + dropout", (Dropout(0.3),)))
            for p in (0.01, 0.05)
        ),
    )


_SMALL_NOTE = "The paper's figures are those of the full size, and no yardstick for these runs."
_TENTH = Strengths((0.1, 0.1), (0.1, 0.1), (0.1, 0.1))
SWEEPS = tuple(
    Sweep(
        f"table2{kind}{suffix}",
        f"{network} (Table 2){title}{remark}",
        table2_rows(config, strengths, grids),
        COLUMNS,
        note=note,
        seeds=seeds,
    )
    for suffix, network, remark, note, seeds, config in (
        ("", "WRN-28-10 on CIFAR-100", "", FULL_NOTE, 5, CONFIG),
        ("-small", "WRN-10-2 on CIFAR-10", SMALL_SIZE, _SMALL_NOTE, 3, SMALL_CONFIG),
    )
    for kind, title, strengths, grids in (
        ("", "", Strengths(), {}),
        ("-grid", ", with the paper's grids", Strengths(), GRIDS),
        ("-tenth", ", strength 0.1", _TENTH, {}),
    )
)
