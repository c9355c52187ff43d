"""Saving and loading compressed models: safetensors and JSON in a directory, hashed, written atomically.

    DIR/plan.json            what became of every site
    DIR/model.safetensors    the state dict of the compressed model
    DIR/bottlenecks.safetensors    what is needed to slice it without data, where that was measured
    DIR/manifest.json        sha256 of every file, the model's name, and what was measured

The tensors can be read without rankfold: ``….down.weight`` (r, n) and ``….up.weight`` (m, r) for each factored layer.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as from_safetensors
from torch import nn
from torch.nn.parameter import is_lazy

from rankfold.compress.planning.apply import ApplyError, shape_
from rankfold.compress.planning.plan import Plan
from rankfold.compress.slicing.bottlenecks import Bottlenecks, factor_mark
from rankfold.run.container import FAULTS, metadata, packed, parsed, said
from rankfold.run.files import read_whole, sha256, undisturbed, write_together
from rankfold.sites import QUANTIZED, Form, unwrap, why_tensor

FORMAT = 1
_PLAN, _TENSORS, _MANIFEST = "plan.json", "model.safetensors", "manifest.json"
_BOTTLENECKS = "bottlenecks.safetensors"
_ALIASES = "rankfold.aliases"


class StoreError(ValueError):
    """A file is missing, damaged, foreign or does not fit the model; one line."""


@dataclass(frozen=True)
class Stored:
    """What ``load`` gives back: the model, its plan, and the manifest's own notes (name, measurements).

    ``bottlenecks``: what is needed to slice the model; None where it was saved without.
    """

    model: nn.Module
    plan: Plan
    notes: Mapping[str, Any]
    bottlenecks: Bottlenecks | None = None


def save(
    model: nn.Module,
    plan: Plan,
    directory: str | Path,
    *,
    notes: Mapping[str, Any] | None = None,
    bottlenecks: Bottlenecks | None = None,
) -> Path:
    """Save a model that ``plan`` was applied to (fine-tuned or not); returns the directory.

    ``notes`` are JSON-able facts to keep (``model``: the name it can be built from, measurements). ``bottlenecks``
    (``rankfold.bottlenecks``) make it possible to slice the model later without data; they take about a tenth to a half
    of the model's own bytes. A crash or a full disk leaves the old model or the new one, whole. ``StoreError`` if the
    plan was not applied, and for bottlenecks that were measured on other weights.
    """
    directory = Path(directory)
    if directory.exists() and not directory.is_dir():
        raise StoreError(f"{directory} is a file; give a directory")
    state, aliases = _tensors(unwrap(model))
    for entry in plan.changed:
        own = f"{entry.site}.{entry.form.parameter}"
        if entry.form is not Form.DENSE and own not in state.keys() | aliases.keys():
            raise StoreError(f"{entry.site}: {entry.form} in the plan, not in the model: apply the plan first")
    files = {
        _PLAN: plan.to_json().encode(),
        _TENSORS: packed(state, {"format": "pt", _ALIASES: json.dumps(aliases)}),
    }
    if bottlenecks is not None:
        if bottlenecks.mark != factor_mark(model):
            raise StoreError("the bottlenecks were measured on other weights: measure them again before saving")
        files[_BOTTLENECKS] = bottlenecks.to_bytes()
    facts = {
        "format": FORMAT,
        "files": {name: sha256(data) for name, data in files.items()},
        "notes": dict(notes or {}),
    }
    manifest = json.loads(json.dumps(facts))  # as it will be read: text keys, no tuples
    manifest["sha256"] = _own_hash(manifest)
    text = (json.dumps(manifest, indent=1) + "\n").encode()
    earlier = [name for name in (_BOTTLENECKS,) if name not in files]
    write_together(directory, files, _MANIFEST, text, without=earlier)
    return directory


def _own_hash(manifest: Mapping[str, Any]) -> str:
    """The hash of everything else in a manifest, whatever its layout as text."""
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return sha256(json.dumps(rest, sort_keys=True).encode())


def _tensors(model: nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The state dict with every tensor once, and which further names share which tensor."""
    state: dict[str, torch.Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[tuple[int, tuple[int, ...], tuple[int, ...]], str] = {}
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, torch.Tensor):
            raise StoreError(
                f"{name}: state of type {type(tensor).__name__} cannot be saved as a tensor; a quantized model is "
                "saved before it is quantized"
            )
        reason = why_tensor(tensor) or (QUANTIZED if tensor.is_quantized else None)
        if reason is not None:
            raise StoreError(f"{name}: {reason}; what is saved here is ordinary tensors")
        if is_lazy(tensor):
            raise StoreError(f"{name}: not initialised (lazy module): run the model once first")
        if tensor.is_meta:
            raise StoreError(f"{name}: not materialised (on the meta device); load weights first")
        key = (tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()))
        if tensor.numel() and key in first:
            aliases[name] = first[key]
        else:
            first[key] = name
            state[name] = tensor
    return state, aliases


def read_manifest(directory: str | Path) -> dict[str, Any]:
    """The manifest of a saved model after checking every file against it. Raises ``StoreError``."""
    return _opened(Path(directory))[0]


def _opened(directory: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The manifest, and what is in each file it vouches for; those of one writer where several are at work."""
    return undisturbed(directory / _MANIFEST, lambda: _once(directory), StoreError)


def _once(directory: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    try:
        manifest = parsed((directory / _MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise StoreError(f"{directory}: no {_MANIFEST}: not a model saved by rankfold, or half written") from None
    except (OSError, ValueError) as error:
        raise StoreError(f"{directory}/{_MANIFEST}: damaged ({error})") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise StoreError(f"{directory}: not a model directory that this version reads (format {FORMAT})")
    files = manifest.get("files")
    named = isinstance(files, dict) and files.keys() - {_BOTTLENECKS} == {_PLAN, _TENSORS}
    if not isinstance(files, dict) or not named or manifest.get("sha256") != _own_hash(manifest):
        raise StoreError(f"{directory}/{_MANIFEST}: damaged: its contents and its own sha256 disagree")
    if not isinstance(manifest.get("notes", {}), dict):
        raise StoreError(f"{directory}/{_MANIFEST}: damaged: its notes are no JSON object")
    contents = {}
    for name, digest in files.items():
        try:
            found = read_whole(directory, name, str(digest))
        except OSError as error:
            raise StoreError(f"{directory}/{name}: {error.strerror or error}") from None
        if found is None:
            raise StoreError(f"{directory}/{name}: damaged: its sha256 is not the one in {_MANIFEST}")
        contents[name] = found
    return manifest, contents


def load(directory: str | Path, model: nn.Module) -> Stored:
    """Load a saved model into ``model``, a fresh dense model of the same architecture, in place.

    Every file is checked against the manifest first. Parameters take the dtype they were saved in; a model on the meta
    device is filled. Raises ``StoreError`` with one line that names the file or the tensor, and leaves ``model`` as
    found. ``rankfold.zoo`` or the user's factory builds the dense model.
    """
    directory = Path(directory)
    manifest, contents = _opened(directory)
    data = contents.pop(_TENSORS)
    try:
        plan = Plan.from_json(contents[_PLAN].decode())
        state = from_safetensors(data)
        aliases = parsed(metadata(data).get(_ALIASES, "{}"))
        state |= {name: state[source] for name, source in aliases.items()}
        known = Bottlenecks.from_bytes(contents[_BOTTLENECKS], _BOTTLENECKS) if _BOTTLENECKS in contents else None
    except FAULTS as error:
        raise StoreError(f"{directory}: damaged or foreign ({said(error)}): save the model again") from None
    del data
    try:
        _check_fit(shape_(_without_values(unwrap(model)), plan), state, directory)
        shape_(model, plan)
    except ApplyError as error:
        raise StoreError(f"{directory}: saved from another model: {error}") from None
    _fill_(unwrap(model), state)
    return Stored(model, plan, manifest.get("notes", {}), known)


def _without_values(root: nn.Module) -> nn.Module:
    """A copy on the meta device, on which a plan is tried; buffers that are not saved stay where they are."""
    memo: dict[int, Any] = {}
    for name, tensor in root.state_dict(keep_vars=True).items():
        if is_lazy(tensor):
            raise StoreError(f"{name}: not initialised (lazy module): run the model once first")
        if isinstance(tensor, nn.Parameter):
            memo[id(tensor)] = nn.Parameter(tensor.detach().to("meta"), tensor.requires_grad)
        elif isinstance(tensor, torch.Tensor):
            memo[id(tensor)] = tensor.detach().to("meta")
    return copy.deepcopy(root, memo)


def _check_fit(root: nn.Module, state: Mapping[str, torch.Tensor], directory: Path) -> None:
    here = root.state_dict(keep_vars=True)
    missing, foreign = sorted(here.keys() - state.keys()), sorted(state.keys() - here.keys())
    if missing or foreign:
        raise StoreError(
            f"{directory}: saved from another model: {len(missing)} tensors are missing ({', '.join(missing[:3])}), "
            f"{len(foreign)} do not belong ({', '.join(foreign[:3])})"
        )
    for name, wanted in here.items():
        if wanted.shape != state[name].shape:
            raise StoreError(
                f"{directory}: {name} is {tuple(state[name].shape)}, the model wants {tuple(wanted.shape)}"
            )
    hollow = [name for name, buffer in root.named_buffers() if buffer.is_meta and name not in here]
    if hollow:
        raise StoreError(
            f"{directory}: {hollow[0]} is not saved (a buffer with persistent=False) and the model is on the meta "
            "device: build it on a real one"
        )


def _fill_(root: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    _make_room_(root, {id(tensor): state[name] for name, tensor in root.state_dict(keep_vars=True).items()})
    root.load_state_dict(dict(state))


def _make_room_(root: nn.Module, wanted: Mapping[int, torch.Tensor]) -> None:
    """New tensors where the ones here are on the meta device or of another dtype; tied ones stay one object."""
    fresh: dict[int, torch.Tensor] = {}
    for module in root.modules():
        groups: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for group in groups:
            for key, old in group.items():
                if old is None or id(old) not in wanted:
                    continue
                like = wanted[id(old)]
                if old.is_meta or old.dtype != like.dtype:
                    # model.to("meta") unties parameters: what was tied when it was saved is tied again
                    one = id(like) if old.is_meta else id(old)
                    if one not in fresh:
                        new = torch.empty_like(like, device="cpu" if old.is_meta else old.device)
                        is_parameter = isinstance(old, nn.Parameter)
                        fresh[one] = nn.Parameter(new, old.requires_grad) if is_parameter else new
                    group[key] = fresh[one]
