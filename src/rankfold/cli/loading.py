"""From what was typed to a model and its data. Imports torch: only from inside a command."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from rankfold.cli.failure import one_line
from rankfold.compress.planning.plan import other_weights
from rankfold.compress.ranks.asked import parsed
from rankfold.compress.ranks.budget import Budget, Multiples
from rankfold.costs import Example
from rankfold.objectives import Objective, objective_named, objective_names
from rankfold.pipeline import first_example
from rankfold.run.disk.pretrained import is_folder
from rankfold.run.progress import Talk
from rankfold.sites import Names, fits, is_pretrained, sites, unwrap
from rankfold.store import MANIFEST, Stored, StoreError, load, read_manifest
from rankfold.train.step.precision import Arithmetic, arithmetic
from rankfold.zoo import Data, Resolved, ZooError, load_data, load_weights, model_names, resolve
from rankfold.zoo.pretrained import example_of, is_pretrained_name, tokenizer_of
from rankfold.zoo.resolve import imported
from rankfold.zoo.text import TEXT, TOKENS, reader_for


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model, ready to be measured. ``data``: None if none was asked for or known."""

    spec: str
    model: nn.Module
    data: Data | None
    example: Example | None
    plan: Any = None
    stored: Stored | None = None

    def to(self, device: torch.device) -> Loaded:
        """The same with its model on ``device``."""
        self.model.to(device)
        if self.stored is not None:
            self.stored.model.to(device)
        return self

    def needed_data(self) -> Data:
        if self.data is None:
            raise ZooError(f"{self.spec}: no data were given: give {self._which_data}")
        return self.data

    @property
    def _which_data(self) -> str:
        """What to type after --data for this model."""
        if is_pretrained(unwrap(self.model)) and getattr(self.model, "main_input_name", "") == "input_ids":
            return "--data text:FILE (.txt, .jsonl or .parquet, or tokens:FILE.npy)"
        return "--data NAME (digits, mnist, fashion-mnist, cifar10, …)"

    def needed_stored(self) -> Stored:
        """What ``open_saved`` read."""
        if self.stored is None:
            raise StoreError(f"{self.spec}: this is no saved model")
        return self.stored

    @property
    def known_example(self) -> Example | None:
        """One input, where data or the factory tell; None otherwise."""
        return self.example if self.data is None else self.needed_example()

    def needed_example(self) -> Example:
        if self.data is not None:
            return first_example(self.model, self.data.train)
        if self.example is None:
            raise ZooError(
                f"{self.spec}: the shape of an input is not known: give --data NAME, or give the factory an "
                "attribute example_input (a tensor, or a tuple or dict of arguments)"
            )
        return self.example


@contextmanager
def _plainly() -> Iterator[None]:
    """Outside of whatever arithmetic is set: factories may train, and give the same network in every command."""
    on_cuda = torch.autocast("cuda", enabled=False) if torch.cuda.is_available() else nullcontext()
    with torch.autocast("cpu", enabled=False), on_cuda:
        yield


@contextmanager
def computing(device: str, precision: str) -> Iterator[torch.device]:
    """Where the commands inside compute, and in which arithmetic; ``ZooError`` for what this machine has not."""
    name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    try:
        place = torch.device(name)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = one_line(error)
        raise ZooError(f"--device {device}: torch cannot compute there ({reason}): give cpu, cuda or auto") from None
    with arithmetic(cast(Arithmetic, precision), place):
        yield place


def objective_of(spec: str | None) -> Objective | None:
    """The objective of a name, or the one at ``package.module:attribute``, an object or a factory of it."""
    if spec is None:
        return None
    if ":" not in spec:
        return objective_named(spec)
    found = imported(spec)
    return objective_named(found() if not isinstance(found, Objective) and callable(found) else found)


@_plainly()
def original_of(loaded: Loaded, weights: Path | None) -> nn.Module:
    """The network that a saved one was made from, to compare outputs with; ``ZooError`` where it is not known."""
    if weights is not None and is_folder(weights):
        return resolve(str(weights)).model
    if loaded.stored is None or (weights is None and ":" not in loaded.spec):
        raise ZooError(
            f"{loaded.spec}: the data have no targets, and there is no other network to compare the outputs "
            f"with: {_which_original(loaded)}"
        )
    model = resolve(loaded.spec, classes=_noted_classes(loaded.stored.notes)).model
    if weights is not None:
        load_weights(model, weights)
    if loaded.plan is not None and other_weights(loaded.plan, model):
        given = f"{weights} holds" if weights is not None else f"{loaded.spec} gives"
        raise ZooError(
            "the data have no targets, so the outputs are compared with those of the original network, and "
            f"{given} other weights than those that this one was made from: give the right ones with --original "
            "FILE"
        )
    return model.eval()


def _which_original(loaded: Loaded) -> str:
    """What to give for --original."""
    if loaded.stored is None:
        return "give a directory that compress or apply wrote, and --original with what it was made from"
    if is_pretrained(unwrap(loaded.stored.model)):
        made = str(loaded.stored.notes.get("model") or "FOLDER")
        return f"give the folder of the original that it was made from, --original {made}"
    return "give --original FILE, the weights that it was made from"


def noted_objective(notes: Any) -> str | None:
    """The objective that a saved model was judged by, where it is a built-in one."""
    name = notes.get("objective")
    return name if isinstance(name, str) and name in objective_names() else None


def budgets_of(texts: Sequence[str], multiple: int, of: str = "model") -> tuple[Budget, ...]:
    """The budgets that were typed, what they are fractions of, and the ranks that they may have."""
    budgets = parsed([*texts, *(["of=sites"] if of == "sites" else [])]) if texts else ()
    return (*budgets, Multiples(multiple)) if multiple > 1 else budgets


def chosen_layers(model: nn.Module, only: Sequence[str], exclude: Sequence[str]) -> Names | None:
    """Which layers may be factored; None for all. ``ZooError`` for a pattern that fits no layer of the model."""
    if not only and not exclude:
        return None
    names = [site.name for site in sites(model)]
    for option, patterns in (("--only", only), ("--exclude", exclude)):
        for pattern in patterns:
            if not any(fits(name, pattern) for name in names):
                near = get_close_matches(pattern, names, 3, 0.3) or names[:3]
                raise ZooError(
                    f"{option} {pattern}: no layer of this model matches; its layers are {', '.join(near)}, …"
                )
    chosen = Names(tuple(only), tuple(exclude))
    if not any(chosen(name, model) for name in names):
        asked = " and ".join(f"{option} {' '.join(p)}" for option, p in (("--only", only), ("--exclude", exclude)) if p)
        raise ZooError(f"{asked}: this leaves no layer to be factored; those of this model are {', '.join(names[:5])}")
    return chosen


def set_threads(threads: int | None) -> None:
    if threads is not None:
        torch.set_num_threads(threads)


_FOR = ("learn from", "choose on", "test on")  # the parts of a text


class Cut(NamedTuple):
    """How text becomes samples: tokens of each, and at most how many of each part; None: as it comes."""

    length: int | None = None
    windows: int | None = None


def data_named(
    name: str | None, download: bool, talk: Talk, model: nn.Module | None = None, cut: Cut | None = None
) -> Data | None:
    """The data of a name; of text as ``model`` reads it, with the tokenizer that lies beside its weights."""
    if name is None:
        return None
    cut, reader = cut or Cut(), None
    if name.startswith((TEXT, TOKENS)) and model is not None:
        folder = str(getattr(unwrap(model), "name_or_path", ""))
        tokenizer = tokenizer_of(folder) if name.startswith(TEXT) and is_folder(folder) else None
        reader = reader_for(unwrap(model), tokenizer, *cut)
    elif cut != Cut():
        raise ZooError(f"--length and --windows go only with text:FILE and tokens:FILE.npy, not with {name}")
    data = load_data(name, download=download, progress=talk.progress, reader=reader)
    if reader is not None and cut.windows is None:
        talk.say(_whole(data))
    return data


def _whole(data: Data) -> str:
    """How much text there is to go through, where nobody has said how much of it is wanted."""
    parts = [
        f"{len(part):,} to {what}" for part, what in zip((data.train, data.validation, data.test), _FOR, strict=True)
    ]
    return f"text: all {data.train.cut}, {', '.join(parts)}; --windows N takes at most N of each, and less time"


@_plainly()
def open_model(
    spec: str,
    weights: Path | None,
    data: str | None,
    download: bool,
    talk: Talk,
    *,
    trained: bool,
    own_data: bool,
    cut: Cut | None = None,
) -> Loaded:
    """The model that ``spec`` names with its weights. ``trained``: freshly drawn weights will not do.

    ``own_data``: without ``data``, take the data set for which a built-in model was made. ``cut``: of text.
    """
    text = data is not None and data.startswith((TEXT, TOKENS))
    if is_pretrained_name(spec) or (text and ":" in spec):
        return _open_reading(spec, weights, data, download, talk, cut)
    if trained and weights is None and ":" not in spec:
        resolve(spec)
        raise ZooError(f"{spec}: without its trained weights this network knows nothing: give them with --weights FILE")
    known = data_named(data, download, talk, cut=cut)
    built = _build(spec, known)
    if known is None and own_data and built.data is not None:
        known = data_named(built.data, download, talk)
    if weights is not None:
        load_weights(built.model, weights)
    example = None if built.example_input is None else Example.of(built.example_input)
    return Loaded(spec, built.model.eval(), known, example)


def _open_reading(
    spec: str, weights: Path | None, data: str | None, download: bool, talk: Talk, cut: Cut | None
) -> Loaded:
    """A model of transformers, before its data: it says how text is read."""
    if weights is not None and ":" not in spec:
        raise ZooError(f"{spec}: a folder holds its own weights: leave --weights out")
    built = resolve(spec, download=download)
    if weights is not None:
        load_weights(built.model, weights)
    known = data_named(data, download, talk, built.model, cut)
    example = None if built.example_input is None else Example.of(built.example_input)
    return Loaded(spec, built.model.eval(), known, example)


def _build(spec: str, data: Data | None) -> Resolved:
    if data is None or ":" in spec:
        return resolve(spec)
    return resolve(spec, classes=data.classes, in_channels=data.channels)


def is_saved(text: str) -> bool:
    """Whether it is a directory that rankfold wrote, or looks like one, rather than the name or folder of a model."""
    return Path(text).is_dir() and (not is_folder(text) or (Path(text) / MANIFEST).exists())


def check_is_model(text: str) -> None:
    """``ZooError`` for what is neither the directory it looks like nor a model."""
    if ":" not in text and text not in model_names() and not is_pretrained_name(text):
        raise ZooError(
            f"{text}: this is neither a directory nor the name of a model: give a directory that compress or "
            f"apply wrote, package.module:factory, a folder of transformers, or one of {', '.join(model_names())}"
        )


def code_named(model: str | None, data: str | None) -> str | None:
    """What must be said again, all at once, where a file names code of somebody's: ``model`` and ``data`` are what it
    names and nobody has said. None where that is nothing of the kind."""
    found = [("--model", model)] if model and ":" in model else []
    found += [("--data", data)] if data and ":" in data and not data.startswith((TEXT, TOKENS)) else []
    if not found:
        return None
    made = " with ".join(name for _, name in found)
    return (
        f"was made from {made}, which is code: if that code may run, add "
        f"{' '.join(f'{option} {name}' for option, name in found)}"
    )


@_plainly()
def open_saved(
    directory: Path,
    spec: str | None,
    data: str | None,
    download: bool,
    talk: Talk,
    *,
    own_data: bool,
    cut: Cut | None = None,
) -> Loaded:
    """A model that was saved by ``compress`` or ``apply``, built as its manifest says or by ``spec``.

    A manifest may name built-in models and data alone: a file does not decide which code runs.
    """
    notes, named = read_manifest(directory)["notes"], spec is not None
    if is_folder(directory):
        return _open_folder(directory, notes, spec, data, download, talk, own_data, cut)
    if spec is None:
        spec = str(notes.get("model") or "")
        if not spec:
            raise StoreError(f"{directory}: its manifest does not name the model: give --model package.module:factory")
    name = data or (str(notes.get("data") or "") or None if own_data else None)
    if (asked := code_named(None if named else spec, name if data is None else None)) is not None:
        raise StoreError(f"{directory}: {asked}")
    known = data_named(name, download, talk, cut=cut)
    shape = _noted_input(notes)
    channels = shape[0] if shape is not None and len(shape) == 3 else None
    built = resolve(spec, classes=_noted_classes(notes), in_channels=channels)
    stored = load(directory, built.model)
    example = _noted_example(notes, built)
    return Loaded(spec, stored.model.eval(), known, example, stored.plan, stored)


def _open_folder(
    directory: Path,
    notes: Any,
    spec: str | None,
    data: str | None,
    download: bool,
    talk: Talk,
    own_data: bool,
    cut: Cut | None,
) -> Loaded:
    """A Hugging Face folder that rankfold wrote: its configuration alone says what to build; ``spec`` may name what it
    was made from, to compare with."""
    stored = load(directory)
    name, noted = data or (str(notes.get("data") or "") or None if own_data else None), cut or Cut()
    if data is None and name is not None:
        if (asked := code_named(None, name)) is not None:
            raise StoreError(f"{directory}: {asked}")
        noted = Cut(*(noted[i] or _noted_number(notes, key) for i, key in enumerate(Cut._fields)))
    known = data_named(name, download, talk, stored.model, noted)
    found = example_of(stored.model)
    example = None if found is None else Example.of(found)
    return Loaded(spec or str(directory), stored.model.eval(), known, example, stored.plan, stored)


def _noted_number(notes: Any, key: str) -> int | None:
    found = notes.get(key)
    return found if isinstance(found, int) and not isinstance(found, bool) and found > 0 else None


def _noted_classes(notes: Any) -> int | None:
    classes = notes.get("classes")
    return classes if isinstance(classes, int) and not isinstance(classes, bool) else None


def _noted_input(notes: Any) -> tuple[int, ...] | None:
    """The shape of one input where there is one, without the axis of samples."""
    noted = Example.from_note(notes.get("input"))
    tensors = () if noted is None or noted.kwargs else noted.args
    return tuple(tensors[0].shape[1:]) if len(tensors) == 1 and isinstance(tensors[0], torch.Tensor) else None


def _noted_example(notes: Any, built: Resolved) -> Example | None:
    if built.example_input is not None:
        return Example.of(built.example_input)
    return Example.from_note(notes.get("input"))
