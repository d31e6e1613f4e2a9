"""A CIFAR ResNet-18 of width 16 on CIFAR-10, in a length that two CPU cores can do.

    python -m experiments train cifar10-small --data-dir DIR

DIR is TFDS's data directory. It trains on 9,000 of CIFAR-10's images, holds out 1,000 of the first
10,000, and takes about ten minutes on two CPU cores, of which half is the penalty's. Without crops,
in 12 epochs on all 10,000 and at a strength of 0.2, it reached 68 % of 2,000 test images, and plain
training did as well (docs/evidence/cifar10.md); at full size the paper has 94 % for plain training.
"""

from experiments.config import DataConfig, ModelConfig, OptimizerConfig, TrainConfig
from experiments.regularizers import GaussNewton

DESCRIPTION = "A CIFAR ResNet-18 of width 16 on CIFAR-10 read through TFDS."

CONFIG = TrainConfig(
    name="cifar10-small",
    data=DataConfig(
        dataset="cifar10",
        train_images=10_000,
        test_images=2_000,
        validation_size=1000,
        augmentation="crop-flip",
    ),
    model=ModelConfig(network="resnet18", width=16),
    optimizer=OptimizerConfig(learning_rate=0.05, clip_norm=5.0),
    method=(GaussNewton(),),
    epochs=10,
    batch_size=64,
    trace_examples=512,
    trace_probes=8,
)
