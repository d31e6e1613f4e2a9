"""The report: from the records alone, complete or not."""

import dataclasses
import re

import pytest
from study_worker import NUM_RUNS, PROTOCOL, SETTING, record_of

from experiments.errors import ConfigMismatchError
from experiments.report.command import ReportConfig, write_report
from experiments.report.page import Picture
from experiments.report.summary import Estimate
from experiments.strength.report import holm
from experiments.study import report
from experiments.study.figures import describe_flatness, draw_flatness
from experiments.study.protocol import PLAIN
from experiments.study.records import append_record
from experiments.study.stages import plan_stage
from experiments.study.statistics import paired_difference
from experiments.study.tables import (
    conditions_table,
    differences_table,
    equal_time_table,
    finalists_table,
    flatness_table,
    longer_table,
    progress_table,
    rival_table,
    show,
)


@pytest.fixture
def everything(records_up_to):
    """The records of the whole study, each with figures of its own."""
    records = records_up_to("longer")
    for run in plan_stage(PROTOCOL, SETTING, "longer", records).runs:
        records[run.key] = record_of(run)
    for number, (key, record) in enumerate(records.items()):
        if "hessian_trace" in record.figures:
            figures = {
                **record.figures,
                "hessian_trace": 100.0 + number % 7,
                "relative_trace": record.figures["test_loss"],
            }
            records[key] = record._replace(figures=figures)
    return records


def plan(stage, records):
    return plan_stage(PROTOCOL, SETTING, stage, records)


def lines_of(table):
    return [dict(zip(table.headings, line, strict=True)) for line in table.lines]


def test_finalists_have_their_figures_time_and_number(everything):
    table = finalists_table(SETTING, plan("finalists", everything), everything)
    plain, sam, *_ = lines_of(table)
    assert (plain["method"], plain["time / plain"], plain["n"]) == (PLAIN, "1.00", "3")
    assert plain["settings"] == "learning_rate=0.1, weight_decay=0.0005"
    cells = (sam["method"], sam["time / plain"], sam["diverged"])
    assert cells == ("SAM", "2.00 (1.90 to 2.10)", "none")
    accuracies = [
        100 * record.figures["test_accuracy"]
        for record in everything.values()
        if (record.stage, record.method) == ("finalists", "SAM")
    ]
    assert sam["test accuracy, %"].startswith(f"{sum(accuracies) / 3:.2f} ± ")
    assert not any("Incomplete" in remark for remark in table.remarks)


@pytest.mark.parametrize(
    ("value", "options", "text"),
    [
        (None, {}, "–"),
        (Estimate(0.6, 0.0123, 3), {"factor": 100.0}, "60.00 ± 1.23"),
        (Estimate(0.6, None, 1), {"factor": 100.0}, "60.00"),
        (Estimate(1234.5, 56.7, 3), {"significant": True}, "1234 ± 57"),
        (Estimate(12.345, 0.0567, 3), {"significant": True}, "12.345 ± 0.057"),
        (Estimate(12.345, None, 1), {"significant": True, "digits": 4}, "12.35"),
        (Estimate(3.0, 0.0, 3), {"significant": True}, "3.00 ± 0.00"),
    ],
)
def test_a_mean_has_as_many_digits_as_its_error(value, options, text):
    assert show(value, **options) == text


def test_diverged_runs_are_counted(everything):
    key = next(
        key
        for key, record in everything.items()
        if (record.stage, record.method, record.seed) == ("finalists", "SAM", 1)
    )
    everything[key] = everything[key]._replace(diverged=True, figures={})
    finalists = plan("finalists", everything)
    _, sam, *_ = lines_of(finalists_table(SETTING, finalists, everything))
    assert (sam["n"], sam["diverged"]) == ("2", "1 of 3")
    first = lines_of(differences_table(SETTING, finalists, everything))[0]
    assert (first["method"], first["n"], first["diverged"]) == ("SAM", "2", "1 of 3")


def test_every_finalist_is_compared_with_plain_training_and_the_others_with_the_rival(everything):
    finalists = plan("finalists", everything)
    others = ["Gauss-Newton SEHT-H", "SEHT-H"]
    against_plain = lines_of(differences_table(SETTING, finalists, everything))
    assert [line["method"] for line in against_plain] == ["SAM", *others]
    against_rival = lines_of(rival_table(PROTOCOL, SETTING, finalists, everything))
    assert [line["method"] for line in against_rival] == others
    assert {line["time / SAM"] for line in against_rival} == {"1.00"}


def test_p_values_are_corrected_over_the_lines_of_one_figure(everything):
    finalists = plan("finalists", everything)
    lines = lines_of(differences_table(SETTING, finalists, everything))
    found = [line["test accuracy, %: p (Holm)"] for line in lines]

    def of(method):
        return [everything[run.key] for run in finalists.runs if run.method == method]

    p_values = [
        paired_difference(of(line["method"]), of(PLAIN), "test_accuracy").p_value for line in lines
    ]
    assert found == [f"{each:.2g}" for each in holm(p_values)]
    assert found != [f"{each:.2g}" for each in p_values]
    assert "validation accuracy, %: p (Holm)" not in lines[0]


@pytest.mark.parametrize(
    ("gain", "is_no_worse"), [(0.0, True), (-0.009, True), (-0.02, False), (-0.0101, False)]
)
def test_no_worse_than_the_rival_is_within_the_margin(everything, gain, is_no_worse):
    sam = {
        record.seed: record.figures
        for record in everything.values()
        if (record.stage, record.method) == ("finalists", "SAM")
    }
    records = {
        key: record._replace(
            figures=sam[record.seed]
            | {"test_accuracy": sam[record.seed]["test_accuracy"] + gain + 1e-5 * record.seed}
        )
        if (record.stage, record.method) == ("finalists", "SEHT-H")
        else record
        for key, record in everything.items()
    }
    *_, line = lines_of(rival_table(PROTOCOL, SETTING, plan("finalists", records), records))
    assert (float(line["p of no worse (Holm)"]) < 0.05) is is_no_worse


def test_of_perplexity_more_is_worse(everything):
    setting = dataclasses.replace(SETTING, selected_by="validation_perplexity", margin=5.0)
    perplexities = {"SAM": 200.0, "Gauss-Newton SEHT-H": 190.0, "SEHT-H": 210.0}
    records = {
        key: record._replace(
            figures=record.figures
            | {"test_perplexity": perplexities.get(record.method, 220.0) + record.seed / 10}
        )
        for key, record in everything.items()
    }
    better, worse = lines_of(rival_table(PROTOCOL, setting, plan("finalists", records), records))
    assert better["test perplexity: difference, 95 %"] == "-10.00 ± 0.00"
    assert float(better["p of no worse (Holm)"]) < 0.05 < float(worse["p of no worse (Holm)"])


def test_at_equal_time_epochs_and_time_are_said(everything):
    plans = {stage: plan(stage, everything) for stage in ("finalists", "equal-time")}
    table = equal_time_table(SETTING, plans, everything)
    first = lines_of(table)[0]
    assert (first["method"], first["epochs"], first["time / plain"]) == ("SAM", "2", "1.00")
    assert not any("No dearer" in remark for remark in table.remarks)
    cheap = {
        key: record._replace(figures=record.figures | {"step_time_ratio": 1.0})
        if record.stage == "times" and record.method == "SAM"
        else record
        for key, record in everything.items()
    }
    plans["equal-time"] = plan("equal-time", cheap)
    table = equal_time_table(SETTING, plans, cheap)
    assert "SAM" not in [line[0] for line in table.lines]
    assert any(remark.endswith("not here: SAM.") for remark in table.remarks)


def test_the_recommended_form_is_compared_with_plain_training_that_lasts_as_long(everything):
    everything = {
        key: record._replace(figures=record.figures | {"test_loss": 0.3 + record.seed / 10})
        if record.stage == "longer"
        else record
        for key, record in everything.items()
    }
    plans = {stage: plan(stage, everything) for stage in ("finalists", "longer")}
    longer, plain, recommended = lines_of(longer_table(PROTOCOL, SETTING, plans, everything))
    assert (longer["method"], longer["epochs"], longer["time / plain"]) == (PLAIN, "8", "2.00")
    assert (plain["method"], plain["epochs"], plain["time / plain"]) == (PLAIN, "4", "1.00")
    name = "Gauss-Newton SEHT-H"
    assert (recommended["method"], recommended["epochs"]) == (name, "4")
    assert (recommended["time / plain"], recommended["n"]) == ("2.00", "3")
    by_stage = {
        stage: [each for each in everything.values() if each.stage == stage] for stage in plans
    }
    mine = [each for each in by_stage["finalists"] if each.method == name]
    difference = paired_difference(mine, by_stage["longer"], "test_loss").mean
    assert recommended["test loss: difference, 95 %"].startswith(f"{difference:+.4f} ± ")
    assert longer["test loss: difference, 95 %"] == "–"


def test_before_the_longer_runs_there_is_no_table_of_them(everything):
    some = {key: record for key, record in everything.items() if record.stage != "longer"}
    plans = {stage: plan(stage, some) for stage in ("finalists", "longer")}
    assert not longer_table(PROTOCOL, SETTING, plans, some).lines


def test_conditions_are_compared_with_plain_training_in_each(everything):
    lines = lines_of(conditions_table(SETTING, plan("conditions", everything), everything))
    assert {line["condition"] for line in lines} == {"label noise 20 %"}
    assert [line["method"] for line in lines] == [PLAIN, "SAM", "Gauss-Newton SEHT-H"]
    assert [line["n"] for line in lines] == ["–", "2", "2"]
    assert not any("p (Holm)" in heading for heading in lines[0])


def test_flatness_is_ranked_against_the_test_loss_with_and_without_equal_time(everything):
    lines = lines_of(flatness_table(PROTOCOL.settings, everything))
    by_measure = {(line["runs"], line["measure"]): line for line in lines}
    number = NUM_RUNS["finalists"]
    for runs in ("equal epochs", "with equal time"):
        relative = by_measure[runs, "relative trace of G"]
        assert (relative["ρ"], relative["n"]) == ("+1.00", str(number))
        assert (runs, "tr(G)") not in by_measure  # the same in all runs
        assert by_measure[runs, "tr(H)"]["ρ"] != "+1.00"
        number += NUM_RUNS["equal-time"]


def test_before_equal_time_flatness_is_of_equal_epochs(everything):
    some = {key: record for key, record in everything.items() if record.stage != "equal-time"}
    lines = lines_of(flatness_table(PROTOCOL.settings, some))
    assert {line["runs"] for line in lines} == {"equal epochs"}


def test_runs_at_equal_time_have_hollow_points(everything):
    figure = draw_flatness(SETTING, everything)
    points = [(each.get_offsets(), each.get_facecolor()) for each in figure.axes[0].collections]
    assert sum(len(places) for places, fill in points if len(fill)) == NUM_RUNS["finalists"]
    assert sum(len(places) for places, fill in points if not len(fill)) == NUM_RUNS["equal-time"]


def test_of_a_single_tested_run_no_rank_is_said(everything):
    key = next(key for key, record in everything.items() if record.stage == "finalists")
    assert describe_flatness(SETTING, {key: everything[key]}).endswith("for each tested run.")


def test_what_is_not_complete_is_said(everything):
    finalists = plan("finalists", everything)
    some = {
        key: record
        for key, record in everything.items()
        if record.stage in {"plain", "strengths"} or key in {run.key for run in finalists.runs[:5]}
    }
    plans = [plan(stage, some) for stage in ("plain", "strengths", "finalists")]
    (line,) = lines_of(progress_table(PROTOCOL, plans, some))
    assert line["strengths"] == "16 runs"
    assert line["finalists"] == "5 of 12 runs"
    assert line["conditions"] == "not planned yet"
    table = finalists_table(SETTING, finalists, some)
    assert any("Incomplete: 5 of 12 runs" in remark for remark in table.remarks)
    parts, _ = report.lay_out(PROTOCOL, some)
    assert [part.name for part in parts if isinstance(part, Picture)] == [
        "strengths-digits",
        "flatness-digits",
    ]


def test_before_the_first_run_there_is_nothing_but_that(everything):
    parts, opening = report.lay_out(PROTOCOL, {})
    assert opening.startswith("The study is under way: 0 runs so far, of which 0 diverged.")
    assert [part.title for part in parts] == ["What is done"]


def test_runs_that_are_no_part_of_the_study_are_counted(everything):
    _, record = everything.popitem()
    _, opening = report.lay_out(PROTOCOL, everything | {"runs/x": record._replace(run="runs/x")})
    assert "52 runs so far" in opening
    assert "1 further records are no part of it" in opening


def test_figures_say_in_words_what_they_show(everything):
    parts, _ = report.lay_out(PROTOCOL, everything)
    differences, strengths, flatness = [part for part in parts if isinstance(part, Picture)]
    assert "at equal time, test accuracy, %: SAM" in differences.alternative
    for method in SETTING.methods:
        assert method.label in strengths.alternative
    assert re.search(r"Plain training has \d+\.\d\d", strengths.alternative)
    ranks = "ρ = +1.00 (equal epochs, n = 12), ρ = +1.00 (with equal time, n = 21)"
    assert f"relative trace of G: {ranks}" in flatness.alternative


def test_the_command_writes_a_page_that_stands_alone(everything, tmp_path, console, monkeypatch):
    monkeypatch.setattr(report.write_study_report, "__kwdefaults__", None)
    monkeypatch.setattr(report.write_study_report, "__defaults__", (PROTOCOL,))
    for record in everything.values():
        append_record(tmp_path / "runs.jsonl", record)
    page = write_report(ReportConfig(tmp_path), console)
    text = page.read_text()
    assert page == tmp_path / "report" / "report.html"
    assert text.count("<img ") == 3
    assert not re.search(r'(src|href)="(?!data:)', text)
    markdown = (page.parent / "report.md").read_text()
    for heading in (
        "Finalists: Digits",
        "Against plain training:",
        "Against SAM:",
        "At equal time:",
        "Under other conditions:",
        "Plain training that lasts as long:",
    ):
        assert heading in markdown
    assert (page.parent / "strengths-digits.png").is_file()
    assert "The study is complete: 53 runs, of which 0 diverged." in markdown
    assert "what is there of one that is not complete" not in markdown
    assert "12 runs" in console.file.getvalue()


def test_records_of_another_protocol_are_refused(everything, tmp_path, console):
    base = dataclasses.replace(SETTING.base, epochs=5)
    protocol = dataclasses.replace(PROTOCOL, settings=(dataclasses.replace(SETTING, base=base),))
    for record in everything.values():
        append_record(tmp_path / "runs.jsonl", record)
    with pytest.raises(ConfigMismatchError, match="epochs: 4 there, 5 planned"):
        report.write_study_report(tmp_path, console, protocol)
