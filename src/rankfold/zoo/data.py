"""Data sets by name: the bundled digits, the papers' images, and whatever a user's factory returns."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from operator import index as integer
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from rankfold.batches import Columns, is_hugging_face
from rankfold.run.disk.given import how_to_give
from rankfold.run.progress import lent, showing
from rankfold.train.feed import length
from rankfold.zoo.errors import ZooError
from rankfold.zoo.folders import has_own_transform, is_folder_spec, load_folder
from rankfold.zoo.images import IMAGE_SETS, Progress, load_images
from rankfold.zoo.kept import kept
from rankfold.zoo.resolve import call_factory
from rankfold.zoo.samples import Samples, are_batches, as_pair, as_tensors, layout
from rankfold.zoo.split import Data, Split, held_indices, hold_out, of_classes, parted
from rankfold.zoo.text import TEXT, TOKENS, Reader

_VALIDATION_IMAGES = 5_000
_VALIDATION_SHARE = {"digits": 0.2, "custom": 0.1}
_DIGITS_TEST_SHARE = 0.25
_PAD = (
    "pad them, or give DataLoaders whose collate_fn pads, as (train, validation) or (train, validation, test); for a "
    "model that takes a list of samples, one that gives (([a, b],), targets)"
)
_IGNORED = -100  # a label that leaves its sample out, as torch has it


def data_names() -> tuple[str, ...]:
    """Every name that `load_data` knows."""
    return ("digits", *IMAGE_SETS)


def names_code(spec: str) -> bool:
    """Whether `load_data` would import code of somebody's for ``spec``: a factory, or a transform of pictures."""
    if is_folder_spec(spec):
        return has_own_transform(spec)
    return ":" in spec and not spec.startswith((TEXT, TOKENS))


@showing
def load_data(
    spec: str, *, download: bool = False, progress: Progress | None = None, reader: Reader | None = None
) -> Data:
    """The data set that ``spec`` names.

    ``digits`` (8×8, scikit-learn) needs no file. ``mnist``, ``fashion-mnist``, ``cifar10`` and ``cifar100`` come from
    the folder in the environment variable RANKFOLD_DATA, or, with ``download``, from the Hugging Face hub. A validation
    split that does not come with the data is a fixed part of train, in the proportions of the classes (5,000 images; 20
    % of digits; 10 % of a factory's); test is never touched.

    A factory is called without arguments and returns (train, test) or (train, validation, test): sized, indexable data
    sets of (input, target) pairs with inputs of one shape, as a model takes them. A target is an integer label, a
    number or a tensor; data without targets have inputs alone. Models with several inputs have a tuple or dict of
    tensors for the input, or dicts that hold the target too. They are read into memory; images of uint8,
    (C, H, W) or (H, W), are divided by 255. Or it returns DataLoaders, lists of batches and iterable data sets, which
    are left as they are, their order included; nothing can be held out of them, so that two such parts are train and
    validation. An attribute ``objective`` of the factory says what outputs and targets mean.

    Args:
        spec: one of ``rankfold.zoo.data_names()``, ``imagefolder:DIR``, ``parquet:DIR``, ``package.module:factory``,
            ``text:FILE`` or ``tokens:FILE``.
        download: whether the Hugging Face hub may be asked.
        progress: called as ``progress(what, done, total)`` as the work goes on.
        reader: of a model, for text and tokens (``rankfold.zoo.text.reader_for``).

    Returns:
        ``Data`` with ``train``, ``validation`` and ``test``.

    Raises:
        ZooError: one sentence on what is missing or does not fit.

    Example:
        >>> data = rf.zoo.load_data("digits")
        >>> len(data.train), len(data.validation), len(data.test), data.classes
        (1078, 270, 449, 10)
    """
    if spec.startswith((TEXT, TOKENS)):
        if reader is None:
            raise ZooError(
                f"{spec}: text is data for a language model or encoder of transformers: give such a model, as a folder"
            )
        return reader.data(spec, download=download)
    if is_folder_spec(spec):
        return load_folder(spec, progress)
    if names_code(spec):
        with lent(progress):
            return _custom(spec)
    if spec == "digits":
        return _digits()
    if spec not in IMAGE_SETS and Path(spec).exists():
        raise ZooError(how_to_give(Path(spec)))
    if spec not in IMAGE_SETS:
        raise ZooError(
            f"there is no data set {spec!r}: the names are {', '.join(data_names())}; data of your own are given "
            "as package.module:factory"
        )
    images = IMAGE_SETS[spec]
    parts = load_images(spec, download=download, progress=progress)
    mean, std = torch.tensor(images.mean), torch.tensor(images.std)
    train, validation = _held_out(spec, Split(*parts["train"], mean, std), _VALIDATION_IMAGES)
    return Data(spec, train, validation, Split(*parts["test"], mean, std), classes=images.classes)


def _digits() -> Data:
    stored = kept("digits", f"scikit-learn {version('scikit-learn')}", _read_digits)
    # Pixels run from 0 to 16; mean and deviation over the train split.
    mean, std = torch.tensor([0.3062]), torch.tensor([0.3767])
    every = Split(stored["images"], stored["labels"], mean, std, scale=16.0)
    rest, test = _held_out("digits", every, round(_DIGITS_TEST_SHARE * len(every)))
    train, validation = _held_out("digits", rest, round(_VALIDATION_SHARE["digits"] * len(rest)))
    return Data("digits", train, validation, test, classes=10)


def _read_digits() -> dict[str, Tensor]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images.astype(np.uint8)).unsqueeze(1)
    return {"images": images, "labels": torch.from_numpy(bunch.target).long()}


def _held_out(name: str, split: Split, count: int) -> tuple[Split, Split]:
    """``hold_out``, whose choice is kept: the import of scikit-learn for it takes longer than a short command."""
    identity = f"{count} of {_digest(split.labels)}, scikit-learn {version('scikit-learn')}"
    chosen = kept(f"{name}-split", identity, lambda: {"held": held_indices(split.labels, len(split), count)})
    return parted(split, chosen["held"])


def _digest(labels: Tensor) -> str:
    return hashlib.sha256(labels.numpy().tobytes()).hexdigest()


def _custom(spec: str) -> Data:
    parts, factory = call_factory(spec)
    objective = getattr(factory, "objective", None)
    if hasattr(parts, "train") and hasattr(parts, "validation"):
        return replace(_of_named(spec, parts), objective=objective or getattr(parts, "objective", None))
    if not isinstance(parts, tuple | list) or len(parts) not in (2, 3):
        given = f"{len(parts)} parts" if isinstance(parts, tuple | list) else f"a {type(parts).__name__}"
        raise ZooError(
            f"{spec}: the factory must return (train, test) or (train, validation, test) data sets, or an object with "
            f"train, validation and test, and returned {given}"
        )
    return replace(data_of(spec, parts), objective=objective)


def _of_named(spec: str, parts: Any) -> Data:
    """Of an object with train and validation, and maybe test, as the functions in Python take them."""
    test = getattr(parts, "test", None)
    found = data_of(spec, (parts.train, parts.validation, parts.validation if test is None else test))
    return found if test is not None else replace(found, test=None)


def data_of(spec: str, parts: Sequence[Any]) -> Data:
    """The data that a factory returned, (train, test) or (train, validation, test), as `load_data` reads them.

    Of two parts of which the first is a loader, batches or iterable, from which nothing can be held out, the second is
    the validation part, and there is no test part. `spec` names them in messages. Raises ZooError, one sentence.
    """
    names = ("train", "test") if len(parts) == 2 else ("train", "validation", "test")
    splits: dict[str, Any] = {name: _part(f"{spec}, {name}", part) for name, part in zip(names, parts, strict=True)}
    if len(parts) == 2 and not isinstance(splits["train"], Split | Samples):
        return Data(spec, splits["train"], splits["test"], None, None)  # none can be taken from a loader
    labels = [split.labels for split in splits.values() if isinstance(split, Split | Samples)]
    known = [label for label in labels if label is not None and of_classes(label)]
    classes = 1 + max(int(label.max()) for label in known) if len(known) == len(splits) else None
    if "validation" not in splits:
        count = max(1, round(_VALIDATION_SHARE["custom"] * len(splits["train"])))
        splits["train"], splits["validation"] = hold_out(splits["train"], count)
    return Data(spec, splits["train"], splits["validation"], splits["test"], classes)


def parts_of(data: Any) -> Any:
    """Data with parts as they are; of a tuple (train, test) or (train, validation, test) what `load_data` makes.

    Raises ZooError, one sentence, for anything else.
    """
    if hasattr(data, "train") and hasattr(data, "validation"):
        return data
    if isinstance(data, tuple) and len(data) in (2, 3):
        return data_of("the data", data)
    raise ZooError(
        f"the data are a {type(data).__name__}: give an object with train, validation and test, such as "
        "zoo.Data, or a tuple (train, test) or (train, validation, test)"
    )


def _part(where: str, part: Any) -> Any:
    """A part in memory where it can be indexed; loaders, batches and other iterables as they are."""
    if isinstance(part, Split | Samples):
        return part
    members = part if isinstance(part, tuple) else (part,)
    numbers = [x for x in members if isinstance(x, Tensor) or (isinstance(x, np.ndarray) and x.dtype.kind in "biuf")]
    if members and len(numbers) == len(members):
        part = TensorDataset(*map(torch.as_tensor, members))
    if isinstance(part, Iterator) or not (hasattr(part, "__iter__") or hasattr(part, "__getitem__")):
        raise ZooError(
            f"{where}: a {type(part).__name__} is no data set with a length and an index, no DataLoader, and no "
            f"list of batches: give one of these{', such as list(it)' * isinstance(part, Iterator)}"
        )
    if length(part) == 0:
        what = "DataLoader gives no batch" if isinstance(part, DataLoader) else "data set is empty"
        raise ZooError(f"{where}: the {what}")
    if isinstance(part, DataLoader | IterableDataset) or are_batches(part):
        return part
    if length(part) is None or not hasattr(part, "__getitem__"):
        return part
    return _in_memory(where, Columns(part) if is_hugging_face(part) else part)


def _in_memory(where: str, samples: Any) -> Split | Samples:
    inputs: list[Any] = []
    targets: list[Any] = []
    for index in range(len(samples)):
        try:
            sample, target = as_pair(samples[index])
            if not _several(target):
                inputs.append(as_tensors(sample))
                targets.append(_target(target))
        except (TypeError, ValueError, RuntimeError) as error:
            raise ZooError(
                f"{where}: sample {index} is neither (input, target) nor inputs alone, where an input is a "
                f"tensor, or a tuple or dict of tensors: {error}"
            ) from error
        if _several(target):
            raise ZooError(
                f"{where}: the target of sample {index} is a {type(target).__name__} of several tensors: give a "
                "DataLoader over these samples, torch.utils.data.DataLoader(data, batch_size=64), whose batches are "
                "taken as they come, and an objective of your own for them (objective=, --objective)"
            )
        if layout(inputs[-1]) != layout(inputs[0]):
            raise ZooError(
                f"{where}: sample {index} is {layout(inputs[-1])} and sample 0 is {layout(inputs[0])}, and all "
                f"inputs must be alike: {_PAD}"
            )
        if _kind(targets[-1]) != _kind(targets[0]):
            raise ZooError(
                f"{where}: sample {index} has {_kind(targets[-1])} and sample 0 has {_kind(targets[0])}, and all "
                f"targets must be alike: {_PAD}"
            )
    if targets[0] is None:
        return Samples(inputs, None)
    labels = torch.stack(targets)
    if labels.dtype == torch.int64 and labels.dim() == 1 and bool(((labels < 0) & (labels != _IGNORED)).any()):
        raise ZooError(f"{where}: label {int(labels.min())} is negative, and labels must count from 0")
    if not isinstance(inputs[0], Tensor):
        return Samples(inputs, labels)
    channels = inputs[0].shape[0] if inputs[0].ndim else 1
    return Split(torch.stack(inputs), labels, torch.zeros(channels), torch.ones(channels))


def _several(target: Any) -> bool:
    """Whether a target is more than one tensor: of several heads, for example."""
    inside = target.values() if isinstance(target, Mapping) else target if isinstance(target, tuple | list) else ()
    return isinstance(target, Mapping) or any(isinstance(x, Tensor) and x.dim() for x in inside)


def _target(target: Any) -> Tensor | None:
    """A whole number as a class; other numbers and arrays as they are."""
    if target is None:
        return None
    try:
        return torch.tensor(integer(target))
    except TypeError:
        return torch.as_tensor(target)


def _kind(target: Tensor | None) -> str:
    return "no target" if target is None else f"a target {layout(target)}"
