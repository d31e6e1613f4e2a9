"""Ready configurations, one file each, whose docstring says what to expect."""

from experiments.config import TrainConfig
from experiments.presets import cifar10_small, digits, digits_sweep, table1, table2
from experiments.sweep.definition import Sweep

PRESETS: dict[str, TrainConfig] = {
    "digits": digits.CONFIG,
    "cifar10-small": cifar10_small.CONFIG,
}
DESCRIPTIONS: dict[str, str] = {
    "digits": digits.DESCRIPTION,
    "cifar10-small": cifar10_small.DESCRIPTION,
}
SWEEPS: dict[str, Sweep] = {
    sweep.name: sweep for sweep in (digits_sweep.SWEEP, *table1.SWEEPS, *table2.SWEEPS)
}
