"""The report of a sweep whose files were damaged, or written by somebody with bad intentions."""

import base64
import json
import shutil
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

import pytest
from known_sweep import FINISHED, SWEEP, write_runs
from mutation import STRINGS, check_cases, contents, many, mutated_bytes, mutated_json, refusal

from experiments import __main__ as command_line
from experiments.errors import ExperimentError
from experiments.report import command, figures
from experiments.report.command import ReportConfig, write_report
from experiments.sweep.plan import write_plan
from experiments.training.run_directory import write_json

SCRIPT = "<script>alert(1)</script><img src=https://example.com/x.png onerror=alert(1)>"
MEASURED = {
    "model": "resnet18",
    "plain_seconds": 2.0,
    "layers": [
        {
            "layer": "head",
            "num_weights": 5130,
            "num_measured": 64,
            "seconds": 0.5,
            "extrapolated": False,
        }
    ],
}


@pytest.fixture
def sweep(tmp_path):
    """The output directory of a sweep with all kinds of files."""
    directory = write_runs(tmp_path / "known")
    settings = {"data.dataset": "digits", "method": ["plain"], "epochs": 2, "data.checksum": 7}
    for path in directory.glob("runs/*/**/environment.json"):
        write_json(path.parent / "config.json", settings)
    write_json(directory / "exact_trace.json", MEASURED)
    return directory


def read_curves_only(sweep, summaries):
    """Read all that a figure shows: to draw them takes most of a report's time."""
    for summary in summaries:
        if summary.chosen is not None and summary.chosen.finished:
            figures._read_all(summary.chosen, sweep.selected_by)
    figures.seht_d_settings(summaries)
    return []


def is_refused(arguments, capsys, named):
    """Run a command, which either does its work or says what is wrong with which file."""
    status = command_line.main(arguments)
    error = capsys.readouterr().err
    assert "Traceback" not in error
    if status:
        assert status == 1
        assert error.startswith("error: ")
        assert any(str(each) in error for each in named), error
    return status == 1


@many(short=60, long=2000)
def test_damaged_files_are_named_and_nothing_is_overwritten(
    sweep, capsys, monkeypatch, record_property, num_cases
):
    monkeypatch.setattr(command, "_pictures", read_curves_only)
    paths = sorted(path for path in sweep.rglob("*") if path.suffix in {".json", ".jsonl"})
    originals = {path: path.read_bytes() for path in paths}

    def report(random):
        path = sweep / "sweep.json" if random.random() < 0.3 else random.choice(paths)
        if path.suffix == ".jsonl":
            path.write_bytes(mutated_bytes(random, originals[path]))
        else:
            path.write_bytes(mutated_json(random, json.loads(originals[path])))
        before = contents(sweep)
        # What is one run's alone is the matter of the directory: two runs of different data.
        refused = is_refused(["report", str(sweep)], capsys, [path, path.parent])
        page = sweep / "report" / "report.html"
        assert refused or Page(page.read_text()).tags <= Page.HARMLESS
        shutil.rmtree(sweep / "report", ignore_errors=True)
        assert contents(sweep) == before
        path.write_bytes(originals[path])
        return refused

    check_cases("files of a sweep, reported", num_cases, record_property, report)


@many(short=15, long=100)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")  # Matplotlib's
def test_damaged_files_are_named_where_figures_are_drawn(sweep, capsys, record_property, num_cases):
    paths = [sweep / "sweep.json", *sweep.glob("runs/plain/*/metrics.jsonl")]
    originals = {path: path.read_bytes() for path in paths}

    def report(random):
        path = random.choice(paths)
        if path.suffix == ".jsonl":
            lines = originals[path].splitlines()
            damaged = random.randrange(len(lines))
            row = mutated_json(random, json.loads(lines[damaged]))
            lines[damaged] = row.replace(b"\n", b"")
            path.write_bytes(b"\n".join(lines) + b"\n")
        else:
            plan = json.loads(originals[path])
            row = random.choice(plan["rows"])
            row["label"] = plan["columns"][0]["heading"] = random.choice(STRINGS)
            plan["convergence"] = [each["label"] for each in plan["rows"]]
            path.write_text(json.dumps(plan))
        refused = is_refused(["report", str(sweep)], capsys, [path, path.parent])
        path.write_bytes(originals[path])
        return refused

    check_cases("files of a sweep, drawn", num_cases, record_property, report)


@many(short=100, long=1000)
def test_a_sweep_goes_on_with_no_damaged_plan(tmp_path, record_property, num_cases):
    write_plan(SWEEP, 2, tmp_path)
    path = tmp_path / "sweep.json"
    original = path.read_bytes()

    def go_on(random):
        path.write_bytes(mutated_json(random, json.loads(original)))
        before = contents(tmp_path)
        error = refusal(ExperimentError, lambda: write_plan(SWEEP, 2, tmp_path))
        if error is not None:
            assert str(tmp_path) in str(error)
            assert contents(tmp_path) == before
            return True
        assert json.loads(path.read_text())["rows"] == json.loads(original)["rows"]
        return False

    check_cases("sweep.json, gone on with", num_cases, record_property, go_on)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("../../elsewhere", "leads out of its directory"),
        ("/etc", "leads out of its directory"),
        ("runs/../../elsewhere", "leads out of its directory"),
        ("runs/link", "a symbolic link in .*runs/link leads out of"),
    ],
)
def test_a_plan_names_no_directory_outside_of_its_own(sweep, console, name, words):
    elsewhere = sweep.parent / "elsewhere"
    (elsewhere / "seed0").mkdir(parents=True)
    write_json(elsewhere / "seed0" / "result.json", FINISHED)
    (sweep / "runs" / "link").symlink_to(elsewhere)
    plan = json.loads((sweep / "sweep.json").read_text())
    plan["rows"][0]["points"][0]["directory"] = name
    write_json(sweep / "sweep.json", plan)
    with pytest.raises(ExperimentError, match=rf"sweep\.json is damaged(.|\n)*{words}"):
        write_report(ReportConfig(sweep), console)


def test_a_run_behind_a_link_out_of_the_sweep_is_not_read(sweep, console):
    (run,) = sweep.glob("runs/plain/**/seed0")
    run.rename(sweep.parent / "elsewhere")
    run.symlink_to(sweep.parent / "elsewhere")
    with pytest.raises(ExperimentError, match=r"a symbolic link in .*/seed0 leads out of"):
        write_report(ReportConfig(sweep), console)


def test_a_sweep_behind_a_link_is_reported(sweep, console):
    link = sweep.with_name("link")
    link.symlink_to(sweep)
    assert write_report(ReportConfig(link), console) == link / "report" / "report.html"


def test_a_report_is_written_into_no_other_directory(sweep, console):
    elsewhere = sweep.parent / "elsewhere"
    elsewhere.mkdir()
    (sweep / "report").symlink_to(elsewhere)
    with pytest.raises(ExperimentError, match=r"a symbolic link in .* leads out of"):
        write_report(ReportConfig(sweep), console)
    assert not list(elsewhere.iterdir())


@pytest.mark.parametrize("suffix", ["html", "md", "json", "tmp"])
def test_a_link_in_the_place_of_a_report_is_replaced_and_not_followed(sweep, console, suffix):
    thesis = sweep.parent / "thesis.txt"
    thesis.write_text("years of work")
    (sweep / "report").mkdir()
    (sweep / "report" / f"report.{suffix}").symlink_to(thesis)
    write_report(ReportConfig(sweep), console)
    assert thesis.read_text() == "years of work"


class Page(HTMLParser):
    """The tags of a page, and its attributes."""

    HARMLESS = frozenset(
        (
            *("html", "head", "meta", "title", "style", "body", "h1", "h2"),
            *("p", "div", "table", "thead", "tbody", "tr", "th", "td"),
            *("figure", "picture", "source", "img", "figcaption", "ul", "li"),
        )
    )

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes = set(), []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes += attributes


def with_script(value):
    if isinstance(value, str):
        return SCRIPT
    if isinstance(value, dict):
        return {name if name in KEPT else name + SCRIPT: with_script(value[name]) for name in value}
    return [with_script(each) for each in value] if isinstance(value, list) else value


KEPT = {
    *("name", "title", "seeds", "columns", "selected_by", "baseline", "convergence", "note"),
    *("rows", "label", "paper", "points", "values", "directory", "settings", "metric", "heading"),
    *("factor", "mean", "standard_error", "data.dataset", "method", "epochs", "model", "layer"),
    *("plain_seconds", "layers", "num_weights", "num_measured", "seconds", "extrapolated"),
    *("message", "seed", "steps", "training_seconds", "median_step_time", "test_accuracy"),
    *("validation_accuracy", "test_loss", "host", "device"),
}


def test_a_script_in_every_text_of_the_files_is_text_on_the_page(sweep, console):
    for path in sweep.rglob("*.json"):
        value = json.loads(path.read_text())
        changed = with_script(value)
        if path.name == "sweep.json":
            # These choose what is shown, and are shown nowhere themselves.
            for new, old in zip(changed["rows"], value["rows"], strict=True):
                new["label"] = old["label"] + SCRIPT
                for new_point, old_point in zip(new["points"], old["points"], strict=True):
                    new_point["directory"] = old_point["directory"]
            changed["selected_by"] = value["selected_by"]
            changed["baseline"] += "-"
            changed["convergence"] = [row["label"] for row in changed["rows"]]
            for new, old in zip(changed["columns"], value["columns"], strict=True):
                new["metric"] = old["metric"]
        path.write_text(json.dumps(changed))
    text = write_report(ReportConfig(sweep), console).read_text()
    assert text.count("&lt;script&gt;") > 30
    page = Page(text)
    assert page.tags <= Page.HARMLESS
    addresses = [value for name, value in page.attributes if name in {"src", "srcset", "href"}]
    assert addresses
    for address in addresses:
        head, _, data = address.partition(",")
        assert head == "data:image/svg+xml;base64"
        names = {
            (element.tag.rpartition("}")[2], name.rpartition("}")[2], value[:1])
            for element in ET.fromstring(base64.b64decode(data)).iter()
            for name, value in [("", ""), *element.items()]
        }
        assert not [name for name in names if name[0] == "script" or name[1].startswith("on")]
        assert {value for _, name, value in names if name == "href"} <= {"#"}
    assert not [name for name, _ in page.attributes if name.startswith("on")]


def test_the_page_forbids_the_browser_to_load_anything(sweep, console):
    page = Page(write_report(ReportConfig(sweep), console).read_text())
    (policy,) = (value for name, value in page.attributes if value and "default-src" in value)
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_dollar_signs_in_labels_are_no_formulas(sweep, console):
    path = sweep / "sweep.json"
    path.write_text(path.read_text().replace('"Plain"', '"$\\\\frac$"'))
    write_report(ReportConfig(sweep), console)
