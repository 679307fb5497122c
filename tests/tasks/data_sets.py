"""torchvision's data sets in their own file formats, with a few images of noise."""

import gzip
import pickle
import struct
from pathlib import Path

import numpy as np

RESOURCES = {True: "train", False: "t10k"}


def write_mnist(root: Path, folder: str = "MNIST", train: int = 60, test: int = 40) -> Path:
    """Writes images (28, 28) in the IDX format, class k about as bright as k, and returns `root`."""
    raw = root / folder / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, count in ((True, train), (False, test)):
        labels = (np.arange(count) % 10).astype(np.uint8)
        pixels = (rng.integers(0, 30, (count, 28, 28)) + 20 * labels[:, None, None]).astype(np.uint8)
        stem = raw / RESOURCES[part]
        Path(f"{stem}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, count, 28, 28) + pixels.tobytes())
        Path(f"{stem}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, count) + labels.tobytes())
    return root


def write_cifar(root: Path, fine: bool = False) -> Path:
    """Writes CIFAR-10, or CIFAR-100 if `fine`, as pickles of 10 images each, and returns `root`."""
    folder = root / ("cifar-100-python" if fine else "cifar-10-batches-py")
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    names = ("train", "test") if fine else (*(f"data_batch_{index}" for index in range(1, 6)), "test_batch")
    key = "fine_labels" if fine else "labels"
    for name in names:
        batch = {"data": rng.integers(0, 256, (10, 3072), dtype=np.uint8), key: list(range(10))}
        (folder / name).write_bytes(pickle.dumps(batch))
    meta = {"fine_label_names" if fine else "label_names": [str(index) for index in range(100 if fine else 10)]}
    (folder / ("meta" if fine else "batches.meta")).write_bytes(pickle.dumps(meta))
    return root


def gzipped(root: Path, folder: str = "MNIST") -> dict[str, bytes]:
    """Returns the files of `write_mnist` as they are downloaded, by name."""
    return {f"{path.name}.gz": gzip.compress(path.read_bytes()) for path in (root / folder / "raw").iterdir()}
