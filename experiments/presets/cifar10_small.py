"""A CIFAR ResNet-18 of width 16 on CIFAR-10, in a length that two CPU cores can do.

    python -m experiments train cifar10-small --data-dir DIR

DIR is TFDS's data directory.
"""

from experiments.config import DataConfig, ModelConfig, OptimizerConfig, TrainConfig
from experiments.regularizers import GaussNewton

DESCRIPTION = "A CIFAR ResNet-18 of width 16 on CIFAR-10 read through TFDS."

CONFIG = TrainConfig(
    name="cifar10-small",
    data=DataConfig(dataset="cifar10", validation_size=1000, augmentation="crop-flip"),
    model=ModelConfig(network="resnet18", width=16),
    optimizer=OptimizerConfig(learning_rate=0.05, clip_norm=5.0),
    method=(GaussNewton(),),
    epochs=10,
    batch_size=64,
    trace_examples=512,
    trace_probes=8,
)
