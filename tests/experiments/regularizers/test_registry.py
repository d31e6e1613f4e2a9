"""Methods as text, and what all of them have in common."""

import dataclasses
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest

from experiments.config import ModelConfig, TrainConfig
from experiments.models.build import NETWORKS
from experiments.models.dropblock import DropBlock
from experiments.regularizers import (
    SAM,
    LinBreg,
    Lookahead,
    SehtD,
    SehtH,
    describe_method,
    parse_method,
)
from experiments.regularizers.registry import REGULARIZERS
from experiments.tasks.classification import epoch_order
from experiments.training.checkpoint import Checkpoints
from experiments.training.loop import build_experiment

# Strong enough to show within two steps.
WORDS = {
    "dropout": "dropout",
    "dropblock": "dropblock:block_size=3",
    "jacobian": "jacobian:lam=1",
    "confidence-penalty": "confidence-penalty",
    "label-smoothing": "label-smoothing",
    "cutout": "cutout:size=4",
    "mixup": "mixup",
    "lookahead": "lookahead",
    "sam": "sam",
    "nso": "nso:sigma=0.1",
    "sankar-full": "sankar-full:gamma=1e-2,num_probes=1",
    "sankar-middle": "sankar-middle:gamma=1e-2,num_probes=1",
    "linbreg": "linbreg:initial_density=0.5",
    "adabreg": "adabreg:initial_density=0.5",
    "seht-d": "seht-d:lam=1e-2,p=1.0,p_entries=0.5",
    "seht-h": "seht-h:lam=1e-2",
    "seht-share": "seht-share:curvature=hessian",
    "gauss-newton": "gauss-newton",
    "gauss-newton-calibrated": "gauss-newton-calibrated:initial_penalty=1",
}


class Tiny(nn.Module):
    """A network that compiles fast and takes the arguments that methods set."""

    num_classes: int
    width: int
    dropout_rate: float = 0.0
    drop_block_size: int = 0
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, images, *, train, drop_block_rate=0.0):
        features = DropBlock(self.drop_block_size, 1.0)(images, drop_block_rate)
        features = nn.Dense(self.width)(features.reshape(len(images), -1))
        features = nn.tanh(nn.BatchNorm(use_running_average=not train)(features))
        features = nn.Dropout(self.dropout_rate, deterministic=not train)(features)
        return nn.Dense(self.num_classes)(features)


CONFIG = TrainConfig(model=ModelConfig(width=4), batch_size=20, method=())


class Steps:
    """Training with a method, step by step."""

    def __init__(self, dataset, *words):
        config = dataclasses.replace(CONFIG, method=parse_method(words))
        self.experiment = build_experiment(config, dataset)
        self.start = self.experiment.init(0)
        self.split = dataset.train
        self.order = epoch_order(self.start.key, 0, dataset.train.labels)

    def step(self, state):
        return self.experiment.train_step(state, self.split, self.order)


@pytest.fixture(scope="module", autouse=True)
def tiny_network():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NETWORKS, CONFIG.model.network, Tiny)
        yield


@pytest.fixture(scope="module")
def plain(tiny_network, tiny_digits):
    """Return plain training, and its states after one step and after two."""
    with jax.numpy_dtype_promotion("strict"):
        steps = Steps(tiny_digits, "plain")
        first, _ = steps.step(steps.start)
        return steps, first, steps.step(first)[0]


@pytest.mark.parametrize(
    ("words", "method"),
    [
        (["plain"], ()),
        ([], ()),
        (["seht-h"], (SehtH(),)),
        (["seht-h:lam=1e-3,num_probes=2"], (SehtH(lam=1e-3, num_probes=2),)),
        (["seht-d:lam=1"], (SehtD(lam=1.0),)),
        (["seht-d:p=0.3,p_entries=0.5"], (SehtD(p=0.3, p_entries=0.5),)),
        (["seht-d:p_entries=None,rescale=False"], (SehtD(rescale=False),)),
        (["seht-d:rescale=false"], (SehtD(rescale=False),)),
        (["seht-d", "seht-h"], (SehtD(), SehtH())),
    ],
)
def test_words_name_a_method(words, method):
    assert parse_method(words) == method


@pytest.mark.parametrize(
    "method",
    [
        (),
        (SehtH(warmup_steps=7),),
        (SehtD(p=0.3, p_entries=0.5), SehtH()),
        tuple(cls() for cls in REGULARIZERS.values()),
    ],
)
def test_a_description_is_read_back(method):
    assert parse_method(describe_method(method)) == method


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["other"], "no regularizer 'other'; known are plain, dropout, .*, seht-d, seht-h"),
        (["sedt-h"], "no regularizer 'sedt-h'; did you mean seht-h or seht-d[?] Known are plain, "),
        (["plain", "seht-h"], "no regularizer 'plain'; plain stands alone"),
        (["seht-h:p=0.1"], "cannot read 'p=0.1'.*lam, num_probes, warmup_steps"),
        (["seht-h:lam"], "cannot read 'lam' in 'seht-h:lam'; write FIELD=VALUE"),
        (["seht-h:lamm=2"], "cannot read 'lamm=2' .*; did you mean lam[?] Write"),
        (["seht-h:lam=big"], "lam=big in 'seht-h:lam=big' is not of type float"),
        (["seht-h:lam=True"], "lam=True .* is not of type float"),
        (["seht-h:num_probes=1.5"], "num_probes=1.5 .* is not of type int"),
        (["seht-d:rescale=1"], "rescale=1 .* is not of type bool"),
        (["seht-h:warmup_steps=-1"], "warmup_steps must be at least 0, not -1"),
        (["seht-h:warmup_power=0"], "warmup_power must be at least 1, not 0"),
        (["seht-h:num_probes=0"], "num_probes must be at least 1, got 0"),
        (["seht-h:lam=1e999"], "lam=1e999 in .* is not of type float, and finite"),
        (["seht-d:p=0.7"], r"p_entries.*must be in \(0, 0.5\], got 0.7"),
        (["seht-d:p=1.5,p_entries=0.5"], r"p_layers.*must be in \(0, 1\], got 1.5"),
    ],
)
def test_a_mistake_is_named(words, message):
    with pytest.raises(ValueError, match=message):
        parse_method(words)


@pytest.mark.parametrize("name", REGULARIZERS)
def test_a_method_changes_training_and_goes_on_from_a_checkpoint(
    name, plain, tiny_digits, tmp_path
):
    steps = Steps(tiny_digits, WORDS[name])
    first, _ = steps.step(steps.start)
    second, metrics = steps.step(first)
    found = steps.experiment.evaluation_params(second)
    difference = optax.tree.norm(jax.tree.map(jnp.subtract, found, plain[2].params))
    assert float(difference) > 1e-4
    assert all(jnp.isfinite(value) for value in metrics.values())

    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(first)
        restored, _ = checkpoints.restore(steps.start, warn=pytest.fail)
    again, _ = steps.step(restored)
    chex.assert_trees_all_equal(again._replace(key=0), second._replace(key=0))


def test_methods_combine(tiny_digits):
    names = ("dropout", "mixup", "jacobian", "label-smoothing", "nso", "sam", "lookahead")
    steps = Steps(tiny_digits, *(WORDS[name] for name in names))
    state, metrics = steps.step(steps.start)
    assert "jacobian_norm_squared" in metrics
    assert all(jnp.isfinite(value) for value in metrics.values())
    chex.assert_trees_all_equal(steps.experiment.evaluation_params(state), steps.start.params)


@pytest.mark.parametrize("method", [SAM(), Lookahead(), LinBreg()], ids=lambda part: part.name)
def test_wrappers_hand_extra_arguments_on(method):
    params = {"layer": {"kernel": jnp.ones((2, 2))}}
    received = {}

    def update(updates, state, _params=None, **extra_args):
        received.update(extra_args)
        return updates, state

    inner = optax.GradientTransformationExtraArgs(optax.identity().init, update)
    tx = method.optimizer(inner)
    extra_args = {"grad_fn": lambda params, _: params, "value_fn": jnp.sum, "key": 3}
    with jax.numpy_dtype_promotion("standard"):
        tx.update(params, tx.init(params), params, **extra_args)
    assert received == extra_args


def test_sam_moves_the_running_statistics_once(plain, tiny_digits):
    steps = Steps(tiny_digits, "sam")
    state, _ = steps.step(steps.start)
    chex.assert_trees_all_close(state.network_state, plain[1].network_state, rtol=1e-5)


def test_networks_are_measured_as_they_are_without_the_method(plain, tiny_digits):
    traces = [
        steps.experiment.evaluator.trace(
            steps.start.params, steps.start.network_state, steps.split, jax.random.key(0), 2
        )
        for steps in (plain[0], Steps(tiny_digits, WORDS["dropout"]))
    ]
    assert traces[0] == traces[1]
