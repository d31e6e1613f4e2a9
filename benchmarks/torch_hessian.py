"""The residual network in PyTorch with the same weights as ours, and its curvature by PyHessian."""

# PyTorch and PyHessian are in the extra `bench` alone, and type checking goes without them.
# pyright: reportMissingImports=false

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from pyhessian import hessian
from torch import Tensor, nn

from benchmarks.torch_peer import resnet
from experiments.models.resnet import ResNet


def torch_resnet(model: ResNet, variables: Mapping[str, Any], in_channels: int) -> nn.Module:
    """Build a network with our weights and running statistics, for evaluation.

    Args:
        model: Our network.
        variables: Its params and BatchNorm statistics, `{"params": ..., "batch_stats": ...}`.
        in_channels: Channels of the images.

    Returns:
        PyTorch's network, in evaluation mode.
    """
    network = resnet(model.stage_sizes, model.width, in_channels)
    state = dict(_torch_state(model, variables["params"], variables["batch_stats"]))
    counts = {
        name: value
        for name, value in network.state_dict().items()
        if name.endswith("num_batches_tracked")  # which evaluation does not look at
    }
    network.load_state_dict(state | counts)
    return network.eval()


class PyHessian:
    """PyHessian on a data set.

    The published version 0.1 reads the eigenvalues of Lanczos' tridiagonal matrix with `torch.eig`,
    which PyTorch 2 has no more. `density` puts it back for this call, by `torch.linalg.eigh`: the
    matrix is symmetric.

    Attributes:
        num_products: How many Hessian-vector products over the data set it has made.
    """

    def __init__(
        self,
        network: nn.Module,
        images: Float[np.ndarray, "samples height width channels"],
        labels: Int[np.ndarray, " samples"],
        batch_size: int,
    ) -> None:
        inputs = torch.tensor(np.moveaxis(images, -1, 1).copy())
        targets = torch.tensor(labels, dtype=torch.long)
        batches = list(
            zip(inputs.split(batch_size), targets.split(batch_size), strict=True),
        )
        self.num_products = 0
        self._hessian = hessian(
            network, nn.CrossEntropyLoss(), dataloader=batches, cuda=inputs.is_cuda
        )
        product = self._hessian.dataloader_hv_product

        def counted(v: Sequence[Tensor]) -> Any:  # PyHessian's name for the direction
            self.num_products += 1
            return product(v)

        self._hessian.dataloader_hv_product = counted

    def top_eigenvalue(self, seed: int, max_products: int, tolerance: float) -> float:
        """Compute the eigenvalue of largest magnitude, by power iteration.

        Args:
            seed: For the first vector.
            max_products: The number of products, at most.
            tolerance: It stops where the relative change is less.

        Returns:
            The eigenvalue.
        """
        torch.manual_seed(seed)
        values, _ = _quietly(
            lambda: self._hessian.eigenvalues(maxIter=max_products, tol=tolerance, top_n=1)
        )
        return values[0]

    def trace_samples(self, seed: int, num_probes: int) -> list[float]:
        """Estimate the trace by Hutchinson's method.

        Args:
            seed: For the probes.
            num_probes: The number of probes.

        Returns:
            One sample for each.
        """
        torch.manual_seed(seed)
        # It would stop where two means in a row are alike, which is no measure of their error; and
        # after two probes where their mean is negative, whatever tolerance is not negative.
        return _quietly(lambda: self._hessian.trace(maxIter=num_probes, tol=-math.inf))

    def quadrature(
        self, seed: int, num_probes: int, num_products: int
    ) -> tuple[Float[np.ndarray, "probes nodes"], Float[np.ndarray, "probes nodes"]]:
        """Estimate the spectral density by stochastic Lanczos quadrature.

        Args:
            seed: For the probes.
            num_probes: The number of probes.
            num_products: The number of products for each.

        Returns:
            Nodes and weights.
        """
        torch.manual_seed(seed)
        torch.eig = _symmetric_eig
        nodes, weights = _quietly(lambda: self._hessian.density(iter=num_products, n_v=num_probes))
        return np.asarray(nodes), np.asarray(weights)


def _symmetric_eig(matrix: Tensor, *, eigenvectors: bool) -> tuple[Tensor, Tensor]:
    """Stand in for `torch.eig`, whose eigenvalues have real and imaginary parts in two columns.

    Raises:
        ValueError: If only the eigenvalues are wanted, which PyHessian does not want.
    """
    if not eigenvectors:
        raise ValueError(f"eigenvectors must be True, as PyHessian has it, not {eigenvectors}")
    values, vectors = torch.linalg.eigh(matrix)
    return torch.stack([values, torch.zeros_like(values)], dim=1), vectors


def _quietly(function: Callable[[], Any]) -> Any:
    """Call a function without PyTorch's warning of a cycle, which PyHessian breaks by itself."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Using backward\\(\\) with create_graph=True")
        return function()


def _torch_state(
    model: ResNet, params: Mapping[str, Any], statistics: Mapping[str, Any]
) -> Iterator[tuple[str, Tensor]]:
    """List the weights and statistics by the names that PyTorch's network has for them."""
    yield "features.0.weight", _kernel(params["stem_conv"])
    yield from _norm("features.1", params["stem_norm"], statistics["stem_norm"])
    blocks = [
        f"stage{stage + 1}_block{block + 1}"
        for stage, num_blocks in enumerate(model.stage_sizes)
        for block in range(num_blocks)
    ]
    names = {"shortcut_conv": "shortcut.0", "shortcut_norm": "shortcut.1"}
    for i, block in enumerate(blocks, start=3):
        for name, layer in params[block].items():
            prefix = f"features.{i}.{names.get(name, name)}"
            if "kernel" in layer:
                yield f"{prefix}.weight", _kernel(layer)
            else:
                yield from _norm(prefix, layer, statistics[block][name])
    yield "head.weight", _tensor(params["head"]["kernel"]).T
    yield "head.bias", _tensor(params["head"]["bias"])


def _norm(
    prefix: str, layer: Mapping[str, Any], statistics: Mapping[str, Any]
) -> Iterator[tuple[str, Tensor]]:
    yield f"{prefix}.weight", _tensor(layer["scale"])
    yield f"{prefix}.bias", _tensor(layer["bias"])
    yield f"{prefix}.running_mean", _tensor(statistics["mean"])
    yield f"{prefix}.running_var", _tensor(statistics["var"])


def _kernel(layer: Mapping[str, Any]) -> Tensor:
    return _tensor(layer["kernel"]).permute(3, 2, 0, 1)


def _tensor(array: Any) -> Tensor:
    return torch.tensor(np.array(array))
