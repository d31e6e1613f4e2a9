"""Small archives in the layout of CIFAR's official "binary version", of random images."""

import io
import tarfile

import numpy as np

ARCHIVES = {"cifar10": "cifar-10-binary.tar.gz", "cifar100": "cifar-100-binary.tar.gz"}
FILES = {
    "cifar10": {
        "train": [f"cifar-10-batches-bin/data_batch_{batch}.bin" for batch in range(1, 6)],
        "test": ["cifar-10-batches-bin/test_batch.bin"],
    },
    "cifar100": {"train": ["cifar-100-binary/train.bin"], "test": ["cifar-100-binary/test.bin"]},
}
NAMES = {
    "cifar10": {"cifar-10-batches-bin/batches.meta.txt": 10},
    "cifar100": {
        "cifar-100-binary/coarse_label_names.txt": 20,
        "cifar-100-binary/fine_label_names.txt": 100,
    },
}


def images_and_labels(name, split):
    """Random images, each of its own, ``(examples, 32, 32, 3)``, and their labels, two per class.

    CIFAR-100's coarse label is a fifth of the fine one.
    """
    classes = 10 if name == "cifar10" else 100
    random = np.random.default_rng([classes, len(split)])
    labels = np.arange(2 * classes) % classes
    images = random.integers(0, 256, (len(labels), 32, 32, 3), dtype=np.uint8)
    return images, labels


def archive(name):
    """The bytes of a small archive in the layout of the official "binary version"."""
    files = {}
    for split, paths in FILES[name].items():
        images, labels = images_and_labels(name, split)
        columns = [labels] if name == "cifar10" else [labels // 5, labels]
        planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
        rows = np.column_stack([*columns, planes]).astype(np.uint8)
        for path, part in zip(paths, np.array_split(rows, len(paths)), strict=True):
            files[path] = part.tobytes()
    for path, number in NAMES[name].items():
        # The official files end with an empty line.
        files[path] = "".join(f"name_{index}\n" for index in range(number)).encode() + b"\n"
    files[next(iter(files)).replace(".bin", ".html")] = b"to be left alone"
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for path, data in files.items():
            member = tarfile.TarInfo(path)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return stream.getvalue()
