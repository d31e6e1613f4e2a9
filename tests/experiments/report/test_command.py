"""The command, and the files that it writes."""

import base64
import csv
import io
import json
import re
import shutil
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from known_sweep import write_runs
from PIL import Image
from rich.console import Console

from experiments import __main__ as command_line
from experiments.report.command import ReportConfig, write_report


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The directory of a report."""
    directory = write_runs(tmp_path_factory.mktemp("sweep") / "known")
    write_report(ReportConfig(directory), Console(file=io.StringIO()))
    return directory / "report"


class Page(HTMLParser):
    """The text of a page, and the addresses that it names."""

    def __init__(self, text):
        super().__init__()
        self.text, self.addresses, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.addresses += [value for name, value in attributes if name in {"src", "srcset", "href"}]
        if tag not in {"meta", "img", "source"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_says_what_the_tables_say(report):
    page = Page((report / "report.html").read_text())
    assert page.open == []
    for text in ("Known <numbers>", "80.00 ± 5.77", "94.00 ± 0.24", "1 of 3 diverged", "95.33"):
        assert text in page.text
    assert "The numbers are made up." in page.text
    assert "SEHT-D 5: a remark" in page.text
    assert "jax 0.10.2, device cpu, host desk: 18 runs" in page.text


def test_a_row_without_a_finished_run_is_named_under_the_figure(report):
    text = (report / "report.md").read_text()
    assert "Without a curve, since every run diverged: SEHT-D 5, p." in text


def test_the_page_stands_alone_in_light_and_dark(report):
    text = (report / "report.html").read_text()
    page = Page(text)
    assert len(page.addresses) == 4  # two figures in two themes
    for address in page.addresses:
        head, data = address.split(",")
        assert head == "data:image/svg+xml;base64"
        assert ET.fromstring(base64.b64decode(data)).tag.endswith("svg")
    assert not re.search(r"<script|<link|@import|url\(|https?://", text)
    assert text.count("prefers-color-scheme: dark") == 3


def test_the_markdown_names_the_figures_beside_it(report):
    text = (report / "report.md").read_text()
    assert text.startswith("# Known <numbers>\n\nSweep known, 3 seeds.\n")
    assert "| Plain | 80.00 ± 5.77 | 94.00 ± 0.24 |" in text
    figures = re.findall(r"!\[.*\]\((.*)\)", text)
    assert figures == ["convergence.png", "max-iter.png"]
    for name in figures:
        with Image.open(report / name) as image:
            assert np.asarray(image).std() > 0


def test_every_run_is_a_line_of_csv(report):
    rows = list(csv.DictReader(io.StringIO((report / "runs.csv").read_text())))
    assert len(rows) == 18
    expected = {"row": "Plain", "settings": "", "seed": "1", "test_accuracy": "0.8"}
    assert rows[1] | expected == rows[1]
    assert rows[3]["settings"] == "seht-d.lam = 0.1"
    states = [row["state"] for row in rows]
    assert (states.count("finished"), states.count("diverged")) == (13, 5)
    assert {row["message"] for row in rows if row["state"] == "diverged"} == {
        "The run diverged at step 7."
    }


def test_the_json_has_the_numbers_unrounded(report):
    numbers = json.loads((report / "report.json").read_text())
    plain, row, diverged, *_ = numbers["rows"]
    assert plain["metrics"]["test_accuracy"]["mean"] == pytest.approx(0.8, rel=1e-12)
    assert row["chosen"]["values"] == {"seht-d.lam": 0.2}
    assert row["cost"]["time_ratio"]["n"] == 3
    assert [len(point["diverged"]) for point in row["grid"]] == [0, 0, 1]
    assert diverged["chosen"]["diverged"] == ["The run diverged at step 7."]
    assert (numbers["runs_ended"], numbers["runs"]) == (18, 18)


def test_a_report_of_the_same_runs_is_the_same(report, console):
    before = {path.name: path.read_bytes() for path in report.iterdir()}
    write_report(ReportConfig(report.parent), console)
    assert {path.name: path.read_bytes() for path in report.iterdir()} == before


def test_a_sweep_without_any_run_has_a_report_too(finished, console):
    shutil.rmtree(finished / "runs")
    page = write_report(ReportConfig(finished), console)
    assert "Incomplete: 0 of 18 runs" in page.read_text()
    assert "Incomplete: 0 of 18 runs" in console.file.getvalue()


def test_the_command_line_writes_it(finished, capsys):
    assert command_line.main(["report", str(finished)]) == 0
    assert "80.00 ± 5.77" in capsys.readouterr().out
    assert command_line.main(["report", str(finished.parent)]) == 1
    assert "holds no sweep.json" in capsys.readouterr().err


def test_an_exact_trace_in_the_directory_is_reported(tmp_path):
    directory = write_runs(tmp_path / "known")
    layer = {"num_weights": 5130, "num_measured": 5130, "seconds": 0.5, "extrapolated": False}
    stem = {"num_weights": 1728, "num_measured": 64, "seconds": 1400, "extrapolated": True}
    measured = {
        "model": "resnet18",
        "plain_seconds": 2.0,
        "layers": [{"layer": "head", **layer}, {"layer": "stem", **stem}],
    }
    (directory / "exact_trace.json").write_text(json.dumps(measured))
    page = write_report(ReportConfig(directory), Console(file=io.StringIO()))
    assert "1.4e+03 (extrapolated)" in page.read_text()
    assert "| head | 5,130 | 5,130 | 0.5 | 0.25 |" in (page.parent / "report.md").read_text()
