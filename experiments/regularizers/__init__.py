"""Regularization methods, one file each, all of the shape of `Regularizer`."""

from experiments.regularizers.base import Batch, LossFunction, Outputs, Regularizer
from experiments.regularizers.registry import PLAIN, describe_method, parse_method
from experiments.regularizers.seht import SehtD, SehtH

__all__ = [
    "PLAIN",
    "Batch",
    "LossFunction",
    "Outputs",
    "Regularizer",
    "SehtD",
    "SehtH",
    "describe_method",
    "parse_method",
]
