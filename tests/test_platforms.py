"""One traced step lowers for every platform; the rewrite of convolutions is for the CPU alone."""

import re
from typing import NamedTuple

import jax
import networks
import pytest

import seht_jax as seht
import seht_jax.penalty
from seht_jax.penalty import NUM_BRANCHES

CANONICAL = "[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]"


class Operations(NamedTuple):
    """What a lowered program holds."""

    convolutions: list[str]
    num_transposes: int
    num_choices: int  # in the outermost function; those inside are made when compiling


def lower(*platforms):
    loss_fn, params, batch = networks.conv_net()

    @jax.jit
    def step(params, batch, key):
        penalised = seht.regularize(loss_fn, key, 0.3, 0.1, has_aux=True)
        return jax.value_and_grad(penalised, has_aux=True)(params, batch)

    lowered = step.trace(params, batch, jax.random.key(0)).lower(lowering_platforms=platforms)
    text = lowered.as_text()
    return Operations(
        re.findall(r"stablehlo\.convolution\(.*?dim_numbers = (.*?), window", text),
        text.count("stablehlo.transpose"),
        len(re.findall(r"^ {4}}, {$", text, re.MULTILINE)),
    )


def lower_without_rewrite(monkeypatch, platform):
    with monkeypatch.context() as patch:
        patch.setattr(seht_jax.penalty, "canonical_on_cpu", lambda function: function)
        return lower(platform)


@pytest.fixture(scope="module")
def on_cpu():
    with jax.enable_x64(True):
        return lower("cpu")


def test_on_the_cpu_every_convolution_is_canonical(on_cpu):
    assert set(on_cpu.convolutions) == {CANONICAL}


@pytest.mark.parametrize("platform", ["cuda", pytest.param("tpu", marks=pytest.mark.long)])
def test_elsewhere_the_program_is_the_one_without_the_rewrite(monkeypatch, on_cpu, platform):
    operations = lower(platform)
    assert operations == lower_without_rewrite(monkeypatch, platform)
    assert set(operations.convolutions) > {CANONICAL}
    assert operations.num_transposes < on_cpu.num_transposes
    assert len(operations.convolutions) == len(on_cpu.convolutions)
    assert operations.num_choices == on_cpu.num_choices


def test_a_step_chooses_once_between_plain_and_the_ends_of_the_network(on_cpu):
    assert on_cpu.num_choices == NUM_BRANCHES


def test_one_program_serves_two_platforms(on_cpu):
    operations = lower("cpu", "cuda")
    assert set(operations.convolutions) > {CANONICAL}
