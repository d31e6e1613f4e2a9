"""The directory of a run."""

from pathlib import Path

import pytest

from experiments.errors import ConfigMismatchError
from experiments.training.run_directory import (
    claim_run_directory,
    read_settings,
    read_starts,
    record_start,
    write_json,
)


def test_a_directory_that_a_kill_left_before_the_settings_were_in_place_is_claimed(
    plain, tiny_digits, monkeypatch
):
    def killed(self, target):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            claim_run_directory(plain.run_dir, plain, tiny_digits)
    assert read_settings(plain.run_dir) is None
    assert len(list(plain.run_dir.iterdir())) == 1
    claim_run_directory(plain.run_dir, plain, tiny_digits)
    assert read_settings(plain.run_dir)["seed"] == plain.seed
    assert len(list(plain.run_dir.iterdir())) == 1


def test_what_else_is_there_is_refused_beside_a_temporary_file_too(plain, tiny_digits):
    plain.run_dir.mkdir()
    (plain.run_dir / "config.tmp").touch()
    (plain.run_dir / "thesis.tmp").write_text("years of work")
    with pytest.raises(ConfigMismatchError, match="not empty and holds no"):
        claim_run_directory(plain.run_dir, plain, tiny_digits)


def test_starts_are_added_to_those_before(tmp_path):
    assert read_starts(tmp_path) == []
    # As an earlier version wrote it down.
    write_json(tmp_path / "environment.json", {"commit": "abc", "device": "tpu"})
    record_start(tmp_path)
    first, second = read_starts(tmp_path)
    assert (first["device"], second["device"]) == ("tpu", "cpu")
