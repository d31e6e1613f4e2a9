r"""A model of the time of a training step on many accelerators, plain and penalised.

It predicts, from what was measured on few devices, for machines that nobody here has; all that it
assumes is an argument. With data parallelism, weak scaling (each device has its share of the batch,
whatever their number n) and one step after the other,

$$T = \frac{r F}{u} + \sum_{c} T_c, \qquad
    T_\text{all-reduce} = 2 \lceil \log_2 n \rceil \alpha + 2\, \frac{n - 1}{n} \frac{S}{B},$$

F being the operations of a plain step on one device, u what the device does of them in a second, r
the measured ratio of the penalised to the plain step on one device, S the bytes that are reduced, B
the bandwidth of a device's link to the others and alpha the latency of one message over it. A
gather or a scatter takes half of an all-reduce. A share of the time for params and gradients may be
hidden behind the computation; statistics of the batch are waited for.

The form of the collectives' times is that of recursive halving and doubling; a ring has the same
bandwidth term and a latency that grows with n (Thakur, Rabenseifner and Gropp, *Optimization of
Collective Communication Operations in MPICH*, 2005).
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.measure import PLAIN
from benchmarks.report import environment, grid_table, new_report_path, write_report

GAUSS_NEWTON, HESSIAN = "Gauss-Newton SEHT-H", "SEHT-H"
DRAW_PROBABILITIES = (0.01, 0.05)


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Accelerators and what joins them.

    Attributes:
        num_devices: How many there are.
        flops: Peak operations per second of each.
        bandwidth: Bytes per second that each sends and receives at once.
        latency: Seconds from one to another.
        overlap: The share of the communication of params and gradients that is hidden behind the
            computation, as far as that is long enough.
    """

    num_devices: int
    flops: float
    bandwidth: float
    latency: float
    overlap: float


@dataclasses.dataclass(frozen=True)
class Workload:
    """A plain training step of one device.

    Attributes:
        name: What is trained.
        num_params: How many params it has.
        num_layers: How many layers SEHT-D draws from.
        flops: Operations of the plain step on the device's part of the batch.
        utilisation: The share of the peak that the device reaches.
        fully_sharded: Whether params are sharded over the devices, and gathered, once for the
            forward pass and once for the backward one, and their gradients scattered.
        num_norms: How many layers normalise by statistics of the global batch.
        num_channels: How many channels these have together.
        compute_ratios: The time of a penalised step in plain ones, by the name of the dense form.
        waits: By the name of the dense form, how many more reductions of little data a penalised
            step waits for than the plain one, one after the other.
    """

    name: str
    num_params: int
    num_layers: int
    flops: float
    utilisation: float
    fully_sharded: bool
    num_norms: int
    num_channels: int
    compute_ratios: Mapping[str, float]
    waits: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class Step:
    """What a step costs in terms of the plain one.

    Attributes:
        name: Its name.
        compute_ratio: Its computation, in plain steps.
        streams: How many streams pass a normalisation, for each of which it reduces statistics.
        waits: How many more reductions of little data it waits for.
        gathered_bytes: Bytes in which a sharded param is gathered. The products of the exact
            Hessian are evaluated at sums, which are formed in float32.
    """

    name: str
    compute_ratio: float = 1.0
    streams: float = 1.0
    waits: float = 0.0
    gathered_bytes: float = 2.0


@dataclasses.dataclass(frozen=True)
class ClusterConfig:
    """What the prediction assumes; the defaults are an H100's bfloat16 and 400 Gbit/s a device."""

    devices: tuple[int, ...] = (8, 64, 512, 4096)
    """Numbers of accelerators."""
    flops: float = 989e12
    """Peak operations per second of an accelerator."""
    bandwidth: float = 50e9
    """Bytes per second of its link to the others, in each direction."""
    latency: float = 5e-6
    """Seconds that a message takes."""
    overlap: float = 0.0
    """Share of the communication of params and gradients that the computation hides."""
    images_per_device: int = 64
    """Images of 224 x 224 of the ResNet-50's batch on a device."""
    resnet_utilisation: float = 0.2
    """Share of the peak that the ResNet-50 reaches."""
    tokens_per_device: int = 16_384
    """Tokens of the transformer's batch on a device."""
    transformer_utilisation: float = 0.4
    """Share of the peak that the transformer reaches."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: If one is out of its range.
        """
        if not self.devices or min(self.devices) < 1:
            raise ValueError(f"devices must be numbers of at least 1, not {self.devices}")
        for name in ("flops", "bandwidth", "images_per_device", "tokens_per_device"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")
        for name in ("resnet_utilisation", "transformer_utilisation"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in (0, 1], not {getattr(self, name)}")
        if self.latency < 0:
            raise ValueError(f"latency must be at least 0, not {self.latency}")
        if not 0 <= self.overlap <= 1:
            raise ValueError(f"overlap must be in [0, 1], not {self.overlap}")


def run_cluster(config: ClusterConfig, console: Console) -> Path:
    """Predict, show a table for each workload, and write a JSON file.

    Args:
        config: What the prediction assumes.
        console: Where the tables are shown.

    Returns:
        The path of the file.
    """
    predictions: list[dict[str, Any]] = []
    for workload in workloads(config):
        rows = []
        plain, *penalised = steps(workload)
        for num_devices in config.devices:
            cluster = Cluster(
                num_devices, config.flops, config.bandwidth, config.latency, config.overlap
            )
            baseline = step_seconds(workload, plain, cluster)
            seconds = {step.name: step_seconds(workload, step, cluster) for step in penalised}
            ratios = {name: each / baseline for name, each in seconds.items()}
            predictions.append(
                {
                    "workload": workload.name,
                    "num_devices": num_devices,
                    "seconds": {plain.name: baseline, **seconds},
                    "ratios": ratios,
                }
            )
            cells = [f"{1e3 * baseline:.4g}", *(f"{ratio:.2f}x" for ratio in ratios.values())]
            rows.append((f"{num_devices:,}", cells))
        columns = ["plain ms", *(step.name for step in penalised)]
        console.print(grid_table(f"{workload.name} (a prediction)", "devices", columns, rows))
    path = new_report_path("cluster", "prediction")
    write_report(
        path,
        {
            "benchmark": "cluster",
            "assumptions": dataclasses.asdict(config),
            "workloads": [dataclasses.asdict(workload) for workload in workloads(config)],
            "environment": environment(),
            "predictions": predictions,
        },
    )
    console.print(f"All numbers: {path}", highlight=False, soft_wrap=True)
    return path


def workloads(config: ClusterConfig) -> list[Workload]:
    """Describe the networks that the prediction is for.

    Args:
        config: The batch of a device, and the utilisation.

    Returns:
        The workloads.
    """
    resnet = Workload(
        name="ResNet-50, statistics of the global batch",
        num_params=25_557_032,
        num_layers=107,  # 53 convolutions, as many normalisations, a dense layer
        flops=3 * 8.2e9 * config.images_per_device,  # 4.1e9 multiply-adds forward
        utilisation=config.resnet_utilisation,
        fully_sharded=False,
        num_norms=53,
        num_channels=26_560,
        # Of the ResNet-18 in docs/performance.md.
        compute_ratios={GAUSS_NEWTON: 2.1, HESSIAN: 3.1},
        # Three normalisations in the compiled step: 13 collectives, 13 and 22.
        waits={GAUSS_NEWTON: 0, HESSIAN: 53 * 3},
    )
    size, blocks, vocabulary, length = 2048, 18, 32_000, 2048
    in_blocks = blocks * 12 * size**2
    head = vocabulary * size
    flops_per_token = 6 * (in_blocks + head) + 12 * blocks * size * length
    transformer = Workload(
        name="Transformer of a billion params, fully sharded",
        num_params=in_blocks + 2 * head,
        num_layers=6 * blocks + 4,
        flops=flops_per_token * config.tokens_per_device,
        utilisation=config.transformer_utilisation,
        fully_sharded=True,
        num_norms=0,  # LayerNorm's statistics are those of an example
        num_channels=0,
        # Of the transformer in docs/performance.md.
        compute_ratios={GAUSS_NEWTON: 2.7, HESSIAN: 4.6},
        # The norms of the factors of each product, in the compiled step: 5 for one block.
        waits={GAUSS_NEWTON: 0, HESSIAN: 5 * blocks},
    )
    alone = dataclasses.replace(
        resnet,
        name="ResNet-50, statistics of each device",
        num_norms=0,
        num_channels=0,
        waits={GAUSS_NEWTON: 0, HESSIAN: 0},  # the norms are those of the device's activations
    )
    return [resnet, alone, transformer]


def steps(workload: Workload) -> list[Step]:
    """List the steps that are compared.

    Args:
        workload: What is trained.

    Returns:
        The plain step, and the penalised ones. One of SEHT-D is the expectation over its draws.
    """
    dense = [
        Step(GAUSS_NEWTON, workload.compute_ratios[GAUSS_NEWTON], 2, workload.waits[GAUSS_NEWTON]),
        Step(HESSIAN, workload.compute_ratios[HESSIAN], 3, workload.waits[HESSIAN], 4),
    ]
    sparse = [_sparse(dense[1], p, workload.num_layers) for p in DRAW_PROBABILITIES]
    return [Step(PLAIN), *dense, *sparse]


def penalised_share(p: float, num_layers: int) -> float:
    r"""Return the expected share of a network that is behind the first layer that SEHT-D draws.

    $$1 - \frac{(1 - p) (1 - (1 - p)^N)}{N p}$$

    Args:
        p: The probability of a layer.
        num_layers: The number N of layers, each of which is taken to cost the same.

    Returns:
        The share; that part of a step costs what it does in SEHT-H, the rest what it does in a
        plain step.
    """
    undrawn = 1 - p
    before_the_first = math.fsum(undrawn**i for i in range(1, num_layers + 1))
    return 1 - before_the_first / num_layers


def step_seconds(workload: Workload, step: Step, cluster: Cluster) -> float:
    """Predict the time of a step.

    Args:
        workload: What is trained.
        step: The step.
        cluster: The accelerators.

    Returns:
        Seconds.
    """
    compute = step.compute_ratio * workload.flops / (cluster.flops * workload.utilisation)
    bulk = _bulk_seconds(workload, step, cluster)
    return compute + bulk - min(cluster.overlap * bulk, compute) + _waiting(workload, step, cluster)


def all_reduce_seconds(num_bytes: float, cluster: Cluster) -> float:
    """Predict the time of an all-reduce.

    Args:
        num_bytes: The bytes that are reduced.
        cluster: The accelerators.

    Returns:
        Seconds.
    """
    return 2 * gather_seconds(num_bytes, cluster)


def gather_seconds(num_bytes: float, cluster: Cluster) -> float:
    """Predict the time of an all-gather, or of a reduce-scatter.

    Args:
        num_bytes: The bytes that are gathered or scattered.
        cluster: The accelerators.

    Returns:
        Seconds.
    """
    rounds = math.ceil(math.log2(cluster.num_devices))
    share = (cluster.num_devices - 1) / cluster.num_devices
    return rounds * cluster.latency + share * num_bytes / cluster.bandwidth


def _bulk_seconds(workload: Workload, step: Step, cluster: Cluster) -> float:
    """Params and gradients, each of which every form communicates as often as a plain step."""
    gradient_bytes = 4 * workload.num_params
    if not workload.fully_sharded:
        return all_reduce_seconds(gradient_bytes, cluster)
    gathers = 2 * gather_seconds(step.gathered_bytes * workload.num_params, cluster)
    return gathers + gather_seconds(gradient_bytes, cluster)


_STATISTICS = 4  # mean and variance, and the cotangents of both


def _waiting(workload: Workload, step: Step, cluster: Cluster) -> float:
    """Statistics, and norms of a few bytes, which the next operation waits for."""
    num_reductions = _STATISTICS * workload.num_norms + step.waits
    num_bytes = 4 * _STATISTICS * step.streams * workload.num_channels
    latency = num_reductions * all_reduce_seconds(0, cluster)
    return latency + all_reduce_seconds(num_bytes, cluster) - all_reduce_seconds(0, cluster)


def _sparse(dense: Step, p: float, num_layers: int) -> Step:
    share = penalised_share(p, num_layers)
    plain = Step(PLAIN)
    fields = ("compute_ratio", "streams", "waits", "gathered_bytes")
    return Step(
        f"SEHT-D, p = {p}",
        *((1 - share) * getattr(plain, name) + share * getattr(dense, name) for name in fields),
    )
