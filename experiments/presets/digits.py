"""The small residual network with BatchNorm on scikit-learn's digits; what the demo trains.

    python -m experiments train digits

takes about half a minute on two CPU cores, most of it compilation, and reaches 97 to 99 % of the
test images. The method is the form of the penalty to begin with.
"""

from experiments.config import TrainConfig
from experiments.regularizers import GaussNewton

DESCRIPTION = "A small residual network on scikit-learn's 8x8 digits; needs no download."

CONFIG = TrainConfig(
    name="digits",
    method=(GaussNewton(),),
    epochs=30,
    log_every=15,  # once an epoch
)
