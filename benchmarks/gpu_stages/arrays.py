"""Images as plain uint8 arrays in a folder: what a machine without network and without parquet can read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from rankfold import zoo
from rankfold.zoo.images import IMAGE_SETS, load_images

NAMES = ("train_images", "train_labels", "test_images", "test_labels")
VALIDATION = 5_000


def pack(folder: Path, name: str = "cifar10") -> tuple[str, ...]:
    """Write the images of a data set that ``RANKFOLD_DATA`` holds as four files; their names."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    for split, (images, labels) in load_images(name).items():
        np.save(folder / name / f"{split}_images.npy", images.numpy())
        np.save(folder / name / f"{split}_labels.npy", labels.numpy())
    return tuple(f"{name}/{file}.npy" for file in NAMES)


def cifar10(folder: Path | None) -> zoo.Data:
    """CIFAR-10 from the arrays of a folder; the last 5,000 training images are the validation split.

    (``rankfold.zoo`` holds out a part in the proportions of the classes; the images are in random order, and this needs
    no further package.) Raises ``FileNotFoundError`` that names what is missing.
    """
    place = (folder or Path(".")) / "cifar10"
    absent = [f"{name}.npy" for name in NAMES if folder is None or not (place / f"{name}.npy").is_file()]
    if absent:
        raise FileNotFoundError(f"{place} lacks {', '.join(absent)}: make them with --pack, and give --data FOLDER")
    found = {name: torch.from_numpy(np.load(place / f"{name}.npy")) for name in NAMES}
    return data_of(*(found[name] for name in NAMES), VALIDATION)


def noise(count: int) -> zoo.Data:
    """Random images with labels that a network can learn: the class is in the mean colour."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(4 * count) % 10
    images = torch.randint(0, 120, (4 * count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    images += (12 * labels.view(-1, 1, 1, 1)).to(torch.uint8)
    return data_of(images[: 3 * count], labels[: 3 * count], images[3 * count :], labels[3 * count :], count)


def data_of(
    images: torch.Tensor, labels: torch.Tensor, test: torch.Tensor, test_labels: torch.Tensor, held: int
) -> zoo.Data:
    published = IMAGE_SETS["cifar10"]
    mean, std = torch.tensor(published.mean), torch.tensor(published.std)
    parts = (images[:-held], labels[:-held]), (images[-held:], labels[-held:]), (test, test_labels)
    train, validation, tested = (zoo.Split(x, y.long(), mean, std) for x, y in parts)
    return zoo.Data("cifar10", train, validation, tested, classes=10)
