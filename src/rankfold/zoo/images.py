"""Images of a published data set: decoded once from parquet, then mapped from a cache of plain tensors."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rankfold.run.progress import Progress
from rankfold.zoo.errors import ZooError
from rankfold.zoo.kept import kept

_EVERY = 1000


@dataclass(frozen=True)
class ImageSet:
    """Where the images are, how many there must be, and the published constants of their normalisation."""

    hub: str
    image_column: str
    shape: tuple[int, int, int]  # C, H, W
    counts: tuple[tuple[str, int], ...]  # images in each split
    mean: tuple[float, ...]
    std: tuple[float, ...]
    label_column: str = "label"
    classes: int = 10


IMAGE_SETS = {
    "mnist": ImageSet(
        "ylecun/mnist", "image", (1, 28, 28), (("train", 60_000), ("test", 10_000)), (0.1307,), (0.3081,)
    ),
    "fashion-mnist": ImageSet(
        "zalando-datasets/fashion_mnist",
        "image",
        (1, 28, 28),
        (("train", 60_000), ("test", 10_000)),
        (0.2860,),
        (0.3530,),
    ),
    # The constants with which the published CIFAR ResNet weights were trained (those of ImageNet).
    "cifar10": ImageSet(
        "uoft-cs/cifar10",
        "img",
        (3, 32, 32),
        (("train", 50_000), ("test", 10_000)),
        (0.485, 0.456, 0.406),
        (0.229, 0.224, 0.225),
    ),
    "cifar100": ImageSet(
        "uoft-cs/cifar100",
        "img",
        (3, 32, 32),
        (("train", 50_000), ("test", 10_000)),
        (0.5071, 0.4865, 0.4409),
        (0.2673, 0.2564, 0.2762),
        "fine_label",
        100,
    ),
}


def load_images(
    name: str, *, download: bool = False, progress: Progress | None = None
) -> dict[str, tuple[Tensor, Tensor]]:
    """{"train", "test"}: (images (N, C, H, W) uint8, labels (N,) int64) of one of IMAGE_SETS.

    From `$RANKFOLD_DATA/<name>/{train,test}.parquet`, or from the Hugging Face hub if `download` (or the
    environment variable RANKFOLD_DOWNLOAD=1) asks for it and the files are absent. Decoding takes seconds and
    reports to `progress`; afterwards the tensors are mapped from the cache, `$RANKFOLD_CACHE` or
    ~/.cache/rankfold.
    Raises ZooError when the images are not there, not readable, or not those of the data set.
    """
    images = IMAGE_SETS[name]
    folder = folder_of(name)
    if folder is None and not (download or os.environ.get("RANKFOLD_DOWNLOAD") == "1"):
        root = os.environ.get("RANKFOLD_DATA")
        place = f"in {root} (RANKFOLD_DATA)" if root else "on this machine, as RANKFOLD_DATA is not set"
        raise ZooError(
            f"data set {name!r} is not {place}: RANKFOLD_DATA must name a folder with {name}/train.parquet and "
            f"{name}/test.parquet, or --download (download=True, or RANKFOLD_DOWNLOAD=1) fetches {images.hub} "
            "from the Hugging Face hub"
        )
    return {split: _cached(name, images, split, count, folder, progress) for split, count in images.counts}


def folder_of(name: str) -> Path | None:
    root = os.environ.get("RANKFOLD_DATA")
    if not root:
        return None
    folder = Path(root) / name
    return folder if (folder / "train.parquet").is_file() and (folder / "test.parquet").is_file() else None


def _cached(
    name: str, images: ImageSet, split: str, count: int, folder: Path | None, progress: Progress | None
) -> tuple[Tensor, Tensor]:
    file = None if folder is None else folder / f"{split}.parquet"

    def decode() -> dict[str, Tensor]:
        pixels, labels = _decode(name, images, split, count, file, progress)
        return {"images": pixels, "labels": labels}

    stored = kept(f"{name}-{split}", _identity(images, file), decode)
    return stored["images"], stored["labels"]


def _decode(
    name: str, images: ImageSet, split: str, count: int, file: Path | None, progress: Progress | None
) -> tuple[Tensor, Tensor]:
    source, what = images.hub if file is None else file, f"decoding {name} {split}, once"
    if progress is not None:
        progress(what, 0, count)
    datasets = datasets_library()
    pixels = np.empty((count, *images.shape), dtype=np.uint8)
    labels = np.empty(count, dtype=np.int64)
    done = 0
    try:
        for row in _rows(datasets, images, split, file):
            if done < count:
                image = np.asarray(row[images.image_column])
                pixels[done] = image[None] if image.ndim == 2 else image.transpose(2, 0, 1)
                labels[done] = row[images.label_column]
            done += 1
            if progress is not None and (done % _EVERY == 0 or done == count):
                progress(what, done, count)
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise ZooError(f"data set {name!r}: {source} cannot be read: {type(error).__name__}: {reason}") from error
    if done != count or labels.min() < 0 or labels.max() >= images.classes:
        raise ZooError(
            f"data set {name!r}: {source} is not its {split} split: it holds {done} images and not {count}, or "
            f"other labels than 0 to {images.classes - 1}: {labels[:done].min(initial=0)} to "
            f"{labels[:done].max(initial=0)}"
        )
    return torch.from_numpy(pixels), torch.from_numpy(labels)


def datasets_library() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ZooError("reading images needs the package datasets: pip install 'rankfold[data]'") from error
    return datasets


def _rows(datasets: Any, images: ImageSet, split: str, file: Path | None) -> Any:
    # Streaming reads the file in place; the other mode copies all of it into a cache of its own first.
    if file is None:
        return datasets.load_dataset(images.hub, split=split, streaming=True)
    return datasets.load_dataset("parquet", data_files={split: str(file)}, split=split, streaming=True)


def _identity(images: ImageSet, file: Path | None) -> str:
    if file is None:
        return images.hub
    status = file.stat()
    return f"{file.resolve()} {status.st_size} {status.st_mtime_ns}"
