"""The configuration."""

import dataclasses
import json
from pathlib import Path

import pytest

from experiments.config import (
    DataConfig,
    LanguageModelConfig,
    ModelConfig,
    OptimizerConfig,
    TextConfig,
    TrainConfig,
    complete_settings,
    deciding_settings,
    from_json,
    to_json,
)
from experiments.errors import SettingError, option
from experiments.presets import DESCRIPTIONS, PRESETS
from experiments.regularizers import SehtD, SehtH


@pytest.mark.parametrize(
    "field",
    [
        "epochs",
        "batch_size",
        "trace_examples",
        "trace_probes",
        "log_every",
        "evaluate_every",
        "checkpoint_every",
    ],
)
def test_a_number_out_of_its_range_is_named(field):
    with pytest.raises(SettingError, match=f"{option(field)} must be at least .*, not -1"):
        TrainConfig(**{field: -1})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"network": "wide-resnet"}, "a wide-resnet needs a --depth: 10, 16"),
        ({"network": "wide-resnet", "depth": 12}, r"--depth must be 6n \+ 4 .*, not 12"),
        ({"network": "resnet18", "depth": 18}, "resnet18 has a fixed depth: leave out --depth 18"),
        ({"width": 0}, "--width must be at least 1, not 0"),
    ],
)
def test_a_size_that_does_not_fit_the_network_is_named(settings, message):
    with pytest.raises(SettingError, match=message):
        ModelConfig(**settings)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("learning_rate", value) for value in (0.0, -1.0, float("inf"), float("nan"))),
        *(("momentum", value) for value in (-0.1, 1.0, float("nan"))),
        *(
            (name, value)
            for name in ("weight_decay", "clip_norm")
            for value in (-1.0, float("inf"))
        ),
    ],
)
def test_a_number_that_would_spoil_the_optimizer_is_named(field, value):
    with pytest.raises(SettingError, match=f"{option(field)} must be .*, not {value}"):
        OptimizerConfig(**{field: value})


def test_adahessian_needs_the_loss_of_all_batches_that_are_averaged():
    OptimizerConfig(algorithm="adahessian")
    with pytest.raises(SettingError, match="--accumulate must be 1 with --algorithm adahessian"):
        OptimizerConfig(algorithm="adahessian", accumulate=2)


@pytest.mark.parametrize(
    ("name", "least"), [("train_images", 1), ("test_images", 1), ("validation_size", 0)]
)
def test_numbers_of_images_have_a_least_one(name, least):
    DataConfig("cifar10", **{name: least})
    message = f"{option(name)} must be at least {least}, not {least - 1}"
    with pytest.raises(SettingError, match=message):
        DataConfig("cifar10", **{name: least - 1})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_images": 50}, "--train-images must be left out for digits, .* split, not 50"),
        ({"validation_size": 200}, "--validation-size must be left out .* split .*, not 200"),
        ({"data_dir": Path("there")}, "--data-dir must be left out for digits, .*, not there"),
    ],
)
def test_what_digits_do_not_depend_on_is_refused(settings, message):
    with pytest.raises(SettingError, match=message):
        DataConfig("digits", **settings)
    assert DataConfig("cifar10", **settings).dataset == "cifar10"


def test_a_number_that_was_ignored_is_no_difference():
    stored = to_json(TrainConfig())
    assert complete_settings(stored | {"data.validation_size": 1000}) == stored
    cifar = to_json(TrainConfig(data=DataConfig("cifar10", validation_size=5000)))
    assert complete_settings(cifar) == cifar


def test_settings_that_an_earlier_version_did_not_have_are_the_defaults():
    stored = to_json(TrainConfig())
    earlier = {name: value for name, value in stored.items() if name != "reported"}
    assert complete_settings(earlier) == stored
    assert stored["reported"] == "last"


def test_settings_of_text_are_completed_as_such():
    stored = to_json(PRESETS["pydoc"])
    earlier = {name: value for name, value in stored.items() if name != "data.evaluation_tokens"}
    assert complete_settings(earlier) == stored
    assert not stored.keys() & {"data.augmentation", "model.depth"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"length": 0}, "--length must be at least 1, not 0"),
        ({"train_tokens": 0}, "--train-tokens must be at least 1, not 0"),
        ({"evaluation_tokens": -1}, "--evaluation-tokens must be at least 1, not -1"),
        ({"data_dir": Path("there")}, "--data-dir must be left out for pydoc, .*, not there"),
    ],
)
def test_a_text_that_can_not_be_is_named(settings, message):
    with pytest.raises(SettingError, match=message):
        TextConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 0}, "--width must be at least 1, not 0"),
        ({"num_layers": 0}, "--num-layers must be at least 1, not 0"),
        ({"num_heads": 2}, "--num-heads belongs to a transformer: leave it out for lstm"),
        ({"network": "transformer", "tied_embeddings": True}, "belong to lstm and gru"),
        ({"network": "transformer", "initialisation": "flax"}, "belong to lstm and gru"),
        ({"network": "transformer", "width": 6}, "--num-heads must divide the --width 6, not 4"),
    ],
)
def test_a_setting_that_does_not_fit_the_language_model_is_named(settings, message):
    with pytest.raises(SettingError, match=message):
        LanguageModelConfig(**settings)


@pytest.mark.parametrize("changes", [{"data": TextConfig()}, {"model": LanguageModelConfig()}])
def test_text_needs_a_language_model(changes):
    with pytest.raises(SettingError, match=r"can not be trained on .* needs a language model"):
        TrainConfig(**changes)


def test_a_method_is_named_once():
    with pytest.raises(SettingError, match="--method names 'seht-h' more than once"):
        TrainConfig(method=(SehtH(), SehtD(), SehtH(lam=1.0)))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_has_its_name_a_description_and_json(preset):
    assert PRESETS[preset].name == preset
    assert DESCRIPTIONS[preset].endswith(".")
    assert json.loads(json.dumps(to_json(PRESETS[preset]))) == to_json(PRESETS[preset])


@pytest.mark.parametrize("preset", PRESETS)
def test_a_configuration_is_read_back_from_its_settings(preset):
    changed = dataclasses.replace(PRESETS[preset], seed=7, method=(SehtD(p=0.1), SehtH()))
    stored = json.loads(json.dumps(to_json(changed))) | {"data.checksum": 1}
    assert from_json(stored) == changed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.depth": "many"}, "'model.depth'"),
        ({"model.num_layers": 2}, "'model.num_layers' is no setting of a run on digits"),
        ({"seed": -1}, "--seed must be at least 0, not -1"),
        ({"method": ["seht-x"]}, "no regularizer 'seht-x'"),
    ],
)
def test_settings_that_can_not_be_are_not_read(change, message):
    with pytest.raises((SettingError, ValueError), match=message):
        from_json(to_json(TrainConfig()) | change)


def test_places_are_no_settings():
    moved = TrainConfig(run_dir=Path("a"), data=DataConfig("cifar10", data_dir=Path("b")))
    assert to_json(moved) == to_json(TrainConfig(data=DataConfig("cifar10")))


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"log_every": 7}, True),
        ({"checkpoint_every": 7}, True),
        ({"evaluate_every": 7}, True),
        ({"evaluate_every": 7, "reported": "best"}, False),
        ({"evaluate_every": 7, "optimizer": OptimizerConfig(schedule="plateau")}, False),
        ({"log_every": 7, "on_divergence": "restore"}, True),
        ({"checkpoint_every": 7, "on_divergence": "restore"}, False),
        ({"trace_probes": 7}, False),
        ({"epochs": 7}, False),
        ({"reported": "best"}, False),
    ],
)
def test_how_often_is_logged_and_saved_decides_nothing(changes, same):
    plain = TrainConfig(
        on_divergence=changes.get("on_divergence", "stop"),
        optimizer=changes.get("optimizer", OptimizerConfig()),
        reported=changes.get("reported", "last") if "evaluate_every" in changes else "last",
    )
    settings = (to_json(config) for config in (plain, dataclasses.replace(plain, **changes)))
    first, second = map(deciding_settings, settings)
    assert (first == second) == same


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"epochs": 11}, {"method": ()}, {"method": (SehtD(lam=1.0),)}],
)
def test_everything_else_is(change):
    assert to_json(dataclasses.replace(TrainConfig(), **change)) != to_json(TrainConfig())


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ((), "runs/digits/plain-seed3"),
        ((SehtD(),), "runs/digits/seht-d-seed3"),
        ((SehtD(p=0.1, lam=1e-3),), "runs/digits/seht-d-lam=0.001,p=0.1-seed3"),
        ((SehtD(), SehtH()), "runs/digits/seht-d+seht-h-seed3"),
    ],
)
def test_runs_get_directories_of_their_own(method, expected):
    config = dataclasses.replace(PRESETS["digits"], method=method, seed=3)
    assert config.resolved_run_dir == Path(expected)
