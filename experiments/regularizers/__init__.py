"""Regularization methods, one file each, all of the shape of `Regularizer`."""

from experiments.regularizers.base import (
    Batch,
    LossFunction,
    NetworkFunction,
    Outputs,
    Regularizer,
    StepInputs,
)
from experiments.regularizers.registry import PLAIN, describe_method, parse_method
from experiments.regularizers.seht import SehtD, SehtH

__all__ = [
    "PLAIN",
    "Batch",
    "LossFunction",
    "NetworkFunction",
    "Outputs",
    "Regularizer",
    "SehtD",
    "SehtH",
    "StepInputs",
    "describe_method",
    "parse_method",
]
