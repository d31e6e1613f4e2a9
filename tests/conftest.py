"""Settings of every test: eight CPU devices, strict dtypes, float64 for the library's tests."""

import gc
import os
from pathlib import Path

import compilation

os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        *compilation.FLAGS,
    ]
)

import jax
import jax.numpy as jnp
import networks
import pytest
from jaxtyping import config
from oracle import without_aux

jax.config.update("jax_platforms", "cpu")

gc.set_threshold(20_000, 20, 100)  # of a test's time, 3 % was garbage collection

# XLA maps each program at some 16 places, and Linux ends a process that has 65,530.
_MANY_MAPPINGS = 30_000

collect_ignore = ["guided_fuzz.py"]  # a program that a test starts; it needs the extra `fuzz`


@pytest.fixture(autouse=True)
def enable_x64():
    """Compute in float64, with strict dtypes, unless a test asks for something else."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Free the programs of earlier modules before a process has too many."""
    yield
    mappings = Path("/proc/self/maps")
    if mappings.exists() and mappings.read_bytes().count(b"\n") > _MANY_MAPPINGS:
        jax.clear_caches()


@pytest.fixture
def no_runtime_type_checks():
    """Leave the library alone with its own checks, as it is for its users."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


def pytest_terminal_summary(terminalreporter):
    """Show what tests have recorded: cases of mutated input, and differences between weights."""
    recorded = [
        (name, value)
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", None) == "call"
        for name, value in report.user_properties
    ]
    tallies = [value for name, value in recorded if name == "fuzz"]
    if tallies:
        terminalreporter.section("mutated input")
        for tally in sorted(tallies, key=lambda tally: tally["target"]):
            terminalreporter.line("{target}: {cases:,} cases, {refused:,} refused".format(**tally))
        terminalreporter.line(f"in all: {sum(tally['cases'] for tally in tallies):,} cases")
    differences = [value for name, value in recorded if name == "difference"]
    if differences:
        terminalreporter.section("weights of several processes, and of one")
        for difference in differences:
            terminalreporter.line("{what}: {largest:.1e} of the largest entry".format(**difference))


@pytest.fixture
def small():
    """A small network whose loss has no aux."""
    loss_fn, params, batch = networks.mlp(jnp.tanh)
    return networks.Case(without_aux(loss_fn), params, batch)


@pytest.fixture
def two_devices():
    """A mesh of two devices, with the axis "data"."""
    kinds = (jax.sharding.AxisType.Auto,)
    return jax.make_mesh((2,), ("data",), kinds, devices=jax.devices()[:2])
