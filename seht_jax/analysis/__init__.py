"""What a trained network's curvature looks like, and what the paper's theory says of it.

Eigenvalues, density, precise traces, slices, the stability of minima, and a generalisation bound.

It needs matfree, which the extra `analysis` installs. All of it has the shape of `regularize`, a
loss and a key first, and takes `curvature="hessian"` or `"gauss_newton"`. For a data set that does
not fit into one batch, wrap the loss in `seht_jax.mean_over_batches`; traces by layer, the
diagonal, and the exact trace of a layer are in `seht_jax` itself (`layer_traces`,
`hutchinson_diagonal`, `exact_trace`) and take the same loss.
"""

try:
    import matfree as _matfree  # noqa: F401  # only to say what is missing
except ModuleNotFoundError as error:
    if error.name != "matfree":
        raise
    _MESSAGE = "seht_jax.analysis needs matfree: pip install 'seht-jax[analysis]'"
    raise ModuleNotFoundError(_MESSAGE, name="matfree") from error

from seht_jax.analysis.bound import (
    GapBound,
    LinearModelBound,
    gap_bound,
    linear_model_bound,
    norm_2_1,
)
from seht_jax.analysis.landscape import filter_normalized_direction, loss_slice
from seht_jax.analysis.precise_trace import hutch_plus_plus, xtrace
from seht_jax.analysis.spectrum import (
    DensityEstimate,
    Eigenpairs,
    ExtremeEigenpairs,
    SpectralQuadrature,
    extreme_eigenpairs,
    smoothed_density,
    spectral_quadrature,
)
from seht_jax.analysis.stability import (
    Classification,
    DescentStability,
    classify,
    classify_params,
    dense_eigenvalues,
    dense_jacobian,
    dense_symmetric_eigenvalues,
    descent_stability,
    gradient_flow,
)

__all__ = [
    "Classification",
    "DensityEstimate",
    "DescentStability",
    "Eigenpairs",
    "ExtremeEigenpairs",
    "GapBound",
    "LinearModelBound",
    "SpectralQuadrature",
    "classify",
    "classify_params",
    "dense_eigenvalues",
    "dense_jacobian",
    "dense_symmetric_eigenvalues",
    "descent_stability",
    "extreme_eigenpairs",
    "filter_normalized_direction",
    "gap_bound",
    "gradient_flow",
    "hutch_plus_plus",
    "linear_model_bound",
    "loss_slice",
    "norm_2_1",
    "smoothed_density",
    "spectral_quadrature",
    "xtrace",
]
