"""Tables in the paper's form."""

import json
import shutil

from experiments.report.cost import costs
from experiments.report.read import read_sweep
from experiments.report.summary import summarise
from experiments.report.tables import cost_table, grid_table, markdown, result_table
from experiments.training.run_directory import write_json


def read(directory):
    sweep = read_sweep(directory)
    return sweep, summarise(sweep)


def test_results_stand_beside_the_papers(finished):
    table = result_table(*read(finished))
    assert table.headings == [
        *("model", "test accuracy, %", "the paper's", "test loss"),
        *("n", "diverged", "chosen on validation", "runs"),
    ]
    assert table.lines == [
        ["Plain", "80.00 ± 5.77", "94.00 ± 0.24", "0.20 ± 0.06", "3", "none", "–", "3 of 3"],
        [
            *("SEHT-D 1", "62.00 ± 0.58", "95.37 ± 0.09", "0.38 ± 0.01"),
            *("3", "none", "seht-d.lam = 0.2", "9 of 9"),
        ],
        [
            *("SEHT-D 5", "55.00 ± 5.00", "–", "0.45 ± 0.05"),
            *("2", "1 of 3 diverged", "–", "3 of 3"),
        ],
        ["SEHT-D 5, p", "–", "–", "–", "0", "3 of 3 diverged", "–", "3 of 3"],
        ["MM + FRL", "not run; reported by its paper", "95.33", *5 * ["–"]],
    ]
    remarks = " ".join(table.remarks)
    assert "at the last epoch (2)" in remarks
    assert "the largest mean validation accuracy is chosen" in remarks
    assert "SEHT-D 5: a remark" in remarks
    assert "Incomplete" not in remarks


def test_an_incomplete_sweep_says_so_first(finished):
    shutil.rmtree(finished / "runs/plain/seed0")
    shutil.rmtree(finished / "runs/plain/seed1")
    table = result_table(*read(finished))
    assert table.remarks[0].startswith("Incomplete: 16 of 18 runs are at their end.")
    assert table.lines[0][1] == "90.00"  # one run has no standard error
    assert table.lines[0][-1] == "1 of 3"


def test_grids_show_validation_figures_alone(finished):
    table = grid_table(*read(finished))
    assert table.lines == [
        ["SEHT-D 1", "seht-d.lam = 0.1", "0.5000 ± 0.0000", "3", "0 of 3", ""],
        ["SEHT-D 1", "seht-d.lam = 0.2", "0.7000 ± 0.0577", "3", "0 of 3", "chosen"],
        ["SEHT-D 1", "seht-d.lam = 0.3", "0.9000 ± 0.0000", "2", "1 of 3", ""],
    ]


def test_costs_are_ratios_to_the_baseline(finished):
    sweep, summaries = read(finished)
    table = cost_table(sweep, summaries, costs(summaries, sweep.baseline))
    assert table.headings[2] == "time / Plain"
    assert table.lines[0] == ["Plain", "3.00 ± 0.58", "1.00 ± 0.00", "1.00 ± 0.00", "–", "3"]
    assert table.lines[1] == ["SEHT-D 1", "4.00 ± 0.58", "1.36 ± 0.07", "1.36 ± 0.07", "1.2", "3"]
    remarks = " ".join(table.remarks)
    assert "different machines" not in remarks
    assert "come from one worker on an idle machine: `python -m experiments sweep cost`" in remarks


def test_times_of_different_machines_are_called_so(finished):
    write_json(finished / "runs/plain/seed0/environment.json", {"device": "H100", "host": "node"})
    sweep, summaries = read(finished)
    table = cost_table(sweep, summaries, costs(summaries, sweep.baseline))
    assert "different machines (H100 on node, cpu on desk)" in " ".join(table.remarks)


def test_markdown_has_as_many_cells_in_every_line(finished):
    table = result_table(*read(finished))
    table.lines[0][0] = "a|b"
    lines = markdown(table).splitlines()
    assert [line.replace("\\|", "").count("|") for line in lines[:7]] == [9] * 7
    assert lines[2].startswith("| a\\|b | 80.00 ± 5.77 |")


def test_the_sizes_of_the_data_are_said(finished):
    path = finished / "runs/plain/seed0/result.json"
    sizes = {"train_images": 45_000, "validation_images": 5000, "test_images": 10_000}
    write_json(path, json.loads(path.read_text()) | sizes)
    remarks = result_table(*read(finished)).remarks
    assert "45,000 training, 5,000 validation and 10,000 test images." in remarks
