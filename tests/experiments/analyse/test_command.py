"""The command, and the files that it writes."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from analysed_runs import PLAIN, QUICK

from experiments import __main__ as command_line
from experiments.analyse import command
from experiments.analyse.command import AnalyseConfig, run_analyse
from experiments.errors import ConfigMismatchError, ExperimentError, SettingError


@pytest.fixture
def measured(monkeypatch, analysis):
    """Measurements and figures that take no time. Lists the networks that are measured."""
    found = []

    def measurer(task, config, advance):
        def measure(network):
            found.append(network)
            return analysis.measured

        return measure

    monkeypatch.setattr(command, "measurer", measurer)
    monkeypatch.setattr(command, "draw_figures", lambda *_: [])
    return found


def read(directory):
    return json.loads((directory / "analysis.json").read_text())


def copied(runs, tmp_path):
    return shutil.copytree(runs, tmp_path / "runs")


def test_the_terminal_shows_the_twin_beside_the_run(analysis):
    lines = analysis.said.splitlines()
    (heading,) = (line for line in lines if "gauss-newton" in line and "plain" in line)
    assert heading.index("gauss-newton") < heading.index("plain")
    (trace,) = (line for line in lines if "tr(H)" in line)
    numbers = read(analysis.output_dir)["measured"]
    for name in ("run", "plain"):
        mean = numbers[name]["traces"]["hessian"]["total"]["mean"]
        assert f"{mean:.4g}".replace("-", "\N{MINUS SIGN}") in trace


def test_the_numbers_are_those_of_both_networks(analysis):
    numbers = read(analysis.output_dir)
    run, plain = numbers["measured"]["run"], numbers["measured"]["plain"]
    assert numbers["run"]["method"] != ["plain"] == numbers["plain"]["method"]
    assert run["loss"] != plain["loss"]
    for each in (run, plain):
        middle = [losses[QUICK.slice_points // 2] for losses in each["slices"]]
        np.testing.assert_allclose(middle, each["loss"], rtol=1e-5)
        layers = each["traces"]["hessian"]["by_layer"]
        total = each["traces"]["hessian"]["total"]["mean"]
        assert sum(layer["mean"] for layer in layers.values()) == pytest.approx(total, rel=1e-5)
        assert each["stability"]["sharpness"] == pytest.approx(
            PLAIN.optimizer.learning_rate * each["largest_eigenvalues"][0]["value"]
        )
    assert numbers["measure"] == dataclasses.asdict(QUICK)


def test_the_page_says_which_loss_it_is_about(analysis):
    page = (analysis.output_dir / "analysis.html").read_text()
    assert "the first 40 training images" in page
    assert "running statistics (evaluation mode)" in page
    assert "Beside it its plain twin" in page
    assert "In more than the method" not in page


def test_the_same_settings_write_the_page_again(measured, runs, analysis, tmp_path, console):
    config = AnalyseConfig(runs / "method", output_dir=tmp_path / "page", measure=QUICK)
    pages = [run_analyse(config, console).read_bytes() for _ in range(2)]
    assert pages[0] == pages[1]
    assert len(measured) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trace_probes": 4}, r"measure.trace_probes: there 3, asked for 4"),
        ({"probe_seed": 1}, r"measure.probe_seed: there 0, asked for 1"),
    ],
)
def test_a_page_of_other_settings_is_left_as_it_is(
    measured, runs, analysis, console, change, message
):
    before = (analysis.output_dir / "analysis.html").read_bytes()
    config = AnalyseConfig(
        runs / "method",
        output_dir=analysis.output_dir,
        measure=dataclasses.replace(QUICK, **change),
    )
    with pytest.raises(ConfigMismatchError, match=message):
        run_analyse(config, console)
    assert (analysis.output_dir / "analysis.html").read_bytes() == before
    assert not measured


def test_a_page_of_another_run_is_left_as_it_is(measured, runs, analysis, console):
    config = AnalyseConfig(runs / "plain-seed0", output_dir=analysis.output_dir, measure=QUICK)
    with pytest.raises(ConfigMismatchError, match=r"run.method: there .*gauss-newton"):
        run_analyse(config, console)


def test_a_page_without_its_numbers_is_left_as_it_is(measured, runs, tmp_path, console):
    (tmp_path / "analysis.html").write_text("mine")
    with pytest.raises(ConfigMismatchError, match=r"holds an analysis.html without"):
        run_analyse(AnalyseConfig(runs / "method", output_dir=tmp_path), console)
    assert (tmp_path / "analysis.html").read_text() == "mine"


def test_without_a_twin_the_command_that_makes_one_is_shown(
    measured, runs, tmp_path, console, monkeypatch
):
    directory = copied(runs, tmp_path)
    shutil.move(directory / "plain-seed0", tmp_path / "plain")
    config = AnalyseConfig(directory / "method", measure=QUICK)
    page = run_analyse(config, console)
    assert page == directory / "method" / "analysis" / "analysis.html"
    assert len(measured) == 1
    assert read(page.parent)["plain"] is None
    words = "python -m experiments train digits --method plain --width 2 --epochs 1"
    assert words in console.file.getvalue()
    assert words in page.read_text()
    # When the twin has been made the page is replaced.
    shutil.move(tmp_path / "plain", directory / "plain-seed0")
    run_analyse(config, console)
    assert read(page.parent)["plain"]["method"] == ["plain"]
    # It is not replaced by one that shows less.
    shutil.move(directory / "plain-seed0", tmp_path / "plain")
    with pytest.raises(ConfigMismatchError, match="plain: there a network, asked for none"):
        run_analyse(config, console)
    run_analyse(dataclasses.replace(config, plain=tmp_path / "plain"), console)


def test_a_plain_run_stands_alone(measured, runs, tmp_path, console):
    run_analyse(AnalyseConfig(runs / "plain-seed0", output_dir=tmp_path, measure=QUICK), console)
    assert len(measured) == 1
    assert "No plain twin" not in console.file.getvalue()


def test_a_network_without_a_finite_loss_is_no_page(
    measured, runs, analysis, tmp_path, console, monkeypatch
):
    broken = analysis.measured._replace(loss=float("nan"))
    monkeypatch.setattr(command, "measurer", lambda *_: lambda network: broken)
    with pytest.raises(ExperimentError, match=r"The loss of the network in .* is nan"):
        run_analyse(AnalyseConfig(runs / "method", output_dir=tmp_path, measure=QUICK), console)
    assert not list(tmp_path.iterdir())


def test_a_link_out_of_the_run_is_not_followed(measured, runs, tmp_path, console):
    directory = copied(runs, tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (directory / "method" / "analysis").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ExperimentError, match="symbolic link"):
        run_analyse(AnalyseConfig(directory / "method", measure=QUICK), console)
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("damage", ["", "[]", "{}", '{"measure": 1, "run": {}, "plain": null}'])
def test_damaged_numbers_are_named_and_left_as_they_are(
    measured, runs, tmp_path, capsys, damage, monkeypatch
):
    path = tmp_path / "analysis.json"
    path.write_text(damage)
    line = ["analyse", str(runs / "method"), "--output-dir", str(tmp_path)]
    assert command_line.main(line) == 1
    assert f"{path} is damaged" in "".join(capsys.readouterr().err)
    assert path.read_text() == damage


def test_a_mistake_is_told_without_a_traceback(tmp_path, capsys):
    assert command_line.main(["analyse", str(tmp_path)]) == 1
    assert "holds no config.json, so it is no run directory" in capsys.readouterr().err


def test_a_twin_that_is_none_is_refused(measured, runs, console):
    config = AnalyseConfig(runs / "method", plain=runs / "method", measure=QUICK)
    with pytest.raises(SettingError, match="--plain must name a run without a method"):
        run_analyse(config, console)
