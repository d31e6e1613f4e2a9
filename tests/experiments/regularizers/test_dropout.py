"""Dropout and DropBlock as methods; the layers have their tests with the models."""

import jax.numpy as jnp
import pytest

from experiments.regularizers import DropBlock, Dropout


def test_they_switch_layers_of_the_network_on():
    assert Dropout(rate=0.2).model(width=3) == {"width": 3, "dropout_rate": 0.2}
    assert DropBlock(block_size=5).model(width=3) == {"width": 3, "drop_block_size": 5}


@pytest.mark.parametrize(
    ("warmup_steps", "step", "rate"), [(0, 0, 0.1), (4, 0, 0.025), (4, 3, 0.1), (4, 99, 0.1)]
)
def test_the_share_to_keep_falls_linearly(warmup_steps, step, rate):
    method = DropBlock(keep_prob=0.9, warmup_steps=warmup_steps)
    arguments = method.call_arguments(jnp.asarray(step, jnp.int32))
    assert float(arguments["drop_block_rate"]) == pytest.approx(rate)


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        (Dropout, {"rate": 1.0}, r"rate must be in \[0, 1\), not 1.0"),
        (Dropout, {"rate": -0.1}, r"rate must be in \[0, 1\), not -0.1"),
        (DropBlock, {"block_size": 0}, "block_size must be at least 1, not 0"),
        (DropBlock, {"keep_prob": 1.5}, "keep_prob must be between 0 and 1, not 1.5"),
        (DropBlock, {"warmup_steps": -1}, "warmup_steps must be at least 0, not -1"),
    ],
)
def test_a_setting_out_of_range_is_named(method, settings, message):
    with pytest.raises(ValueError, match=message):
        method(**settings)
