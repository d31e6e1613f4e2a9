"""Feed a parser with input that is guided by the lines it reaches: by `test_guided.py`.

    python tests/guided_fuzz.py TARGET RUNS DIRECTORY

DIRECTORY is empty; it is given valid input to begin with, and the input that fails. Ends with
another status than 0 if the parser ends with an error that is not meant.
"""

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["experiments"]):
    from experiments.config import mesh_sizes
    from experiments.errors import DamagedFileError, StorageError
    from experiments.json_file import parse_json
    from experiments.regularizers import parse_method
    from experiments.sweep.storage_url import parse_storage_url
    from experiments.training.logging import read_log

ROW = b'{"step": 1, "epoch": 0.1, "loss": 2.0, "seconds": 0.1, "step_time": 0.1}\n'
# What is meant, and valid input.
TARGETS = {
    "json": ((ValueError,), [b'{"a": [1, -2.5e3, null, true, "\\u00e9"]}', b'{"": {}}']),
    "log": ((DamagedFileError,), [ROW, ROW + ROW.replace(b"1,", b"2,", 1)]),
    "method": ((ValueError,), [b"plain", b"seht-d:lam=1e-4,p=0.05 cutout:size=4"]),
    "storage": ((StorageError,), [b"postgresql://me:word@localhost:5432/db?sslmode=require"]),
    "mesh": ((ValueError,), [b"data=4,model=2"]),
}


def feed(target: str, data: bytes, file: Path) -> None:
    """Call a parser."""
    text = data.decode("utf-8", "surrogateescape")
    match target:
        case "json":
            parse_json(data)
        case "log":
            file.write_bytes(data)
            read_log(file)
        case "method":
            parse_method(text.split(" "))
        case "storage":
            parse_storage_url(text)
        case "mesh":
            mesh_sizes(text)


def main(target: str, runs: str, directory: str) -> None:
    meant, valid = TARGETS[target]
    corpus = Path(directory) / "corpus"
    corpus.mkdir()
    for number, data in enumerate(valid):
        (corpus / str(number)).write_bytes(data)

    def case(data: bytes) -> None:
        try:
            feed(target, data, Path(directory) / "file")
        except meant:
            return

    options = [f"-runs={runs}", "-seed=1", "-max_len=300"]
    atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={directory}/", str(corpus)], case)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
