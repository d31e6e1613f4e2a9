"""All numbers of the study: settings, methods, strengths, seeds, and what is measured.

`stages.py` says what is done with them; `results/study/PROTOCOL.md` why they are these.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.config import (
    DataConfig,
    LanguageModelConfig,
    ModelConfig,
    OptimizerConfig,
    TextConfig,
    TrainConfig,
)
from experiments.regularizers import (
    NSO,
    SAM,
    CalibratedGaussNewton,
    ConfidencePenalty,
    Cutout,
    Dropout,
    GaussNewton,
    LabelSmoothing,
    Mixup,
    Regularizer,
    SehtD,
    SehtH,
)

PLAIN = "Plain"
EVERY = 10
P = 0.05
BOUND = 50.0
AS_IN_THE_PAPER = ("SEHT-H", "SEHT-D")
CHEAP = (
    "Bounded SEHT-D",
    "Gauss-Newton SEHT-D",
    "Lazy Gauss-Newton SEHT-H",
    "Lazy Gauss-Newton SEHT-D",
)


@dataclasses.dataclass(frozen=True)
class Method:
    """A method with one number for its strength.

    Attributes:
        label: Its name.
        parts: The regularizers, which come after those of the setting.
        strength: The number: a regularizer and its field, ``"sam.rho"``.
        values: The strengths that are tried.
    """

    label: str
    parts: tuple[Regularizer, ...]
    strength: str
    values: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Setting:
    """Data and a network, on which the methods are compared.

    Attributes:
        name: Its name.
        title: What it is, for the report.
        base: Plain training; tuning changes it.
        plain_grid: The values of plain training that are tried, by setting; all combinations.
        methods: The methods that are compared with plain training.
        margin: How much worse than the rival a method may be, and still count as no worse, in the
            test figure by which methods are compared (accuracy as a part of 1).
        selected_by: The validation figure by whose mean all choices are made.
        conditions: Changes of the setting by name, each the values of settings by theirs.
    """

    name: str
    title: str
    base: TrainConfig
    plain_grid: Mapping[str, Sequence[Any]]
    methods: tuple[Method, ...]
    margin: float
    selected_by: str = "validation_accuracy"
    conditions: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Measurement:
    """How the networks that are tested are measured.

    Attributes:
        examples: Training images, or windows of text, on which curvature is measured.
        batch_size: How many of them are in memory at a time.
        trace_probes: Samples of tr(H) and of tr(G), each with a random vector for every batch.
        eigenvalue_examples: Training examples of the largest eigenvalue of H.
        eigenvalue_products: Products with H for it.
        calibration_bins: Bins of the expected calibration error.
    """

    examples: int = 512
    batch_size: int = 128
    trace_probes: int = 8
    eigenvalue_examples: int = 256
    eigenvalue_products: int = 12
    calibration_bins: int = 15


@dataclasses.dataclass(frozen=True)
class Protocol:
    """The study.

    Attributes:
        settings: Where the methods are compared.
        tuning_seeds: Seeds of the runs by which settings are chosen.
        finalist_seeds: Seeds of the runs that are tested; no tuning seed is among them.
        condition_seeds: Seeds of the runs under other conditions.
        rival: Label of the method that is always among the finalists beside plain training and the
            recommended one.
        recommended: Label of the recommended form.
        groups: Labels of methods of one kind; the best of each kind by validation is a finalist.
        num_others: How many of the other methods are finalists, the best by validation.
        measurement: How tested networks are measured.
    """

    settings: tuple[Setting, ...]
    tuning_seeds: tuple[int, ...] = (100, 101)
    finalist_seeds: tuple[int, ...] = tuple(range(10))
    condition_seeds: tuple[int, ...] = (0, 1, 2)
    rival: str = "SAM"
    recommended: str = "Gauss-Newton SEHT-H"
    groups: tuple[tuple[str, ...], ...] = (AS_IN_THE_PAPER, CHEAP)
    num_others: int = 1
    measurement: Measurement = Measurement()

    def __post_init__(self) -> None:
        """Check that choices can not be made on runs that are tested.

        Raises:
            ValueError: If a seed serves both, or two settings or methods have one name.
        """
        tested = {*self.finalist_seeds, *self.condition_seeds}
        shared = sorted(tested & set(self.tuning_seeds))
        if shared:
            raise ValueError(f"tuning_seeds and seeds of tested runs share {shared}")
        for names in (
            [setting.name for setting in self.settings],
            *([PLAIN, *(m.label for m in setting.methods)] for setting in self.settings),
        ):
            if len(set(names)) < len(names):
                raise ValueError(f"two settings or methods have one name: {', '.join(names)}")


_FOR_EVERYTHING = (
    Method("Label smoothing", (LabelSmoothing(),), "label-smoothing.weight", (0.03, 0.1, 0.3, 1.0)),
    Method(
        "Confidence penalty",
        (ConfidencePenalty(),),
        "confidence-penalty.weight",
        (0.03, 0.1, 0.3, 1.0),
    ),
    Method("SAM", (SAM(),), "sam.rho", (0.01, 0.03, 0.1, 0.3)),
    Method("NSO", (NSO(),), "nso.sigma", (0.003, 0.01, 0.02, 0.04)),
    Method("SEHT-H", (SehtH(),), "seht-h.lam", (1e-7, 1e-6, 1e-5, 1e-4)),
    Method(
        "SEHT-D",
        (SehtD(p=P, rescale=False),),
        "seht-d.lam",
        # SEHT-D multiplies the trace with p 2p in the mean: these are SEHT-H's, over that.
        (2e-5, 2e-4, 2e-3, 2e-2),
    ),
    Method("Bounded SEHT-H", (SehtH(bound=BOUND),), "seht-h.lam", (1e-4, 1e-3, 1e-2, 1e-1)),
    Method("Bounded SEHT-D", (SehtD(p=P, bound=BOUND),), "seht-d.lam", (1e-4, 1e-3, 1e-2, 1e-1)),
    Method("Gauss-Newton SEHT-H", (GaussNewton(),), "gauss-newton.strength", (0.06, 0.2, 0.6, 2.0)),
    Method(
        "Lazy Gauss-Newton SEHT-H",
        (GaussNewton(every=EVERY),),
        "gauss-newton.strength",
        (0.3, 1.0, 3.0, 10.0),
    ),
    Method(
        "Gauss-Newton SEHT-D",
        (CalibratedGaussNewton(p=P),),
        "gauss-newton-calibrated.initial_penalty",
        (0.003, 0.01, 0.03, 0.1),
    ),
    Method(
        "Lazy Gauss-Newton SEHT-D",
        (CalibratedGaussNewton(p=P, every=EVERY),),
        "gauss-newton-calibrated.initial_penalty",
        (0.03, 0.1, 0.3, 1.0),
    ),
)
_FOR_IMAGES = (
    Method("Cutout", (Cutout(),), "cutout.size", (4, 8, 12, 16)),
    Method("Mixup", (Mixup(),), "mixup.alpha", (0.1, 0.2, 0.5, 1.0)),
)

_IMAGES = TrainConfig(
    data=DataConfig(
        dataset="cifar10",
        train_images=10_000,
        validation_size=8_000,  # 2,000 are trained on
        test_images=2_000,
        augmentation="crop-flip",
    ),
    model=ModelConfig(network="resnet18", width=8),
    optimizer=OptimizerConfig(learning_rate=0.05, weight_decay=5e-4, clip_norm=5.0),
    method=(),
    epochs=60,
    batch_size=32,
    trace_examples=0,  # measured by the study itself
    evaluate_every=20,  # 8,000 images at every epoch would take longer than training
    checkpoint_every=620,
)
_CONVNET = dataclasses.replace(
    _IMAGES,
    # 1,000 are trained on, as they are: so small a network does not learn more of them by heart.
    data=dataclasses.replace(_IMAGES.data, validation_size=9_000, augmentation="none"),
    model=ModelConfig(network="convnet", width=8),
)
_TEXT = TrainConfig(
    data=TextConfig(dataset="wikitext2", train_tokens=25_000, evaluation_tokens=50_000),
    model=LanguageModelConfig(network="lstm", width=32, num_layers=2),
    optimizer=OptimizerConfig(learning_rate=20.0, momentum=0.0, weight_decay=0.0, clip_norm=0.25),
    method=(Dropout(rate=0.2),),
    epochs=32,
    batch_size=20,
    trace_examples=0,
    evaluate_every=16,
)

_IMAGE_GRID = {
    "optimizer.learning_rate": (0.007, 0.02, 0.06),
    "optimizer.weight_decay": (1e-3, 5e-3, 2e-2),
}
_CONDITIONS = {
    "label noise 20 %": {"data.label_noise": 0.2},
    "label noise 40 %": {"data.label_noise": 0.4},
    # As many steps as with 2,000.
    "1,000 images": {"data.validation_size": 9_000, "epochs": 120},
    "batch size 128": {"batch_size": 128},
    "width 16": {"model.width": 16},
    "without augmentation": {"data.augmentation": "none"},
}

PROTOCOL = Protocol(
    settings=(
        Setting(
            "images",
            "CIFAR-10, ResNet-18 of width 8",
            _IMAGES,
            _IMAGE_GRID,
            (*_FOR_EVERYTHING, *_FOR_IMAGES),
            margin=0.01,
            conditions=_CONDITIONS,
        ),
        Setting(
            "convnet",
            "CIFAR-10, a network without normalisation",
            _CONVNET,
            _IMAGE_GRID,
            (*_FOR_EVERYTHING, *_FOR_IMAGES),
            margin=0.01,
        ),
        Setting(
            "text",
            "WikiText-2, LSTM",
            _TEXT,
            {
                "optimizer.learning_rate": (20.0, 40.0, 80.0),
                "optimizer.weight_decay": (3e-5, 1e-4, 3e-4),
            },
            _FOR_EVERYTHING,
            margin=5.0,
            selected_by="validation_perplexity",
        ),
    )
)
