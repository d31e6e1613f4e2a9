"""Command lines that nobody meant: understood, or refused, without anything being done."""

import re

import pytest
from mutation import check_cases, contents, many, mutated_text

from experiments import __main__ as command_line
from experiments.errors import ExperimentError

SECRET = "hunter2"
URL = f"postgresql://me:{SECRET}@localhost:1/db"
# Where nothing else is left of the URL, nothing says that it is a password.
PASSWORD = re.compile(rf"(://|postgres[^:@/]*[:/]/*)[^:@/]*:[^@]*{SECRET}.*@", re.DOTALL)
PROCESSES = ["--distributed", "--coordinator", "host:1", "--num-processes", "2", "--process-id=1"]
LINES = [
    ["train", "digits", "--seed", "3", "--width", "4", "--method", "seht-d:lam=1e-2,p=0.05"],
    ["train", "cifar10-small", "--data-dir", "data", "--epochs", "2", "--batch-size", "64"],
    ["train", "pydoc", "--learning-rate", "0.1", "--clip-norm", "1", "--length", "10"],
    ["train", "digits", "--method", "plain", "--run-dir", "runs/x", "--log-every", "3"],
    ["train", "digits", "--mesh", "data=4,model=2", "--dtype", "bfloat16", "--remat"],
    ["train", "digits", "--distributed"],
    ["train", "digits", *PROCESSES],
    ["train", "digits", "--on-divergence", "restore", "--accumulate", "2"],
    ["train", "digits", "--checkpoint-every", "5", "--keep-checkpoints", "3"],
    ["train", "digits", "--keep-checkpoints-every", "10", "--method", "gauss-newton:one_in=4"],
    ["sweep", "table1-small", "--seeds", "1", "--epochs", "1", "--output-dir", "results"],
    ["sweep", "digits-small", "--storage", URL, "--study", "name"],
    ["sweep", "digits-small", f"--storage={URL}"],
    ["demo", "--seeds", "3", "--epochs", "2", "--output-dir", "demo"],
    ["strength", "--study", "lambdas", "--output-dir", "strength"],
    ["data", "prepare", "cifar10", "--data-dir", "data", "--archive", "file"],
    ["data", "prepare", "wikitext2", "--data-dir", "data"],
    ["report", "runs/sweeps/x"],
    ["analyse", "runs/digits/x", "--plain", "runs/digits/y", "--examples", "100"],
    ["prune", "runs/digits/x", "--keep", "0.5", "0.2", "--implant", "0.2", "--seeds", "3"],
]
RESULT = {
    "name": "digits",
    "method": ["plain"],
    "seed": 0,
    "epochs": 1,
    "steps": 1,
    "training_seconds": 1.0,
    "median_step_time": 1.0,
}


@pytest.fixture
def configs(monkeypatch, tmp_path):
    """What commands would work with; they do nothing, in an empty directory."""
    found = []

    def do(config, console):
        found.append(config)
        return RESULT

    for name in ("train_network", "run_sweep", "run_demo", "run_strength", "run_prepare"):
        monkeypatch.setattr(command_line, name, do)
    monkeypatch.setattr(command_line, "write_report", do)
    monkeypatch.setattr(command_line, "run_analyse", do)
    monkeypatch.setattr(command_line, "run_prune", do)
    monkeypatch.setattr(command_line, "join_processes", lambda devices: None)
    monkeypatch.chdir(tmp_path)
    return found


def mutated_line(random, line):
    line = list(line)
    for _ in range(random.randint(1, 2)):
        place, kind = random.randrange(len(line)), random.randrange(6)
        if kind == 0 and len(line) > 1:
            del line[place]
        elif kind == 1:
            line.insert(place, line[random.randrange(len(line))])
        elif kind == 2:
            line[place] = random.choice(random.choice(LINES))
        else:
            # No argument has a zero byte in it, or a surrogate that stands for none.
            line[place] = mutated_text(random, line[place]).replace("\0", "")
            line[place] = line[place].replace("\ud800", "\udcff")
    return line


def run_line(line):
    """The status with which the program ends; tyro says itself why it ends it."""
    try:
        return command_line.main(line)
    except SystemExit as ended:
        return ended.code


@pytest.mark.parametrize("line", LINES, ids=" ".join)
def test_the_command_lines_are_understood_as_they_are(configs, line):
    assert run_line(line) == 0
    assert len(configs) == 1


@many(short=60, long=1200)
def test_a_command_line_is_understood_or_refused(
    configs, capsys, tmp_path, record_property, num_cases
):
    def run(random):
        line = mutated_line(random, random.choice(LINES))
        status = run_line(line)
        captured = capsys.readouterr()
        assert status in {0, 1, 2}
        assert "Traceback" not in captured.err
        shown = "".join((captured.out + captured.err).split())
        assert SECRET not in shown or not any(map(PASSWORD.search, line))
        assert status == 0 or (captured.out + captured.err).strip()
        assert not contents(tmp_path)
        return status != 0

    check_cases("command lines", num_cases, record_property, run)


@pytest.mark.parametrize(
    "line",
    [
        ["sweep", "digits-small", "--storge", URL],
        ["sweep", "digits-small", f"--storge={URL}"],
        ["sweep", "digits-smal", "--storage", URL],
        ["sweep", "--storage", URL],
        ["sweep", "digits-small", "--storage", f"postgres//me:{SECRET}@host/db"],
        ["sweep", "digits-small", "--storage", f"postgresql:me:{SECRET}@host/db"],
        ["sweep", "digits-small", "--storage", f"postgresql://me:{SECRET}@host:port/db"],
        ["sweep", "digits-small", "--storage", f"postgresql://me:a@{SECRET}@host/db"],
        ["sweep", "digits-small", "--storage", f"mysql://me:{SECRET}@host/db"],
        ["sweep", "digits-small", "--storage", f"postgresql+asyncpg://me:{SECRET}@host/db"],
        ["sweep", "digits-small", "--storag", f"postgresql://host/db?password={SECRET}"],
        ["train", "digits", URL],
    ],
    ids=str,
)
def test_a_mistake_beside_a_password_does_not_show_it(configs, capsys, line):
    assert run_line(line) in {1, 2}
    captured = capsys.readouterr()
    shown = "".join((captured.out + captured.err).split())
    assert SECRET not in shown
    assert not configs


@pytest.mark.parametrize("line", [["--storage", URL], [f"--storage={URL}"]])
def test_the_sweep_is_given_the_password_that_is_hidden_meanwhile(configs, line):
    assert command_line.main(["sweep", "digits-small", *line]) == 0
    (config,) = configs
    assert config.storage == URL
    assert SECRET not in repr(config)


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "digits", "--run-dir"],
        ["train", "cifar10-small", "--data-dir"],
        ["sweep", "digits-small", "--output-dir"],
        ["demo", "--output-dir"],
        ["strength", "--output-dir"],
        ["data", "prepare", "cifar10", "--archive"],
        ["report"],
    ],
)
def test_what_looks_like_a_password_elsewhere_is_used_as_it_is_typed(configs, arguments):
    assert command_line.main([*arguments, "postgres-runs/x:1@host"]) == 0
    (config,) = configs
    assert "postgres-runs/x:1@host" in repr(config)
    assert "***" not in repr(config)


@pytest.mark.parametrize("directory", ["[/x]", "[red]", ":key:", "a b", "\udcff", "a?b%20c"])
def test_the_name_of_a_directory_is_shown_as_it_is(monkeypatch, capsys, tmp_path, directory):
    def failing(config, console):
        console.print(f"Training in {config.run_dir}.")
        raise ExperimentError(f"nothing in {config.run_dir}")

    monkeypatch.setattr(command_line, "train_network", failing)
    assert command_line.main(["train", "digits", "--run-dir", directory]) == 1
    captured = capsys.readouterr()
    shown = directory.encode("utf-8", "backslashreplace").decode()
    assert f"Training in {shown}." in captured.out
    assert f"error: nothing in {shown}" in captured.err
