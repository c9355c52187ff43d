"""Saving and loading compressed models: safetensors and JSON in a directory, hashed, written atomically.

    DIR/plan.json            what became of every site
    DIR/model.safetensors    the state dict of the compressed model
    DIR/manifest.json        sha256 of every file, the model's name, and what was measured

The tensors can be read without rankfold: ``….down.weight`` (r, n) and ``….up.weight`` (m, r) for each factored layer.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_safetensors
from safetensors.torch import save as to_safetensors
from torch import nn

from rankfold.compress.apply import shape_
from rankfold.compress.plan import Plan
from rankfold.sites import unwrap

FORMAT = 1
_ALIASES = "rankfold.aliases"


class StoreError(ValueError):
    """A file is missing, damaged, foreign or does not fit the model; one line."""


@dataclass(frozen=True)
class Stored:
    """What ``load`` gives back: the model, its plan, and the manifest's own notes (name, measurements)."""

    model: nn.Module
    plan: Plan
    notes: Mapping[str, Any]


def write_atomically(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` so that a crash leaves either the old file or the new one, never half of one."""
    write_together({path: data})


def write_together(files: Mapping[Path, bytes]) -> None:
    """Write several files: all are on the disk beside their places before the first one is renamed.

    A crash or a full disk while writing leaves every old file as it was. Files are renamed in the order given.
    """
    staged: dict[str, Path] = {}
    try:
        for path, data in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            staged[temporary] = path
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
        for temporary, path in staged.items():
            os.replace(temporary, path)
    except BaseException:
        for temporary in staged:
            Path(temporary).unlink(missing_ok=True)
        raise


def save(model: nn.Module, plan: Plan, directory: str | Path, *, notes: Mapping[str, Any] | None = None) -> Path:
    """Save a model that ``plan`` was applied to (fine-tuned or not); returns the directory.

    ``notes`` are JSON-able facts to keep (``model``: the name it can be built from, measurements). All files are
    written beside their places before any is renamed, the manifest last: a crash or a full disk leaves the old model.
    """
    directory = Path(directory)
    if directory.exists() and not directory.is_dir():
        raise StoreError(f"{directory} is a file; give a directory")
    state, aliases = _tensors(unwrap(model))
    files = {
        "plan.json": plan.to_json().encode(),
        "model.safetensors": to_safetensors(state, metadata={"format": "pt", _ALIASES: json.dumps(aliases)}),
    }
    manifest = {
        "format": FORMAT,
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
        "notes": dict(notes or {}),
    }
    files["manifest.json"] = (json.dumps(manifest, indent=1) + "\n").encode()
    write_together({directory / name: data for name, data in files.items()})
    return directory


def _tensors(model: nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The state dict with every tensor once, and which further names share which tensor."""
    state: dict[str, torch.Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[tuple[int, tuple[int, ...], tuple[int, ...]], str] = {}
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, torch.Tensor):
            raise StoreError(f"{name}: state of type {type(tensor).__name__} cannot be saved as a tensor")
        if tensor.is_meta:
            raise StoreError(f"{name}: not materialised (on the meta device); load weights first")
        key = (tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()))
        if tensor.numel() and key in first:
            aliases[name] = first[key]
        else:
            first[key] = name
            state[name] = tensor.detach().cpu().contiguous().clone()
    return state, aliases


def read_manifest(directory: str | Path) -> dict[str, Any]:
    """The manifest of a saved model after checking every file against it. Raises ``StoreError``."""
    directory = Path(directory)
    try:
        manifest = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StoreError(f"{directory}: no manifest.json: not a model saved by rankfold, or half written") from None
    except (OSError, ValueError) as error:
        raise StoreError(f"{directory}/manifest.json: damaged ({error})") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise StoreError(f"{directory}: not a model directory that this version reads (format {FORMAT})")
    for name, digest in manifest["files"].items():
        try:
            with (directory / name).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise StoreError(f"{directory}/{name}: {error.strerror or error}") from None
        if found != digest:
            raise StoreError(f"{directory}/{name}: damaged: its sha256 is not the one in manifest.json")
    return manifest


def load(directory: str | Path, model: nn.Module) -> Stored:
    """Load a saved model into ``model``, a fresh dense model of the same architecture, in place.

    Every file is checked against the manifest first. Raises ``StoreError`` with one line that names the file or the
    tensor. ``rankfold.zoo`` or the user's factory builds the dense model.
    """
    directory = Path(directory)
    manifest = read_manifest(directory)
    plan = Plan.load(directory / "plan.json")
    data = (directory / "model.safetensors").read_bytes()
    try:
        state = from_safetensors(data)
        with_names = json.loads(_metadata(data).get(_ALIASES, "{}"))
    except (SafetensorError, ValueError) as error:
        raise StoreError(f"{directory}/model.safetensors: damaged ({error})") from None
    for name, source in with_names.items():
        state[name] = state[source]
    shape_(model, plan)
    root = unwrap(model)
    here = root.state_dict()
    missing, foreign = sorted(here.keys() - state.keys()), sorted(state.keys() - here.keys())
    if missing or foreign:
        raise StoreError(
            f"{directory}: saved from another model: {len(missing)} tensors are missing ({', '.join(missing[:3])}), "
            f"{len(foreign)} do not belong ({', '.join(foreign[:3])})"
        )
    for name, tensor in state.items():
        if here[name].shape != tensor.shape:
            raise StoreError(f"{directory}: {name} is {tuple(tensor.shape)}, the model wants {tuple(here[name].shape)}")
    root.load_state_dict(state, assign=any(tensor.is_meta for tensor in here.values()))
    return Stored(model, plan, manifest["notes"])


def _metadata(data: bytes) -> dict[str, str]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]).get("__metadata__") or {}
