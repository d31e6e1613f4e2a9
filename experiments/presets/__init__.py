"""Ready configurations, one file each, whose docstring says what to expect."""

from experiments.config import TrainConfig
from experiments.presets import (
    cifar10_small,
    digits,
    digits_sweep,
    pydoc,
    table1,
    table2,
    table3,
    table4,
)
from experiments.sweep.definition import Sweep

PRESETS: dict[str, TrainConfig] = {
    "digits": digits.CONFIG,
    "cifar10-small": cifar10_small.CONFIG,
    "pydoc": pydoc.CONFIG,
    "pydoc-transformer": pydoc.TRANSFORMER_CONFIG,
}
DESCRIPTIONS: dict[str, str] = {
    "digits": digits.DESCRIPTION,
    "cifar10-small": cifar10_small.DESCRIPTION,
    "pydoc": pydoc.DESCRIPTION,
    "pydoc-transformer": pydoc.TRANSFORMER_DESCRIPTION,
}
SWEEPS: dict[str, Sweep] = {
    sweep.name: sweep
    for sweep in (
        digits_sweep.SWEEP,
        *table1.SWEEPS,
        *table2.SWEEPS,
        *table3.SWEEPS,
        *table4.SWEEPS,
    )
}
