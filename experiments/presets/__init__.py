"""Ready configurations, one file each, whose docstring says what to expect."""

from experiments.config import TrainConfig
from experiments.presets import cifar10_small, digits

PRESETS: dict[str, TrainConfig] = {
    "digits": digits.CONFIG,
    "cifar10-small": cifar10_small.CONFIG,
}
DESCRIPTIONS: dict[str, str] = {
    "digits": digits.DESCRIPTION,
    "cifar10-small": cifar10_small.DESCRIPTION,
}
