"""Models that rankfold saved, opened as their manifest says; the network that one was made from. Imports torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from rankfold.cli.loading import Cut, Loaded, data_named, plainly
from rankfold.compress.planning.plan import other_weights
from rankfold.costs import Example
from rankfold.objectives import objective_names
from rankfold.run.disk.pretrained import is_factored, is_folder
from rankfold.run.progress import Talk
from rankfold.sites import is_pretrained, unwrap
from rankfold.store import MANIFEST, Stored, StoreError, load, read_manifest
from rankfold.zoo import Resolved, ZooError, load_weights, model_names, resolve
from rankfold.zoo.data import names_code
from rankfold.zoo.models import no_such
from rankfold.zoo.pretrained import example_of, is_pretrained_name


@plainly()
def original_of(loaded: Loaded, weights: Path | None) -> nn.Module:
    """The network that a saved one was made from, to compare outputs with; ``ZooError`` where it is not known."""
    if weights is not None and is_folder(weights):
        return _made_from(loaded, resolve(str(weights)).model, weights, "FOLDER")
    if loaded.stored is None or (weights is None and ":" not in loaded.spec):
        lacking = "the data have no targets, and " if weights is None else ""
        raise ZooError(
            f"{loaded.spec}: {lacking}there is no other network to compare the outputs with: {_which_original(loaded)}"
        )
    model = resolve(loaded.spec, classes=_noted_classes(loaded.stored.notes)).model
    if weights is not None:
        load_weights(model, weights)
    return _made_from(loaded, model, weights, "FILE")


def _made_from(loaded: Loaded, model: nn.Module, weights: Path | None, what: str) -> nn.Module:
    """``model``; ``ZooError`` where its weights are others than those that the saved one was made from."""
    if loaded.plan is not None and other_weights(loaded.plan, model):
        given = f"{weights} holds" if weights is not None else f"{loaded.spec} gives"
        raise ZooError(
            f"the outputs are compared with those of the original network, and {given} other weights than those that "
            f"this one was made from: give the right ones with --original {what}"
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


def noted_objective(stored: Stored | None, made: Path | str, talk: Talk) -> str | None:
    """The objective that a saved model was judged by, where it is a built-in one; of another one it is said how to give
    it: a file does not decide which code runs."""
    name = None if stored is None else stored.notes.get("objective")
    if not isinstance(name, str) or name in objective_names():
        return name if isinstance(name, str) else None
    talk.say(
        f"note: {made} was made with the objective {name}, which is one of your own: judge by it again with "
        "--objective package.module:NAME"
    )
    return None


def is_saved(text: str) -> bool:
    """Whether it is a directory that rankfold wrote, or looks like one, rather than the name or folder of a model."""
    return Path(text).is_dir() and (not is_folder(text) or (Path(text) / MANIFEST).exists() or is_factored(text))


def check_is_model(text: str) -> None:
    """``ZooError`` for what is neither the directory it looks like nor a model."""
    if ":" not in text and text not in model_names() and not is_pretrained_name(text):
        raise ZooError(f"{no_such(text)}, or a directory that compress or apply wrote")


def code_named(model: str | None, data: str | None) -> str | None:
    """What must be said again, all at once, where a file names code of somebody's: ``model`` and ``data`` are what it
    names and nobody has said. None where that is nothing of the kind."""
    found = [("--model", model)] if model and ":" in model else []
    found += [("--data", data)] if data and names_code(data) else []
    if not found:
        return None
    made = " with ".join(name for _, name in found)
    return (
        f"was made from {made}, which is code: if that code may run, add "
        f"{' '.join(f'{option} {name}' for option, name in found)}"
    )


@plainly()
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
    if not (directory / MANIFEST).exists() and is_factored(directory):
        return _open_resaved(directory, data, download, talk, cut)
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
    name, noted = data or (str(notes.get("data") or "") or None if own_data else None), Cut()
    if data is None and name is not None:
        if (asked := code_named(None, name)) is not None:
            raise StoreError(f"{directory}: {asked}")
        noted = Cut(*(_noted_number(notes, key) for key in Cut._fields))
    known = data_named(name, download, talk, stored.model, cut, noted)
    found = example_of(stored.model)
    example = None if found is None else Example.of(found)
    return Loaded(spec or str(directory), stored.model.eval(), known, example, stored.plan, stored)


def _open_resaved(directory: Path, data: str | None, download: bool, talk: Talk, cut: Cut | None) -> Loaded:
    """What ``save_pretrained`` or a Trainer wrote of a compressed model: its folder alone, with no plan beside it."""
    from rankfold import hub

    try:
        model = hub.opened(directory)
    except hub.HubError as error:
        raise StoreError(str(error)) from None
    known, found = data_named(data, download, talk, model, cut), example_of(model)
    return Loaded(str(directory), model.eval(), known, None if found is None else Example.of(found))


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
