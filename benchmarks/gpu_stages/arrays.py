"""Images as plain uint8 arrays in a folder: what a machine without network and without parquet can read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from rankfold import zoo
from rankfold.zoo.images import IMAGE_SETS, load_images

NAMES = ("train_images", "train_labels", "test_images", "test_labels")
VALIDATION = 5_000
PART = 16 << 20  # bytes of a file


def pack(folder: Path, name: str = "cifar10", most: int = PART) -> tuple[str, ...]:
    """Write the images of a data set that ``RANKFOLD_DATA`` holds, in files of at most ``most`` bytes; their names.

    ``index.json`` says how many parts each array has.
    """
    place = folder / name
    place.mkdir(parents=True, exist_ok=True)
    index = {}
    for split, pair in load_images(name).items():
        for what, array in zip(("images", "labels"), pair, strict=True):
            rows = max(1, most // (array[0].numel() * array.element_size()))
            begins = range(0, len(array), rows)
            for number, begun in enumerate(begins):
                np.save(place / f"{split}_{what}-{number:02d}.npy", array.numpy()[begun : begun + rows])
            index[f"{split}_{what}"] = len(begins)
    (place / "index.json").write_text(json.dumps(index) + "\n", encoding="utf-8")
    return tuple(f"{name}/{file}" for file in (*_files(index), "index.json"))


def _files(index: dict[str, int]) -> list[str]:
    return [f"{array}-{number:02d}.npy" for array, parts in index.items() for number in range(parts)]


def cifar10(folder: Path | None) -> zoo.Data:
    """CIFAR-10 from the arrays of a folder; the last 5,000 training images are the validation split.

    (``rankfold.zoo`` holds out a part in the proportions of the classes; the images are in random order, and this needs
    no further package.) Raises ``FileNotFoundError`` that names what is missing.
    """
    place = (folder or Path(".")) / "cifar10"
    remedy = "make them with --pack, and give --data FOLDER"
    if folder is None or not (place / "index.json").is_file():
        raise FileNotFoundError(f"{place} lacks index.json and its arrays: {remedy}")
    index = json.loads((place / "index.json").read_text(encoding="utf-8"))
    absent = [file for file in _files(index) if not (place / file).is_file()]
    if absent or set(index) != set(NAMES):
        raise FileNotFoundError(f"{place} lacks {', '.join(absent[:4]) or 'some arrays'}: {remedy}")
    found = {
        name: torch.from_numpy(np.concatenate([np.load(place / f"{name}-{i:02d}.npy") for i in range(index[name])]))
        for name in NAMES
    }
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
