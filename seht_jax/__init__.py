"""Hessian-trace regularization for JAX: flat minima as a one-line choice."""

from seht_jax.adahessian import (
    ScaleByAdaHessianState,
    adahessian,
    kernel_mean,
    kernel_mean_magnitude,
    scale_by_adahessian,
)
from seht_jax.curvature import hvp
from seht_jax.dataset import mean_over_batches
from seht_jax.diagonal import DiagonalEstimate, hutchinson_diagonal
from seht_jax.outputs import outputs
from seht_jax.probes import Stacked, layer_names, module_layer, sparse_signs
from seht_jax.regularize import PenaltyEstimate, regularize
from seht_jax.trace import (
    TraceEstimate,
    exact_trace,
    hutchinson_trace,
    layer_traces,
    masked_trace,
    output_trace,
)
from seht_jax.transform import AddHessianTraceState, add_hessian_trace

__all__ = [
    "AddHessianTraceState",
    "DiagonalEstimate",
    "PenaltyEstimate",
    "ScaleByAdaHessianState",
    "Stacked",
    "TraceEstimate",
    "adahessian",
    "add_hessian_trace",
    "exact_trace",
    "hutchinson_diagonal",
    "hutchinson_trace",
    "hvp",
    "kernel_mean",
    "kernel_mean_magnitude",
    "layer_names",
    "layer_traces",
    "masked_trace",
    "mean_over_batches",
    "module_layer",
    "output_trace",
    "outputs",
    "regularize",
    "scale_by_adahessian",
    "sparse_signs",
]

__version__ = "0.1.0"
