"""TFDS's builders of CIFAR-10 and CIFAR-100, with images encoded without TensorFlow.

TFDS's own yield NumPy images, which only TensorFlow can encode. These yield the same examples,
under the same keys, with the images as PNG; so the order of the files is TFDS's, too.
"""

import io
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from rich.progress import Progress
from tensorflow_datasets.image_classification import cifar

from experiments.data.archive import Archive

_SIDE = 32
_PIXELS = 3 * _SIDE * _SIDE


class Cifar10(cifar.Cifar10, skip_registration=True):  # the name stays that of TFDS's builder
    """CIFAR-10 from the archive in its "binary version"."""

    _archive_path: Path
    _progress: Progress

    @property
    def archive(self) -> Archive:
        """The archive that TFDS downloads, with the checksum that it has on record."""
        url = self._cifar_info.url
        # A builder outside TFDS has no records of its own.
        official: Any = {"cifar10": cifar.Cifar10, "cifar100": cifar.Cifar100}[self.name]
        record = official.url_infos[url]
        return Archive(url, int(record.size), record.checksum)

    def write(self, archive_path: Path, progress: Progress) -> Path:
        """Write the data set in TFDS's format.

        Args:
            archive_path: The archive.
            progress: Shows how many images are encoded.

        Returns:
            The directory of this version, which exists only once it is whole.
        """
        self._archive_path = archive_path
        self._progress = progress
        self.download_and_prepare()
        return Path(self.data_dir)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager  # the archive is here
        layout = self._cifar_info
        splits = {"train": layout.train_files, "test": layout.test_files}
        names = [*layout.label_files, *layout.train_files, *layout.test_files]
        files = _read_members(self._archive_path, layout.prefix, names)
        for key, name in zip(layout.label_keys, layout.label_files, strict=True):
            features: Any = self.info.features
            features[key].names = files[name].decode().split()
        return {
            split: self._examples(split, b"".join(files[name] for name in names))
            for split, names in splits.items()
        }

    def _log_download_bytes(self) -> None:
        """Print nothing: what TFDS says here would name a directory that does not stay."""

    def _log_download_done(self) -> None:
        """Print nothing, likewise."""

    def _examples(self, split: str, data: bytes) -> Iterator[tuple[int, dict[str, Any]]]:
        label_keys = self._cifar_info.label_keys
        rows = np.frombuffer(data, np.uint8).reshape(-1, len(label_keys) + _PIXELS)
        rows_shown = self._progress.track(rows, total=len(rows), description=f"{split} images")
        for index, row in enumerate(rows_shown):
            labels, pixels = np.split(row, [len(label_keys)])
            yield (
                index,
                {
                    "id": f"{split}_{index:05d}",
                    "image": _png(pixels.reshape(3, _SIDE, _SIDE).transpose(1, 2, 0)),
                    **{key: int(label) for key, label in zip(label_keys, labels, strict=True)},
                },
            )


class Cifar100(Cifar10, cifar.Cifar100, skip_registration=True):
    """CIFAR-100 likewise; ``label`` is the fine one."""


def _read_members(path: Path, prefix: str, names: Sequence[str]) -> dict[str, bytes]:
    """Read files of an archive in one pass: to go back in one that is compressed takes long."""
    wanted = {f"{prefix}{name}": name for name in names}
    with tarfile.open(path) as archive:
        return {
            wanted[member.name]: file.read()
            for member in archive
            if member.name in wanted and (file := archive.extractfile(member))
        }


def _png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(file, format="PNG")
    return file.getvalue()
