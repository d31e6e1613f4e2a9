"""WikiText-2 by words, from its text files: ``<eos>`` at the end of each line, blank ones too."""

import shlex
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from experiments.data.archive import Archive, fetch_archive, is_archive
from experiments.data.cifar import DEFAULT_DATA_DIR
from experiments.data.corpus import Corpus, make_corpus
from experiments.errors import ExperimentError, MissingDataError, explain_os_errors
from experiments.file_lock import file_lock

DIRECTORY = "wikitext-2"
END_OF_LINE = "<eos>"
VOCABULARY_SIZE = 33_278


class TextFile(NamedTuple):
    """A file of the corpus.

    Attributes:
        archive: Where it is on the network, and its checksum.
        num_tokens: Its words, and one `END_OF_LINE` for each line.
    """

    archive: Archive
    num_tokens: int


# The copy that comes with PyTorch's example of a word-level language model.
_URL = (
    "https://raw.githubusercontent.com/pytorch/examples/main/word_language_model/data/wikitext-2/"
)
FILES = {
    "train": TextFile(
        Archive(
            f"{_URL}train.txt",
            10_797_148,
            "9e9fa1ad55b1c2c95b08e37dd8e653f638fac2c6de904b79e813611eefbc985f",
        ),
        2_088_628,
    ),
    "validation": TextFile(
        Archive(
            f"{_URL}valid.txt",
            1_121_681,
            "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
        ),
        217_646,
    ),
    "test": TextFile(
        Archive(
            f"{_URL}test.txt",
            1_256_449,
            "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0",
        ),
        245_569,
    ),
}

_HOW_TO_GET_IT = """\
Pass --data-dir with the directory that has {directory}/train.txt, valid.txt and test.txt in it, \
or these files themselves. With a network, this fetches them:
    python -m experiments data prepare wikitext2 --data-dir {data_dir}
Without one, fetch {urls} elsewhere, and bring them there."""


def load_wikitext2(
    data_dir: Path | None, train_tokens: int | None, evaluation_tokens: int | None
) -> Corpus:
    """Load WikiText-2 into memory.

    Merity et al., *Pointer Sentinel Mixture Models* (2017).

    Args:
        data_dir: The directory with the files, or with a directory ``wikitext-2`` of them; ``None``
            is the default of the other data sets.
        train_tokens: See `make_corpus`.
        evaluation_tokens: See `make_corpus`.

    Returns:
        The text.

    Raises:
        MissingDataError: If a file is not there, or is not what it should be.
        SettingError: If a text is shorter than what is to be kept of it.
    """
    directory = find_files(data_dir or DEFAULT_DATA_DIR)
    words = {name: read_words(directory, name) for name in FILES}
    num_different = len(set().union(*words.values()))
    if num_different != VOCABULARY_SIZE:
        others = [
            file.archive.file_name
            for file in FILES.values()
            if not is_archive(file.archive, directory / file.archive.file_name)
        ]
        raise MissingDataError(
            f"the files in {directory} have {num_different:,} different words, not "
            f"{VOCABULARY_SIZE:,}. By its checksum, {' and '.join(others)} is not WikiText-2's; "
            "move it away and fetch it again"
        )
    return make_corpus(**words, train_tokens=train_tokens, evaluation_tokens=evaluation_tokens)


def find_files(data_dir: Path) -> Path:
    """Find the directory of the files.

    Args:
        data_dir: The directory, or the one above.

    Returns:
        The directory, which has all three files.

    Raises:
        MissingDataError: If there is none.
    """
    data_dir = data_dir.expanduser()
    names = [file.archive.file_name for file in FILES.values()]
    reasons = []
    for directory in (data_dir / DIRECTORY, data_dir):
        missing = [name for name in names if not (directory / name).is_file()]
        if not missing:
            return directory
        if len(missing) < len(names):
            reasons.append(f"{directory.absolute()} is not whole, without {', '.join(missing)}")
    exists = "has no such files" if data_dir.is_dir() else "does not exist"
    raise MissingDataError(
        f"No WikiText-2: {'; '.join(reasons) or f'{data_dir.absolute()} {exists}'}.\n"
        + _HOW_TO_GET_IT.format(
            directory=DIRECTORY,
            data_dir=shlex.quote(str(data_dir)),
            urls=" ".join(file.archive.url for file in FILES.values()),
        )
    )


def read_words(directory: Path, name: str) -> list[str]:
    """Read one file.

    Args:
        directory: Where it is.
        name: A key of `FILES`.

    Returns:
        Its words, and `END_OF_LINE` after each line's.

    Raises:
        MissingDataError: If it can not be read, or has not as many as it should.
    """
    file = FILES[name]
    path = directory / file.archive.file_name
    try:
        with path.open(encoding="utf-8") as lines:
            words = [word for line in lines for word in [*line.split(), END_OF_LINE]]
    except (OSError, UnicodeDecodeError) as error:
        raise MissingDataError(
            f"{path} can not be read as text: {error}. Move it away, and fetch it again."
        ) from error
    if len(words) != file.num_tokens:
        raise MissingDataError(
            f"{path} has {len(words):,} tokens, {END_OF_LINE} for each line included, not "
            f"{file.num_tokens:,}: it is cut short, or not WikiText-2's. Move it away, and fetch "
            "it again."
        )
    return words


def prepare_wikitext2(data_dir: Path | None, console: Console) -> Path:
    """Download the files, and verify them; what is there already is verified alone.

    Args:
        data_dir: Where the directory ``wikitext-2`` goes; ``None`` is the default of the other data
            sets.
        console: Where progress is shown.

    Returns:
        The directory of the files.

    Raises:
        ExperimentError: If a file can not be had or is not the right one, or the directory can not
            be written.
    """
    data_dir = (data_dir or DEFAULT_DATA_DIR).expanduser().absolute()
    directory = data_dir / DIRECTORY
    with explain_os_errors("prepare wikitext2", data_dir, "--data-dir", "13 MB"):
        directory.mkdir(parents=True, exist_ok=True)
        with file_lock(data_dir / f"{DIRECTORY}.lock"):
            for file in FILES.values():
                try:
                    fetch_archive(file.archive, directory, console)
                except ExperimentError as error:
                    raise ExperimentError(
                        f"{error}\nWithout a network: fetch {file.archive.url} on another machine, "
                        f"and bring it to {directory}."
                    ) from error
    console.print(f"WikiText-2 is in {directory}.", highlight=False, soft_wrap=True)
    return directory
