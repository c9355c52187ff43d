"""From what was typed to a model and its data. Imports torch: only from inside a command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from rankfold.cli.checks import check_idle
from rankfold.costs import Example
from rankfold.pipeline import first_example
from rankfold.run.disk.given import OWN_DATA
from rankfold.run.disk.pretrained import is_folder
from rankfold.run.progress import Talk
from rankfold.sites import is_pretrained, unwrap
from rankfold.store import Stored, StoreError
from rankfold.zoo import Data, Resolved, ZooError, load_data, load_weights, resolve
from rankfold.zoo.pretrained import is_pretrained_name, tokenizer_of
from rankfold.zoo.text import TEXT, TOKENS, reader_for


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model, ready to be measured. ``data``: None if none was asked for or known. ``drawn``: its weights are those
    that a built-in network is born with, since no others were given."""

    spec: str
    model: nn.Module
    data: Data | None
    example: Example | None
    plan: Any = None
    stored: Stored | None = None
    drawn: bool = False

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
            return "--data text:FILE (.txt, .csv, .jsonl or .parquet, or tokens:FILE.npy)"
        own = f"--data package.module:function, {OWN_DATA}"
        built_in = "--data NAME (digits, mnist, fashion-mnist, cifar10, …)"
        return f"{own}, or {built_in}" if ":" in self.spec else f"{built_in}, or {own}"

    def needed_stored(self) -> Stored:
        """What ``open_saved`` read."""
        if self.stored is None:
            raise StoreError(
                f"{self.spec}: this needs the plan of the compression, and there is none: give the directory that "
                "compress, apply or rankfold.save wrote"
            )
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
def plainly() -> Iterator[None]:
    """Outside of whatever arithmetic is set: factories may train, and give the same network in every command."""
    on_cuda = torch.autocast("cuda", enabled=False) if torch.cuda.is_available() else nullcontext()
    with torch.autocast("cpu", enabled=False), on_cuda:
        yield


_FOR = ("learn from", "choose on", "test on")  # the parts of a text


class Cut(NamedTuple):
    """How text becomes samples: tokens of each, and at most how many of each part; None: as it comes."""

    length: int | None = None
    windows: int | None = None


def data_named(
    name: str | None,
    download: bool,
    talk: Talk,
    model: nn.Module | None = None,
    cut: Cut | None = None,
    noted: Cut | None = None,
) -> Data | None:
    """The data of a name; of text as ``model`` reads it, with the tokenizer that lies beside its weights. ``cut``: what
    was typed; ``noted``: what holds where nothing was."""
    cut, noted, reader = cut or Cut(), noted or Cut(), None
    if name is None:
        check_idle("without data, of which they cut text into samples", **cut._asdict())
        return None
    if name.startswith((TEXT, TOKENS)) and model is not None:
        folder = str(getattr(unwrap(model), "name_or_path", ""))
        tokenizer = tokenizer_of(folder) if name.startswith(TEXT) and is_folder(folder) else None
        reader = reader_for(unwrap(model), tokenizer, cut.length or noted.length, cut.windows or noted.windows)
    elif cut != Cut():
        raise ZooError(f"--length and --windows go only with text:FILE and tokens:FILE.npy, not with {name}")
    data = load_data(name, download=download, progress=talk.progress, reader=reader)
    if cut.length is not None and data.cut["length"] != cut.length:
        raise ZooError(
            f"--length {cut.length}: {name} holds windows of {data.cut['length']} tokens already: leave --length out, "
            "or give the tokens in one row (N,)"
        )
    if reader is not None and reader.windows is None:
        talk.say(_whole(data))
    return data


def _whole(data: Data) -> str:
    """How much text there is to go through, where nobody has said how much of it is wanted."""
    parts = [
        f"{len(part):,} to {what}" for part, what in zip((data.train, data.validation, data.test), _FOR, strict=True)
    ]
    return f"text: all {data.train.cut}, {', '.join(parts)}; --windows N takes at most N of each, and less time"


@plainly()
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
    return Loaded(spec, built.model.eval(), known, example, drawn=weights is None and ":" not in spec)


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
