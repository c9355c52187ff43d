"""Any classification set in a folder: `imagefolder:DIR`, a folder of pictures a class, or `parquet:DIR`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rankfold.run.progress import Progress
from rankfold.zoo.errors import ZooError
from rankfold.zoo.kept import kept
from rankfold.zoo.pictures import STATISTICS, Pictures, Transform
from rankfold.zoo.resolve import imported
from rankfold.zoo.split import Data, Split, hold_out

IMAGEFOLDER, PARQUET = "imagefolder:", "parquet:"
ENDINGS = (".jpeg", ".jpg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
MEMORY = 1 << 30  # bytes of decoded pictures that are held; of more, each is read when it is asked for
_NAMES = {"train": ("train", "training"), "validation": ("validation", "valid", "dev", "val"), "test": ("test",)}
_COLOURS = 2  # of how pictures become bytes: those that were kept of another number are made anew
_HELD = 0.1  # of train, at most so many pictures, where no validation part comes with the data
_MOST_HELD = 5_000
_IMAGES, _LABELS = ("image", "img", "pixel_values"), ("label", "labels", "fine_label", "class")
_KEYS = "resize=256, crop=224, statistics=imagenet, transform=package.module:function"


@dataclass(frozen=True)
class Asked:
    """A spec taken apart: ``kind:DIR,key=value,…``."""

    spec: str
    folder: Path
    transform: Transform
    statistics: str = "imagenet"

    @classmethod
    def parsed(cls, spec: str, kind: str) -> Asked:
        """Raises ``ZooError``: an unknown key, a value that is not a number, a function that cannot be imported."""
        folder, *settings = spec.removeprefix(kind).split(",")
        values: dict[str, Any] = {}
        statistics = "imagenet"
        for setting in settings:
            key, equals, value = setting.partition("=")
            if key in ("resize", "crop") and value.isdigit() and int(value) > 0:
                values[key] = int(value)
            elif key == "statistics" and value in STATISTICS:
                statistics = value
            elif key == "transform" and equals:
                values["own"] = imported(value)
            else:
                raise ZooError(
                    f"{spec}: there is no setting {setting!r}: the settings are {_KEYS}; statistics are "
                    f"{', '.join(STATISTICS)}; the name of a folder cannot hold a comma"
                )
        transform = Transform(**({"resize": round(values["crop"] / 0.875)} if set(values) == {"crop"} else {}) | values)
        if transform.own is None and transform.resize < transform.crop:
            raise ZooError(f"{spec}: crop={transform.crop} is larger than resize={transform.resize}")
        return cls(spec, Path(folder).expanduser(), transform, statistics)


@dataclass(frozen=True)
class Part:
    """Sources of pictures with their labels (N,), how to open one, and what to call it."""

    sources: Any
    labels: Tensor
    open_: Callable[[Any], Any]
    name: Callable[[Any], str]
    identity: str


def is_folder_spec(spec: str) -> bool:
    return spec.startswith((IMAGEFOLDER, PARQUET))


def has_own_transform(spec: str) -> bool:
    """Whether its settings name a function of somebody's."""
    return any(setting.partition("=")[0] == "transform" for setting in spec.split(",")[1:])


def load_folder(spec: str, progress: Progress | None = None) -> Data:
    """The data of `imagefolder:DIR` or `parquet:DIR`, as ``load_data`` has it.

    `imagefolder:DIR` has DIR/train/CLASS/picture.jpg and the like, `parquet:DIR` files whose names begin with those of
    the parts, with columns of pictures and of labels, numbers or names. The parts are train (training), validation
    (val, valid, dev) and test; where two are there, the second is judged once, as a test part, and validation is held
    out of train. Settings follow the folder: `imagefolder:DIR,resize=256,crop=224,statistics=imagenet`, or
    `transform=package.module:function`, which is given a PIL image. Up to 1 GiB of decoded pictures is held and kept in
    the cache; of more, each is read when it is asked for. Raises ``ZooError``, one sentence.
    """
    kind = IMAGEFOLDER if spec.startswith(IMAGEFOLDER) else PARQUET
    asked = Asked.parsed(spec, kind)
    if not asked.folder.is_dir():
        raise ZooError(f"{spec}: there is no folder {asked.folder}")
    parts, classes = _folders(asked) if kind == IMAGEFOLDER else _tables(asked)
    if "train" not in parts or len(parts) < 2:
        there = ", ".join(parts) or "none of them"
        raise ZooError(
            f"{spec}: the folder must hold parts train and test, or train and val, and may hold all three: found "
            f"{there}"
        )
    splits = {name: _split(asked, name, part, progress) for name, part in parts.items()}
    if "test" not in splits:
        splits["test"] = splits.pop("validation")
    if "validation" not in splits:
        count = max(1, min(_MOST_HELD, round(_HELD * len(splits["train"]))))
        splits["train"], splits["validation"] = hold_out(splits["train"], count)
    return Data(spec, splits["train"], splits["validation"], splits["test"], classes)


def _split(asked: Asked, name: str, part: Part, progress: Progress | None) -> Split:
    mean, std = (torch.tensor(values) for values in STATISTICS[asked.statistics])
    pictures = Pictures(part.sources, part.open_, asked.transform, part.name)
    first = pictures[0]
    inputs: Any = pictures
    if len(pictures) * first.numel() * first.element_size() <= MEMORY:

        def decode() -> dict[str, Tensor]:
            chunks = []
            for begun in range(0, len(pictures), 256):
                chunks.append(pictures[begun : begun + 256])
                if progress is not None:
                    progress(f"{asked.folder.name} {name}", min(begun + 256, len(pictures)), len(pictures))
            return {"images": torch.cat(chunks)}

        own = asked.transform.own is not None  # a function may change without its name: nothing is kept of it
        settings = f"resize={asked.transform.resize} crop={asked.transform.crop} colours={_COLOURS}"
        inputs = (decode() if own else kept(f"folder-{name}", f"{part.identity} {settings}", decode))["images"]
    channels = first.shape[0]
    mean, std = mean[:channels], std[:channels]
    if channels > len(mean):
        raise ZooError(
            f"{asked.spec}: pictures of {channels} channels must be floats: give at most three channels, or floats"
        )
    return Split(inputs, part.labels, mean, std)


def _parts(asked: Asked, there: Collection[str]) -> dict[str, str]:
    """Of the names that are there, which one is each part; ``ZooError`` where two are the same part."""
    found = {}
    for part, names in _NAMES.items():
        here = [name for name in names if name in there]
        if len(here) > 1:
            raise ZooError(
                f"{asked.spec}: {' and '.join(here)} are names of one part, {part}: move all but one of them away"
            )
        if here:
            found[part] = here[0]
    return found


def _folders(asked: Asked) -> tuple[dict[str, Part], int]:
    there = [name for names in _NAMES.values() for name in names if (asked.folder / name).is_dir()]
    places = {part: asked.folder / name for part, name in _parts(asked, there).items()}
    found = {part: _pictures_of(place) for part, place in places.items()}
    classes = sorted({name for part in found.values() for name, _ in part})
    if len(classes) < 2:
        raise ZooError(
            f"{asked.spec}: below train and test (or val) there must be at least two folders of pictures, one for "
            "each class"
        )
    numbers = {name: number for number, name in enumerate(classes)}
    made = {}
    for part, pairs in found.items():
        if not pairs:
            raise ZooError(f"{asked.spec}: {places[part]} holds no picture ({', '.join(ENDINGS[:3])}, …) for any class")
        files = [file for _, file in pairs]
        status = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        labels = torch.tensor([numbers[name] for name, _ in pairs])
        made[part] = Part(files, labels, _opened, str, repr(status))
    return made, len(classes)


def _pictures_of(place: Path) -> list[tuple[str, Path]]:
    """(class, file), classes and files in the order of their names."""
    return [
        (folder.name, file)
        for folder in sorted(p for p in place.iterdir() if p.is_dir())
        for file in sorted(folder.rglob("*"))
        if file.suffix.lower() in ENDINGS and file.is_file()
    ]


def _opened(file: Path) -> Any:
    image = _pil().open(file)
    image.load()
    return image


def _pil() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise ZooError("reading pictures needs the package pillow: pip install 'rankfold[data]'") from error
    return Image


def _tables(asked: Asked) -> tuple[dict[str, Part], int]:
    from rankfold.zoo.images import datasets_library

    files: dict[str, list[Path]] = {}
    for file in sorted(asked.folder.rglob("*.parquet")):
        named = [name for names in _NAMES.values() for name in names if file.name.startswith(name)]
        if named:
            files.setdefault(max(named, key=len), []).append(file)
    tables, told = {}, {}
    for part, name in _parts(asked, files).items():
        group = files[name]
        try:
            table = datasets_library().load_dataset("parquet", data_files={"train": [*map(str, group)]}, split="train")
        except (OSError, ValueError, RuntimeError, TypeError) as error:
            raise ZooError(f"{asked.spec}: {group[0]} cannot be read: {' '.join(str(error).split())}") from error
        columns = [next((n for n in names if n in table.column_names), None) for names in (_IMAGES, _LABELS)]
        if None in columns:
            raise ZooError(
                f"{asked.spec}: {group[0].name} has the columns {', '.join(table.column_names)}: one of "
                f"{', '.join(_IMAGES)} and one of {', '.join(_LABELS)} were expected"
            )
        tables[part] = group, _reader(table.select_columns([columns[0]]), str(columns[0]))
        told[part] = f"{asked.spec}: {group[0].name}", table[columns[1]][:]
    labels, classes = _numbered(told)
    made = {}
    for part, (group, reader) in tables.items():
        status = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in group]
        made[part] = Part(range(len(labels[part])), labels[part], reader, _row(group[0].name), repr(status))
    return made, classes


def _numbered(told: Mapping[str, tuple[str, Sequence[Any]]]) -> tuple[dict[str, Tensor], int]:
    """Labels of each part, told as numbers or, in all parts, as names, which count in their order; and how many classes
    there are."""
    every = {label for _, labels in told.values() for label in labels if isinstance(label, str)}
    numbers = {name: number for number, name in enumerate(sorted(every))}
    found = {}
    for part, (where, labels) in told.items():
        if None in labels:
            raise ZooError(
                f"{where}: picture {list(labels).index(None)} has no label (null): leave such pictures out of the file"
            )
        known = [numbers.get(label, -1) for label in labels] if numbers else list(labels)
        if not known or not all(isinstance(label, int) and label >= 0 for label in known):
            raise ZooError(
                f"{where}: labels must be whole numbers from 0 on, or names in every part, and there must be at least "
                "one"
            )
        found[part] = torch.tensor(known, dtype=torch.long)
    return found, max((1 + int(labels.max()) for labels in found.values()), default=0)


def _reader(table: Any, column: str) -> Callable[[int], Any]:
    return lambda index: table[index][column]


def _row(name: str) -> Callable[[int], str]:
    return lambda index: f"{name}, picture {index}"
