"""What came of the runs: one JSON line for each, in a file that is kept in the repository."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from experiments.config import check_settings
from experiments.errors import DamagedFileError
from experiments.file_lock import file_lock
from experiments.json_file import Scalar, check_fields, parse_json


class Record(NamedTuple):
    """What came of one run.

    Attributes:
        run: Which run; tells those of the study apart.
        stage: The stage that it belongs to.
        setting: The setting.
        condition: The change of the setting, if any.
        method: The label of the method.
        values: The settings that were tuned, or are changed, by name.
        seed: The seed.
        settings: All settings, the checksum of the data included.
        commit: The commit of the code.
        date: When it came to its end.
        environment: Versions, device and number of CPUs.
        diverged: Whether it went wrong: its loss was not finite, or the network is no better than
            chance on the validation data.
        divergence: How.
        figures: What was measured; of a run whose loss was not finite nothing.
    """

    run: str
    stage: str
    setting: str
    condition: str
    method: str
    values: dict[str, Any]
    seed: int
    settings: dict[str, Any]
    commit: str | None
    date: str
    environment: dict[str, Any]
    diverged: bool
    divergence: str
    figures: dict[str, float]


_FIELDS = {
    "run": str,
    "stage": str,
    "setting": str,
    "condition": str,
    "method": str,
    "values": dict[str, Scalar],
    "seed": int,
    "settings": dict[str, Any],
    "commit": str | None,
    "date": str,
    "environment": dict[str, Scalar],
    "diverged": bool,
    "divergence": str,
    "figures": dict[str, float],
}


def read_records(path: Path) -> dict[str, Record]:
    """Read the records.

    A last line without its end was being written when a process was killed; it is left out.

    Args:
        path: The file, which need not exist.

    Returns:
        The records by run, in the order in which they were written.

    Raises:
        DamagedFileError: If a line is none of a record, or two are of one run.
    """
    records: dict[str, Record] = {}
    if not path.exists():
        return records
    *lines, _ = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        try:
            record = _parse(line, records)
        except ValueError as error:
            raise DamagedFileError(
                f"line {number} of {path} is damaged, or of another program: {error}. Restore it, "
                "or delete the line: the study's command runs it again."
            ) from error
        records[record.run] = record
    return records


def append_record(path: Path, record: Record) -> bool:
    """Write a record behind the others, unless there is one of its run.

    Args:
        path: The file; beside it the name with the suffix ``.lock`` is used meanwhile.
        record: The record.

    Returns:
        Whether it was written.

    Raises:
        DamagedFileError: If the file holds something else.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(path.with_suffix(".lock")):
        if record.run in read_records(path):
            return False
        with path.open("ab") as file:
            _cut_off_half_a_line(path)
            file.write(json.dumps(record._asdict()).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    return True


def _cut_off_half_a_line(path: Path) -> None:
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)


def _parse(line: bytes, earlier: Mapping[str, Record]) -> Record:
    """Read one line.

    Raises:
        ValueError: If it is no record, or one of a run that has an earlier one.
    """
    value: Mapping[str, Any] = check_fields(parse_json(line), _FIELDS, "the record")
    unknown = sorted(value.keys() - _FIELDS.keys())
    if unknown:
        raise ValueError(f"{unknown[0]!r} is no field of a record")
    check_settings(value["settings"])
    if value["run"] in earlier:
        raise ValueError(f"the run {value['run']!r} has an earlier record")
    return Record(**value)
