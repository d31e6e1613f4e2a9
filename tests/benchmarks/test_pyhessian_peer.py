"""Our curvature against PyHessian's, on a tiny network; skipped where it is not installed."""

import io
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from benchmarks.pyhessian_peer import (
    Curvatures,
    PyHessianConfig,
    compare,
    density_points,
    draw_densities,
    run_pyhessian,
)
from experiments.models.resnet import ResNet
from seht_jax.analysis import SpectralQuadrature, smoothed_density

QUICK = PyHessianConfig(
    width=2,
    epochs=1,
    samples=40,
    batch_size=16,
    lanczos_products=20,
    trace_probes=20,
    density_probes=2,
    density_products=8,
)

EVIDENCE = Path(__file__).parents[2] / "docs" / "evidence"


def needs_pyhessian():
    pytest.importorskip("pyhessian", reason="needs the extra `bench`")


def curvatures(eigenvalue, samples, seconds):
    nodes = jnp.array([[0.0, eigenvalue]])
    each = dict.fromkeys(("eigenvalue", "trace", "density"), seconds)
    return Curvatures(
        eigenvalue,
        np.array(samples),
        SpectralQuadrature(nodes, jnp.array([[0.9, 0.1]])),
        seconds=each,
        products=dict.fromkeys(each, 10),
        compile_seconds=each,
    )


def test_differences_are_in_percent_and_in_standard_errors():
    ours, theirs = curvatures(10.1, [9.0, 11.0], 1.0), curvatures(10.0, [12.0, 14.0], 2.0)
    report = compare(ours, theirs)
    assert report["eigenvalue"]["relative_difference"] == pytest.approx(0.01)
    trace = report["trace"]
    assert (trace["here"], trace["pyhessian"]) == (10.0, 13.0)
    assert trace["standard_error"] == pytest.approx(1.0)
    assert trace["in_standard_errors"] == pytest.approx(-3 / math.sqrt(2))
    assert (report["density"]["seconds"], report["density"]["pyhessian_seconds"]) == (1.0, 2.0)


def test_the_comparison_that_is_kept_found_the_same_within_what_was_aimed_at():
    report = json.loads((EVIDENCE / "benchmarks" / "pyhessian-digits.json").read_text())
    eigenvalue, trace, density = (report[each] for each in ("eigenvalue", "trace", "density"))
    assert abs(eigenvalue["relative_difference"]) < 0.01
    assert abs(trace["in_standard_errors"]) < 3
    assert trace["standard_error"] < 0.02 * trace["here"]
    assert trace["pyhessian_standard_error"] < 0.02 * trace["pyhessian"]
    assert density["distance"] < 0.01
    for each in (eigenvalue, trace, density):
        assert min(each["seconds"], each["pyhessian_seconds"]) > 0
    assert (EVIDENCE / "figures" / "pyhessian-digits.svg").exists()


def test_the_densities_are_drawn_over_both_spectra():
    spectra = [curvatures(top, [0.0, 1.0], 1.0).quadrature for top in (5.0, 10.0)]
    points, width = density_points(*spectra)
    assert width == pytest.approx(0.1)
    np.testing.assert_allclose(points[jnp.array([0, -1])], [-0.5, 10.5], rtol=1e-5)
    figure = draw_densities(points, *(smoothed_density(each, points, width) for each in spectra))
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["seht_jax", "PyHessian"]


@pytest.mark.parametrize("field", ["samples", "width"])
def test_numbers_are_positive(field):
    with pytest.raises(ValueError, match=f"{field} must be at least 1, not 0"):
        PyHessianConfig(**{field: 0})


def test_a_standard_error_needs_two_probes():
    with pytest.raises(ValueError, match="trace_probes must be at least 2, not 1"):
        PyHessianConfig(trace_probes=1)


def test_the_network_is_the_same_in_pytorch():
    needs_pyhessian()
    import torch

    from benchmarks.torch_hessian import torch_resnet

    model = ResNet((1, 2), 10, 3)
    images = jax.random.normal(jax.random.key(0), (4, 8, 8, 1), jnp.float32)
    variables = jax.jit(model.init, static_argnames="train")(jax.random.key(1), images, train=False)
    # Other statistics, scales and biases than those that they start from.
    leaves, structure = jax.tree.flatten(variables)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    variables = structure.unflatten(
        leaf + jax.random.uniform(key, leaf.shape, leaf.dtype)
        for key, leaf in zip(keys, leaves, strict=True)
    )
    network = torch_resnet(model, variables, in_channels=1)
    with torch.no_grad():
        found = network(torch.tensor(np.moveaxis(np.asarray(images), -1, 1).copy()))
    expected = model.apply(variables, images, train=False)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.long
def test_both_find_the_same():
    needs_pyhessian()
    console = Console(file=io.StringIO(), width=100)
    path = run_pyhessian(QUICK, console)
    report = json.loads(path.read_text())
    assert abs(report["eigenvalue"]["relative_difference"]) < 0.01
    assert abs(report["trace"]["in_standard_errors"]) < 4
    assert report["trace"]["products"] == report["trace"]["pyhessian_products"] == 20
    assert report["density"]["products"] == report["density"]["pyhessian_products"] == 16
    assert report["density"]["distance"] < 1
    assert path.with_suffix(".svg").exists()
    assert "PyHessian" in console.file.getvalue()
