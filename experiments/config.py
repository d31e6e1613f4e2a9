"""Typed configuration of a training run: everything that its result depends on, and where it goes.

The command line is made from these classes; the docstrings of the fields are its help.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, get_args, get_type_hints

import tyro

from experiments.errors import SettingError, option
from experiments.json_file import Scalar, check_fields, check_kind
from experiments.models.rnn_lm import Initialisation
from experiments.models.wide_resnet import blocks_per_group
from experiments.regularizers import GaussNewton, Regularizer, describe_method, parse_method


def _typed_method(words: Sequence[str]) -> tuple[Regularizer, ...]:
    """Read a method from the command line.

    Raises:
        SettingError: If it is not understood.
    """
    try:
        return parse_method(words)
    except ValueError as error:
        raise SettingError(f"--method {' '.join(words)}: {error}") from error


Method: TypeAlias = Annotated[
    tuple[Regularizer, ...],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar="plain|NAME[:FIELD=VALUE,...]",
        instance_from_str=_typed_method,
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=describe_method,
    ),
]

Dtype: TypeAlias = Literal["float32", "bfloat16"]
OnDivergence: TypeAlias = Literal["stop", "skip", "restore"]

NUM_HEADS = 4
MESH_AXES = ("data", "model")
_LARGEST = 2**31 - 1  # of the integers that JAX computes with


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which images, and where they are."""

    dataset: Literal["digits", "cifar10", "cifar100"] = "digits"
    """Which data set; cifar10 and cifar100 are prepared by `python -m experiments data prepare`."""
    data_dir: Path | None = None
    """TFDS's data directory, for data sets that do not come with a package; by default TFDS's
    own, ~/tensorflow_datasets."""
    train_images: int | None = None
    """Take the first so many training images of CIFAR, those held out included; by default all."""
    test_images: int | None = None
    """Likewise for test images."""
    validation_size: int | None = None
    """Training images held out for validation; by default 1000 of CIFAR's. Digits have a fixed
    split with 200."""
    augmentation: Literal["none", "flip", "crop-flip"] = "none"
    """flip: a random mirror image. crop-flip: a random crop out of 4 pixels' padding as well."""
    label_noise: float = 0.0
    """Share of the training labels that are replaced by another class, the same ones in every run;
    validation and test labels stay."""

    def __post_init__(self) -> None:
        """Check the numbers, and that the data set depends on what is given.

        Raises:
            SettingError: If a number is out of its range, or digits are given one, or a place.
        """
        if not 0 <= self.label_noise <= 1:
            raise SettingError(f"--label-noise must be in [0, 1], not {self.label_noise}")
        for name, least in (("train_images", 1), ("test_images", 1), ("validation_size", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise SettingError(f"{option(name)} must be at least {least}, not {value}")
        fixed = {
            "train_images": "have a fixed split",
            "test_images": "have a fixed split",
            "validation_size": "have a fixed split with 200 validation images",
            "data_dir": "come with scikit-learn",
        }
        for name, reason in fixed.items():
            value = getattr(self, name)
            if self.dataset == "digits" and value is not None:
                raise SettingError(
                    f"{option(name)} must be left out for digits, which {reason}, not {value}"
                )


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Which text, and where it is."""

    dataset: Literal["pydoc", "wikitext2"] = "pydoc"
    """Which text. pydoc is Python's own reference by characters, wikitext2 is WikiText-2 by words,
    which is fetched by `python -m experiments data prepare`."""
    data_dir: Path | None = None
    """The directory with wikitext-2/train.txt, valid.txt and test.txt, or with these files
    themselves; by default ~/tensorflow_datasets, where the other data sets are."""
    train_tokens: int | None = None
    """Tokens of the training text, from its beginning, by default all of them. Words of WikiText-2
    that are not among them are <unk> everywhere, so that perplexities of different sizes do not
    compare."""
    evaluation_tokens: int | None = None
    """Tokens of the validation text and of the test text, each from its beginning; by default
    all."""
    length: int = 35
    """Tokens through which the loss is differentiated; the state before them is a constant."""

    def __post_init__(self) -> None:
        """Check the numbers, and that the text depends on what is given.

        Raises:
            SettingError: If a number is below 1, or pydoc is given a place.
        """
        for name in ("train_tokens", "evaluation_tokens", "length"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise SettingError(f"{option(name)} must be at least 1, not {number}")
        if self.dataset == "pydoc" and self.data_dir is not None:
            raise SettingError(
                "--data-dir must be left out for pydoc, which comes with Python, not "
                f"{self.data_dir}"
            )


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Which network."""

    network: Literal["digits-resnet", "resnet18", "wide-resnet", "convnet"] = "digits-resnet"
    """digits-resnet is for 8x8 images, resnet18 is the CIFAR form, wide-resnet is
    WRN-depth-width, convnet has six convolutions and no normalisation."""
    width: int = 8
    """Channels of the first stage, 64 for the full ResNet-18; of a wide-resnet the factor k by
    which it is wider than 16, 32 and 64 channels, 10 for WRN-28-10."""
    depth: int | None = None
    """Layers of a wide-resnet, 6n + 4; the other networks have a fixed depth."""
    dtype: Dtype = "float32"
    """What the layers compute in; weights, loss and estimate stay float32."""
    remat: bool = False
    """Whether the activations inside a block, or of a convnet's convolution, are computed again
    when its gradient is, which takes less memory and more time."""

    def __post_init__(self) -> None:
        """Check the sizes.

        Raises:
            SettingError: If one is out of its range, or does not belong to the network.
        """
        if self.width < 1:
            raise SettingError(f"--width must be at least 1, not {self.width}")
        if self.network == "wide-resnet":
            if self.depth is None:
                raise SettingError("a wide-resnet needs a --depth: 10, 16, 22, 28, ...")
            try:
                blocks_per_group(self.depth)
            except ValueError as error:
                raise SettingError(f"--{error}") from error  # it begins with the name
        elif self.depth is not None:
            raise SettingError(
                f"{self.network} has a fixed depth: leave out --depth {self.depth}, or take "
                "--network wide-resnet"
            )


@dataclasses.dataclass(frozen=True)
class LanguageModelConfig:
    """Which language model."""

    network: Literal["lstm", "gru", "transformer"] = "lstm"
    """Recurrent layers, or a pre-norm decoder."""
    width: int = 512
    """Size of the embeddings and of each recurrent layer's state; of the residual stream of a
    transformer."""
    num_layers: int = 2
    """Recurrent layers, or blocks of a transformer."""
    tied_embeddings: bool = False
    """Whether a recurrent model has one matrix for the embedding and the softmax."""
    initialisation: Initialisation | None = None
    """How the weights of a recurrent model are drawn. uniform: all of them from [-0.1, 0.1], as the
    paper says; the default. pytorch: those of the recurrent layers from [-1/sqrt(n), 1/sqrt(n)] for
    n units, the decoder's bias 0, as PyTorch's example has it. flax: each layer's own."""
    num_heads: int | None = None
    """Attention heads of a transformer, which divide the width; by default 4."""
    dtype: Dtype = "float32"
    """What the layers compute in; weights, loss and estimate stay float32."""
    remat: bool = False
    """Whether the activations inside a transformer's block are computed again when its
    gradient is, which takes less memory and more time."""

    def __post_init__(self) -> None:
        """Check the sizes.

        Raises:
            SettingError: If one is out of its range, or does not belong to the network.
        """
        for name in ("width", "num_layers"):
            if getattr(self, name) < 1:
                raise SettingError(f"{option(name)} must be at least 1, not {getattr(self, name)}")
        recurrent = self.network != "transformer"
        if recurrent and self.num_heads is not None:
            raise SettingError(
                f"--num-heads belongs to a transformer: leave it out for {self.network}"
            )
        if recurrent and self.remat:
            raise SettingError(f"--remat belongs to a transformer: leave it out for {self.network}")
        if not recurrent and (self.tied_embeddings or self.initialisation is not None):
            raise SettingError(
                "--tied-embeddings and --initialisation belong to lstm and gru: leave them out for "
                "a transformer"
            )
        if not recurrent and self.width % self.heads:
            raise SettingError(
                f"--num-heads must divide the --width {self.width}, not {self.heads}"
            )

    @property
    def heads(self) -> int:
        """Attention heads, the default filled in."""
        return NUM_HEADS if self.num_heads is None else self.num_heads

    @property
    def recurrent_initialisation(self) -> Initialisation:
        """How the weights of a recurrent model are drawn, the default filled in."""
        return "uniform" if self.initialisation is None else self.initialisation


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer and its schedule."""

    algorithm: Literal["sgd", "adam", "adahessian"] = "sgd"
    """Stochastic gradient descent with momentum, Adam, or AdaHessian: Adam with the diagonal of the
    Hessian of what is minimised, whose published learning rate is 0.15."""
    learning_rate: float = 0.05
    """Learning rate at the start."""
    schedule: Literal["cosine", "steps", "plateau"] = "cosine"
    """cosine: half a cosine to zero. steps: divided by 5 after 30, 60 and 80 % of the steps.
    plateau: divided by 4 after every epoch whose validation loss is not the lowest so far."""
    momentum: float = 0.9
    """Momentum; beta1 of Adam and AdaHessian."""
    weight_decay: float = 5e-4
    """L2 decay, added to the gradient of every parameter; of AdaHessian, as published, to the
    rescaled gradient."""
    clip_norm: float = 1.0
    """Bound on the global norm of the gradient, the penalty's part included; 0 is no bound."""
    accumulate: int = 1
    """Steps over whose batches the gradient is averaged before the weights change once."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            SettingError: If one is out of its range.
        """
        if not 0 < self.learning_rate < math.inf:
            raise SettingError(
                f"--learning-rate must be finite and above 0, not {self.learning_rate}"
            )
        if self.accumulate < 1:
            raise SettingError(f"--accumulate must be at least 1, not {self.accumulate}")
        if self.algorithm == "adahessian" and self.accumulate > 1:
            raise SettingError(
                f"--accumulate must be 1 with --algorithm adahessian, not {self.accumulate}: it "
                "takes the loss's Hessian, and only the loss of the last batch is at hand"
            )
        if not 0 <= self.momentum < 1:
            raise SettingError(f"--momentum must be in [0, 1), not {self.momentum}")
        for name in ("weight_decay", "clip_norm"):
            if not 0 <= getattr(self, name) < math.inf:
                raise SettingError(
                    f"{option(name)} must be finite and at least 0, not {getattr(self, name)}"
                )


@dataclasses.dataclass(frozen=True)
class DevicesConfig:
    """Over which devices the run is spread; results depend on it in their last digits alone."""

    mesh: str | None = None
    """data=8, or data=4,model=2: the batch is spread over the devices of the first axis, weights
    over those of the second; by default one device, or all devices with several processes."""
    distributed: bool = False
    """Whether this is one of several processes of the run, each started with this command. On
    Slurm and TPU pods that is all; on Kubernetes JAX also needs the package kubernetes and leave to
    read pods, jobs and services. Elsewhere the next three are needed."""
    coordinator: str | None = None
    """HOST:PORT of process 0."""
    num_processes: int | None = None
    """How many processes there are."""
    process_id: int | None = None
    """Which of them this is, from 0."""

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            SettingError: If they do not go together.
        """
        mesh_sizes(self.mesh)
        place = {
            "coordinator": self.coordinator,
            "num_processes": self.num_processes,
            "process_id": self.process_id,
        }
        missing = [name for name, value in place.items() if value is None]
        if len(missing) not in {0, len(place)}:
            raise SettingError(
                f"{', '.join(map(option, place))} go together, and "
                f"{' and '.join(map(option, missing))} is missing"
            )
        if not missing and not self.distributed:
            raise SettingError(f"{', '.join(map(option, place))} need --distributed")
        if self.coordinator is not None:
            host, _, port = self.coordinator.rpartition(":")
            if not host or not (port.isdecimal() and 0 < int(port) < 2**16):
                raise SettingError(f"--coordinator must be HOST:PORT, not {self.coordinator!r}")
        if self.num_processes is not None and self.process_id is not None:
            if self.num_processes < 1:
                raise SettingError(f"--num-processes must be at least 1, not {self.num_processes}")
            if not 0 <= self.process_id < self.num_processes:
                raise SettingError(
                    f"--process-id must be from 0 to {self.num_processes - 1}, not "
                    f"{self.process_id}"
                )


def mesh_sizes(mesh: str | None) -> dict[str, int]:
    """Read the sizes of a mesh's axes.

    Args:
        mesh: ``data=4,model=2`` for one.

    Returns:
        Sizes by the names of the axes; none for `None`.

    Raises:
        SettingError: If it is not understood.
    """
    sizes: dict[str, int] = {}
    for part in mesh.split(",") if mesh is not None else ():
        name, _, size = part.partition("=")
        if name not in MESH_AXES or name in sizes or not (size.isdecimal() and int(size) > 0):
            raise SettingError(
                "--mesh must be data=N or data=N,model=M with whole numbers of devices, not "
                f"{mesh!r}"
            )
        sizes[name] = int(size)
    if sizes and "data" not in sizes:
        raise SettingError(f"--mesh must have an axis data, 1 perhaps: data=1,{mesh}")
    return sizes


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One training run."""

    name: tyro.conf.Suppress[str] = "custom"
    """Name of the preset."""
    # A preset has one of the two tasks; the command line does not change from one to the other.
    data: tyro.conf.AvoidSubcommands[DataConfig | TextConfig] = DataConfig()
    model: tyro.conf.AvoidSubcommands[ModelConfig | LanguageModelConfig] = ModelConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    """The optimizer and its schedule."""
    method: Method = (GaussNewton(),)
    """How the run is regularized: plain, or one word per method such as
    seht-d:lam=1e-4,p=0.05 or seht-h:lam=1e-5,warmup_steps=200; docs/methods.md has them all."""
    epochs: int = 10
    """Passes over the training data."""
    batch_size: int = 64
    """Images per step; of text, the strands into which it is cut, read side by side. The rest of an
    epoch that does not fill a batch is left out."""
    seed: int = 0
    """Seed of initial weights, order of images, augmentation, dropout and probes."""
    reported: Literal["last", "best"] = "last"
    """Which weights the result is of: those after the last epoch, or those after the epoch with the
    lowest validation loss."""
    trace_examples: int = 1000
    """Training images, or windows of text, on which tr(H) and tr(G) are measured at the end; 0 is
    not at all."""
    trace_probes: int = 16
    """Random directions for that measurement."""
    log_every: int = 20
    """Steps between two lines of the log."""
    evaluate_every: int = 1
    """Epochs between two evaluations on the validation data; the last epoch is always evaluated."""
    on_divergence: OnDivergence = "stop"
    """What happens at a step whose loss, gradient or estimate is no finite number. stop: the run
    ends with an error, and the state before that step is kept. skip: the step changes nothing, and
    the next batch is taken. restore: the run goes back to its newest checkpoint, and goes on with
    other random numbers."""
    checkpoint_every: int = 0
    """Steps between two checkpoints; 0 is at the end of every epoch."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints are kept; one, when the run is finished."""
    keep_checkpoints_every: int = 0
    """Checkpoints of steps that are a multiple of it are kept for good; 0 is none."""
    devices: DevicesConfig = DevicesConfig()
    run_dir: Path | None = None
    """Where log, checkpoints and result go, and where an interrupted run is taken up again; by
    default runs/PRESET/METHOD-seedSEED, METHOD with those of its settings that are not the default
    ones."""

    @property
    def resolved_run_dir(self) -> Path:
        """The run directory, the default one filled in."""
        if self.run_dir is not None:
            return self.run_dir
        words = describe_method(self.method, defaults=False)
        method = "+".join(word.replace(":", "-") for word in words)
        return Path("runs") / self.name / f"{method}-seed{self.seed}"

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            SettingError: If one is out of its range, a method is named twice, or a network for
                images is to read text, or the other way round.
        """
        if isinstance(self.data, TextConfig) != isinstance(self.model, LanguageModelConfig):
            raise SettingError(
                f"the network {self.model.network} can not be trained on {self.data.dataset}: text "
                "needs a language model, images a network for images"
            )
        names = [part.name for part in self.method]
        for name in names:
            if names.count(name) > 1:
                raise SettingError(f"--method names {name!r} more than once")
        minima = {
            "epochs": 1,
            "batch_size": 1,
            "trace_examples": 0,
            "trace_probes": 2,
            "log_every": 1,
            "evaluate_every": 1,
            "checkpoint_every": 0,
            "keep_checkpoints": 1,
            "keep_checkpoints_every": 0,
            "seed": 0,
        }
        for name, minimum in minima.items():
            if getattr(self, name) < minimum:
                raise SettingError(
                    f"{option(name)} must be at least {minimum}, not {getattr(self, name)}"
                )
            if getattr(self, name) > _LARGEST:
                raise SettingError(
                    f"{option(name)} must be at most {_LARGEST}, not {getattr(self, name)}"
                )


_NO_INFLUENCE = ("run_dir", "data.data_dir", "keep_checkpoints", "keep_checkpoints_every")
_NO_INFLUENCE_IN = "devices."


def to_json(config: TrainConfig) -> dict[str, Any]:
    """Write down all settings that a result depends on.

    The places (``run_dir``, ``data_dir``) are left out: a run may be moved. So are the devices, on
    others of which a run may be gone on with, and which checkpoints are kept.

    Args:
        config: The configuration.

    Returns:
        A flat dictionary of JSON values, ``"optimizer.momentum": 0.9`` for one.
    """
    flat: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name == "method":
            flat[field.name] = describe_method(value)
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            settings = dataclasses.asdict(value)
            flat |= {f"{field.name}.{name}": setting for name, setting in settings.items()}
        else:
            flat[field.name] = value
    flat = {
        name: value
        for name, value in flat.items()
        if name not in _NO_INFLUENCE and not name.startswith(_NO_INFLUENCE_IN)
    }
    return json.loads(json.dumps(flat))


def deciding_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out how often is logged, evaluated and saved, if that may change in the midst of a run.

    Where a run that diverges goes back to its newest checkpoint, how often one is written decides
    from where it goes on, so that it stays; and how often the network is evaluated, where the best
    epoch is kept or the learning rate follows the validation loss.

    Args:
        settings: What `to_json` or `complete_settings` returned, and perhaps more.

    Returns:
        Those on which weights and result depend.
    """
    free = {"log_every"}
    if settings["on_divergence"] != "restore":
        free.add("checkpoint_every")
    if settings["reported"] != "best" and settings["optimizer.schedule"] != "plateau":
        free.add("evaluate_every")
    return {name: value for name, value in settings.items() if name not in free}


def check_settings(stored: Any) -> dict[str, Any]:
    """Check that a value from a file can be what `to_json` returned, now or in an earlier version.

    Args:
        stored: A JSON value.

    Returns:
        The settings.

    Raises:
        ValueError: If it is something else.
    """
    check_kind(stored, dict[str, Scalar | list[Scalar]], "the settings")
    fields = {"data.dataset": str, "method": list[str], "epochs": int}
    return check_fields(stored, fields, "the settings")


def complete_settings(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Bring settings that were written down by an earlier version up to this one.

    A setting that did not exist then has its default, so that a study that takes weeks can be gone
    on with after an option has been added.

    Args:
        stored: What `to_json` returned then, and perhaps more.

    Returns:
        The settings, with all that `to_json` writes.
    """
    complete = to_json(_defaults_for(stored)) | dict(stored)
    if complete["data.dataset"] == "digits":
        complete["data.validation_size"] = None  # a number was written down, and ignored
    try:
        complete["method"] = describe_method(parse_method(complete["method"]))
    except ValueError:
        return complete  # of a method that is no longer there; it differs from any wanted now
    return complete


def from_json(stored: Mapping[str, Any]) -> TrainConfig:
    """Build the configuration that `to_json` wrote down, now or in an earlier version.

    Args:
        stored: What it returned, and perhaps ``data.checksum``.

    Returns:
        The configuration; places, devices and the number of kept checkpoints have their defaults.

    Raises:
        SettingError: If a setting is out of its range.
        ValueError: If one is not known, or of another type.
    """
    settings = complete_settings(stored)
    defaults = _defaults_for(stored)
    unknown = sorted(settings.keys() - to_json(defaults).keys() - {"data.checksum"})
    if unknown:
        raise ValueError(f"{unknown[0]!r} is no setting of a run on {settings['data.dataset']}")
    settings["method"] = parse_method(settings["method"])
    return _replaced(defaults, settings, prefix="")


def _replaced(config: Any, settings: Mapping[str, Any], prefix: str) -> Any:
    """Replace the fields of a configuration that have settings, and those of its parts.

    Raises:
        SettingError: If a setting is out of its range.
        ValueError: If one is of another type.
    """
    kinds = get_type_hints(type(config))
    changes = {}
    for field in dataclasses.fields(config):
        name, value = f"{prefix}{field.name}", getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            changes[field.name] = _replaced(value, settings, f"{name}.")
        elif name in settings:
            changes[field.name] = check_kind(settings[name], kinds[field.name], repr(name))
    return dataclasses.replace(config, **changes)


def _defaults_for(stored: Mapping[str, Any]) -> TrainConfig:
    """Choose the defaults by the task: settings of images are none of text's."""
    if stored["data.dataset"] in get_args(get_type_hints(TextConfig)["dataset"]):
        return TrainConfig(data=TextConfig(), model=LanguageModelConfig())
    return TrainConfig()
