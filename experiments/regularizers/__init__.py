"""Regularization methods, one file each, all of the shape of `Regularizer`."""

from experiments.regularizers.base import Batch, LossFunction, Outputs, Regularizer
from experiments.regularizers.registry import PLAIN, describe_method, parse_method
from experiments.regularizers.seht import SehtD, SehtH, SehtShare

__all__ = [
    "PLAIN",
    "Batch",
    "LossFunction",
    "Outputs",
    "Regularizer",
    "SehtD",
    "SehtH",
    "SehtShare",
    "describe_method",
    "parse_method",
]
