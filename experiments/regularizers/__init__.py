"""Regularization methods, one file each, all of the shape of `Regularizer`."""

from experiments.regularizers.base import (
    Batch,
    InitialNetwork,
    LossFunction,
    NetworkFunction,
    Outputs,
    Regularizer,
    StepInputs,
)
from experiments.regularizers.calibrated_gauss_newton import CalibratedGaussNewton
from experiments.regularizers.confidence_penalty import ConfidencePenalty
from experiments.regularizers.cutout import Cutout
from experiments.regularizers.dropblock import DropBlock
from experiments.regularizers.dropout import Dropout
from experiments.regularizers.gauss_newton import GaussNewton
from experiments.regularizers.jacobian import Jacobian
from experiments.regularizers.label_smoothing import LabelSmoothing
from experiments.regularizers.linbreg import AdaBreg, LinBreg
from experiments.regularizers.lookahead import Lookahead
from experiments.regularizers.mixup import Mixup
from experiments.regularizers.nso import NSO
from experiments.regularizers.registry import PLAIN, describe_method, parse_method
from experiments.regularizers.sam import SAM
from experiments.regularizers.sankar import SankarFull, SankarMiddle
from experiments.regularizers.seht import SehtD, SehtH, SehtShare

__all__ = [
    "NSO",
    "PLAIN",
    "SAM",
    "AdaBreg",
    "Batch",
    "CalibratedGaussNewton",
    "ConfidencePenalty",
    "Cutout",
    "DropBlock",
    "Dropout",
    "GaussNewton",
    "InitialNetwork",
    "Jacobian",
    "LabelSmoothing",
    "LinBreg",
    "Lookahead",
    "LossFunction",
    "Mixup",
    "NetworkFunction",
    "Outputs",
    "Regularizer",
    "SankarFull",
    "SankarMiddle",
    "SehtD",
    "SehtH",
    "SehtShare",
    "StepInputs",
    "describe_method",
    "parse_method",
]
