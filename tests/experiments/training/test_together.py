"""Runs as one program: each comes to what it comes to alone."""

import dataclasses

import pytest

from experiments.analyse.trained import load_network, read_finished_run
from experiments.config import (
    DevicesConfig,
    LanguageModelConfig,
    ModelConfig,
    OptimizerConfig,
    TextConfig,
    TrainConfig,
)
from experiments.data.load import load_data
from experiments.errors import (
    ConfigMismatchError,
    DivergedError,
    ExperimentError,
    RunningError,
    SettingError,
)
from experiments.regularizers import (
    NSO,
    SAM,
    CalibratedGaussNewton,
    Cutout,
    Dropout,
    GaussNewton,
    LabelSmoothing,
    Mixup,
    SehtD,
    SehtH,
)
from experiments.training.logging import TOGETHER, read_log
from experiments.training.loop import build_experiment, train
from experiments.training.run_directory import hold_run_directory
from experiments.training.together import train_together

IMAGES = TrainConfig(
    model=ModelConfig(network="convnet", width=2),
    optimizer=OptimizerConfig(learning_rate=0.05, clip_norm=5.0),
    method=(),
    epochs=2,
    batch_size=100,
    trace_examples=0,
)
TEXT = TrainConfig(
    data=TextConfig(length=5, train_tokens=10 * 51, evaluation_tokens=200),
    model=LanguageModelConfig(width=4, num_layers=1),
    optimizer=OptimizerConfig(learning_rate=10.0, momentum=0.0, weight_decay=0.0, clip_norm=0.25),
    method=(Dropout(0.2),),
    epochs=2,
    batch_size=10,
    trace_examples=0,
)


@pytest.fixture
def together(tmp_path, console):
    """Train together, in directories by number."""

    def together(*configs):
        placed = [
            dataclasses.replace(config, run_dir=tmp_path / f"together{i}")
            for i, config in enumerate(configs)
        ]
        return train_together(placed, load_data(configs[0].data), console)

    return together


@pytest.fixture
def alone(tmp_path, console):
    return lambda config: train(dataclasses.replace(config, run_dir=tmp_path / "alone"), console)


def with_method(*method, seed=0):
    return dataclasses.replace(IMAGES, method=method, seed=seed)


def check_same(one, other):
    losses = [name for name in one if name.endswith(("_loss", "_accuracy", "_perplexity"))]
    assert {name: one[name] for name in losses} == pytest.approx(
        {name: other[name] for name in losses}, rel=1e-4
    )
    for name in ("steps", "epochs", "seed", "method"):
        assert one[name] == other[name]


@pytest.mark.parametrize(
    ("weak", "strong"),
    [
        pytest.param(LabelSmoothing(0.1), LabelSmoothing(0.5), marks=pytest.mark.long),
        (SAM(0.01), SAM(0.1)),
        pytest.param(NSO(0.01), NSO(0.03), marks=pytest.mark.long),
        pytest.param(Cutout(2), Cutout(4), marks=pytest.mark.long),
        pytest.param(Mixup(0.2), Mixup(1.0), marks=pytest.mark.long),
        pytest.param(
            SehtH(lam=1e-4, bound=10.0), SehtH(lam=1e-3, bound=10.0), marks=pytest.mark.long
        ),
        pytest.param(SehtD(lam=1e-4, p=0.5), SehtD(lam=1e-3, p=0.5), marks=pytest.mark.long),
        pytest.param(GaussNewton(0.06, every=3), GaussNewton(0.2, every=3), marks=pytest.mark.long),
        pytest.param(
            CalibratedGaussNewton(0.01, p=0.5),
            CalibratedGaussNewton(0.1, p=0.5),
            marks=pytest.mark.long,
        ),
    ],
    ids=lambda part: part.name,
)
def test_a_run_comes_to_what_it_comes_to_alone(weak, strong, together, alone):
    other_seed = with_method(strong, seed=1)
    results = together(with_method(weak), with_method(strong), other_seed)
    assert len({result["train_loss"] for result in results}) == 3
    assert [result[TOGETHER] for result in results] == [3] * 3
    check_same(results[2], alone(other_seed))


def test_learning_rate_and_decay_may_differ_too(together, alone):
    slow = dataclasses.replace(IMAGES.optimizer, learning_rate=0.01, weight_decay=0.1)
    config = dataclasses.replace(with_method(LabelSmoothing(0.5)), optimizer=slow, seed=3)
    none = dataclasses.replace(IMAGES.optimizer, weight_decay=0.0)
    other = dataclasses.replace(with_method(LabelSmoothing(0.1)), optimizer=none)
    _, result = together(other, config)
    check_same(result, alone(config))


def test_a_residual_network_carries_its_own_statistics(together, alone):
    model = ModelConfig(network="digits-resnet", width=2)
    configs = [dataclasses.replace(IMAGES, model=model, seed=seed) for seed in (0, 1)]
    _, result = together(*configs)
    check_same(result, alone(configs[1]))


def test_methods_that_make_different_networks_are_refused(together):
    with pytest.raises(SettingError, match="must have one network"):
        together(TEXT, dataclasses.replace(TEXT, method=(Dropout(0.5),)))


@pytest.mark.parametrize(
    "method", [(), pytest.param((SehtH(lam=1e-3),), marks=pytest.mark.long)], ids=len
)
def test_text_is_read_side_by_side_too(method, together, alone):
    config = dataclasses.replace(TEXT, method=(*TEXT.method, *method), seed=1)
    _, result = together(dataclasses.replace(config, seed=0), config)
    check_same(result, alone(config))


def test_one_that_diverges_leaves_the_others_alone(together, alone):
    fast = dataclasses.replace(IMAGES.optimizer, learning_rate=1e30)
    error, result = together(dataclasses.replace(IMAGES, optimizer=fast), IMAGES)
    assert isinstance(error, DivergedError)
    assert "diverged at step" in str(error)
    check_same(result, alone(IMAGES))


def test_a_run_leaves_what_a_run_leaves(together, tmp_path, console):
    results = together(IMAGES, dataclasses.replace(IMAGES, seed=1))
    directory = tmp_path / "together1"
    rows = read_log(directory / "metrics.jsonl")
    assert [row["epoch"] for row in rows] == [1, 2]
    assert rows[-1]["step"] == results[1]["steps"]
    config = dataclasses.replace(IMAGES, seed=1, run_dir=directory)
    assert train(config, console) == results[1]
    assert "This run is finished" in console.file.getvalue()
    data = load_data(IMAGES.data)
    network = load_network(read_finished_run(directory, None), data, warn=pytest.fail)
    evaluator = build_experiment(config, data).evaluator
    found = evaluator.evaluate(network.params, network.network_state, data.test)
    assert found.loss == pytest.approx(results[1]["test_loss"])
    assert rows[-1][TOGETHER] == results[1][TOGETHER] == 2


def test_what_is_finished_is_not_trained_again(together, console):
    first = together(IMAGES)
    both = together(IMAGES, dataclasses.replace(IMAGES, seed=1))
    assert both[0] == first[0]
    assert both[1][TOGETHER] == 1
    assert together(IMAGES, dataclasses.replace(IMAGES, seed=1)) == both
    assert console.file.getvalue().count("Training together: 1 runs.") == 2


@pytest.mark.parametrize("place", ["summarise", "write_result"])
def test_one_that_is_interrupted_while_it_measures_can_be_finished(
    place, together, alone, tmp_path, console, monkeypatch
):
    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"experiments.training.together.{place}", interrupt)
        with pytest.raises(KeyboardInterrupt):
            together(IMAGES)
    if place == "summarise":
        check_same(together(IMAGES)[0], alone(IMAGES))
        return
    with pytest.raises(ExperimentError, match="Finish it by itself"):
        together(IMAGES)
    result = train(dataclasses.replace(IMAGES, run_dir=tmp_path / "together0"), console)
    check_same(result, alone(IMAGES))
    assert result[TOGETHER] == 1  # and so nobody takes its times for those of one run


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (dataclasses.replace(IMAGES, batch_size=50), "must not differ in batch_size"),
        (dataclasses.replace(IMAGES, method=(SAM(),)), "must have one method"),
        (TEXT, "must have one method"),
        (dataclasses.replace(TEXT, method=()), "must not differ in"),
        (dataclasses.replace(IMAGES, reported="best"), "--reported last alone"),
        (dataclasses.replace(IMAGES, on_divergence="skip"), "--on-divergence stop alone"),
        (dataclasses.replace(IMAGES, devices=DevicesConfig(mesh="data=1")), "not spread over"),
    ],
)
def test_runs_that_differ_in_more_are_refused(other, message, together):
    with pytest.raises(SettingError, match=message):
        together(IMAGES, other)


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        (Mixup(0.0), Mixup(0.2), "must not differ in alpha, 0.0 and 0.2 here"),
        (GaussNewton(every=1), GaussNewton(every=10), "must not differ in every, 1 and 10 here"),
        (GaussNewton(rise=0.5), GaussNewton(), "must not differ in warmup_steps"),
        (SehtH(bound=1.0), SehtH(), "must not differ in bound, 1.0 and None here"),
        (SehtD(p=0.1), SehtD(p=0.2), "must not differ in p, 0.1 and 0.2 here"),
        (CalibratedGaussNewton(), CalibratedGaussNewton(p=0.5), "must have one estimator"),
    ],
)
def test_methods_that_differ_in_more_than_strength_are_refused(
    one, other, message, together, tmp_path
):
    with pytest.raises(SettingError, match=message):
        together(with_method(one), with_method(other))
    assert not (tmp_path / "together0").exists()


def test_directories_of_others_are_respected(together, tmp_path):
    together(IMAGES)
    with pytest.raises(ConfigMismatchError):
        together(dataclasses.replace(IMAGES, epochs=1))
    config = dataclasses.replace(IMAGES, seed=1)
    directory = tmp_path / "together1"
    directory.mkdir()
    with hold_run_directory(directory), pytest.raises(ConfigMismatchError, match="holds no config"):
        together(IMAGES, config)


def test_a_run_that_another_process_is_at_is_an_error(together, tmp_path, monkeypatch):
    together(IMAGES)
    (tmp_path / "together0" / "result.json").unlink()
    with hold_run_directory(tmp_path / "together0"), pytest.raises(RunningError):
        together(IMAGES)
