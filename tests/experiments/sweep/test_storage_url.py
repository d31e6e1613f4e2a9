"""URLs of a storage: which are refused, and that nobody sees a password."""

import io
import json
from pathlib import Path

import pytest
import sweep_worker
from known_sweep import log
from mutation import check_cases, contents, many, mutated_text, refusal
from rich.console import Console

from experiments import __main__ as command_line
from experiments.errors import DivergedError, ExperimentError, StorageError
from experiments.presets import SWEEPS
from experiments.sweep.command import SweepConfig, run_sweep
from experiments.sweep.storage_url import (
    hide_in_argument,
    hide_password,
    parse_storage_url,
    sqlite_url,
    without_password,
)

SECRET = "hunter2-öß'%$"
WRITTEN = "hunter2-%C3%B6%C3%9F%27%25%24"
STARTS = ["postgresql://me:", "postgresql+psycopg://me:", "mysql://root:", "postgresql://:"]
ENDS = ["@localhost:1/db", "@/db?host=/nowhere", "@[::1]:1/db?sslmode=disable&connect_timeout=1"]


@many(short=200, long=2000)
def test_a_url_is_refused_or_read_and_its_password_not_shown(record_property, num_cases):
    def read(random):
        start, end = random.choice(STARTS), random.choice(ENDS)
        changed = random.random()
        url = (mutated_text(random, start) if changed < 0.6 else start) + "hunter2"
        url += mutated_text(random, end) if changed > 0.4 else end
        refused = refusal(StorageError, lambda: parse_storage_url(url))
        message = str(refused) if refused else without_password(parse_storage_url(url))
        before, _, behind = url.partition("hunter2")
        # Where nothing says that it is a password, it is a user's name or a database's.
        if ":" in before.partition("//")[2] and "@" in behind:
            assert "hunter2" not in message
        return refused is not None

    check_cases("URLs of a storage", num_cases, record_property, read)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql://me:secret@host:port/db", "not what was given, which is not shown"),
        ("postgres//me:secret@host/db", "not what was given, which is not shown"),
        ("postgresql://me:se@cret@host/db", "in which @ stands once.*%40"),
        ("postgresql:///me:secret@host/db", "in which @ stands once.*%40"),
        ("postgresql+asyncpg://me:secret@host/db", "without the name of a driver"),
        ("sqlite:///a\0b", "unprintable"),
        ("sqlite://", "not sqlite://"),
        ("nonsense", "not 'nonsense'"),
    ],
)
def test_what_is_refused_is_explained(url, words):
    with pytest.raises(
        StorageError, match=rf"storage must be sqlite:///FILE or .*{words}"
    ) as caught:
        parse_storage_url(url)
    assert "secret" not in str(caught.value)
    assert "cret" not in str(caught.value)


def test_a_users_name_may_have_an_at_sign():
    url = parse_storage_url("postgresql://me%40work:secret@host/db")
    assert (url.username, url.password, url.host) == ("me@work", "secret", "host")


def test_every_way_of_writing_a_password_is_hidden():
    url = parse_storage_url(f"postgresql://me:{WRITTEN}@host/db?sslpassword=other&host=a")
    assert url.password == SECRET
    text = f"({SECRET}) ({WRITTEN}) ({SECRET!r}) other host"
    assert hide_password(text, url) == "(***) (***) (***) *** host"
    assert without_password(url) == "postgresql://me:***@host/db?host=a&sslpassword=%2A%2A%2A"


@pytest.mark.parametrize(
    "argument",
    [
        "runs/a:b@c",
        "runs//a:b@c",
        "a?password=b",
        "seht-d:lam=1e-4",
        "--seeds=3",
        "sqlite:///a/b.db",
        "me@host",
    ],
)
def test_other_arguments_are_left_as_they_are(argument):
    assert hide_in_argument(argument) == argument


@pytest.mark.parametrize("name", ["a b", "a?b%20c", "ä@b:c#"])
def test_the_file_of_a_database_may_have_any_name(tmp_path, name):
    directory = tmp_path / name
    directory.mkdir()
    url = sqlite_url(directory / "sweep.db")
    assert Path(str(parse_storage_url(url).database)) == directory / "sweep.db"
    assert sweep_worker.open_queue(url, directory).claim() is not None
    assert (directory / "sweep.db").stat().st_size > 0
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_no_file_and_no_output_of_a_sweep_has_the_password(
    postgresql_server, tmp_path, monkeypatch, capfd, caplog
):
    """A sweep on a server, with a run that diverges, one that breaks, and a server that refuses."""
    url = postgresql_server.format("postgres").replace("tester@", f"tester:{WRITTEN}@")
    monkeypatch.setitem(SWEEPS, "digits-small", sweep_worker.SWEEP)
    monkeypatch.setattr("experiments.sweep.worker.PATIENCE_SECONDS", 0)
    output = io.StringIO()
    console = Console(file=output, width=500)
    config = SweepConfig("digits-small", storage=url, study="secrets", output_dir=tmp_path)

    def breaking(config, console):
        raise RuntimeError(f"no connection to {url}")

    def ending(config, console):
        if config.seed:
            config.run_dir.mkdir(exist_ok=True)
            raise DivergedError("The run diverged at step 7.")
        result = sweep_worker.fake_run(config, console)
        (config.run_dir / "metrics.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in log(0.1))
        )
        return result

    with pytest.raises(RuntimeError, match="no connection"):
        run_sweep(config, console, breaking)
    run_sweep(config, console, ending)
    for wrong in (url.replace("tester:", "nobody:"), f"postgresql://me:{WRITTEN}@localhost:1/db"):
        with pytest.raises(ExperimentError) as caught:
            run_sweep(SweepConfig("digits-small", storage=wrong, output_dir=tmp_path), console)
        output.write(f"{caught.value}{caught.value!r}")
    command_line.write_report(command_line.ReportConfig(tmp_path), console)
    written = contents(tmp_path)
    assert len(written) > 10
    assert "diverged at step 7" in output.getvalue()
    shown = [output.getvalue(), *capfd.readouterr(), caplog.text]
    for text in [*(each.encode() for each in shown), *written.values()]:
        for form in (SECRET, WRITTEN, "hunter2"):
            assert form.encode() not in text
