"""From a configuration to its data set."""

from pathlib import Path

import pytest

from experiments.config import DataConfig
from experiments.data import load


@pytest.mark.parametrize(("validation_size", "expected"), [(None, 1000), (0, 0), (5000, 5000)])
def test_cifar_holds_out_what_it_is_told_and_1000_by_default(
    monkeypatch, validation_size, expected
):
    calls = []
    monkeypatch.setattr(load, "load_cifar", lambda *arguments: calls.append(arguments))
    config = DataConfig("cifar100", data_dir=Path("there"), validation_size=validation_size)
    load.load_dataset(config)
    assert calls == [("cifar100", Path("there"), expected, None, None)]


@pytest.fixture
def nothing_loaded():
    load.load_data_once.cache_clear()
    yield
    load.load_data_once.cache_clear()


@pytest.mark.usefixtures("nothing_loaded")
def test_only_what_was_loaded_last_is_not_loaded_again(monkeypatch):
    calls = []
    monkeypatch.setattr(load, "load_data", calls.append)
    one, other = (DataConfig(label_noise=share) for share in (0.1, 0.2))
    for config in (one, one, other, one):
        load.load_data_once(config)
    assert calls == [one, other, one]
