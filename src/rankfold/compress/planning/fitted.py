"""Factors that were fitted layer after layer, kept beside the plan: such a plan is carried out without data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from typing_extensions import TypedDict

from rankfold.run.disk.container import Kind
from rankfold.sites import Factors


class _Note(TypedDict):
    absorbers: dict[str, str]
    note: dict[str, Any]


_FILE = Kind[_Note]("rankfold.factors", _Note, "a file of fitted factors", "make the plan again with data")


@dataclass(frozen=True)
class Fitted:
    """The factors of one site, and the BatchNorm that takes up their shift where the new layer has no bias."""

    factors: Factors
    absorber: str | None = None


def to_bytes(fitted: Mapping[str, Fitted]) -> bytes:
    """One safetensors file; ``read`` is the inverse."""
    return _FILE.write(*_written(fitted, {}))


def write(file: Path, fitted: Mapping[str, Fitted], note: Mapping[str, object]) -> None:
    """The same as a file. ``note``: what else belongs to it, as JSON."""
    _FILE.write_to(file, *_written(fitted, note))


def _written(fitted: Mapping[str, Fitted], note: Mapping[str, object]) -> tuple[dict[str, Tensor], _Note]:
    tensors: dict[str, Tensor] = {}
    for name, known in fitted.items():
        for index, part in enumerate(known.factors.parts):
            tensors[f"{name}|{index}"] = part
        if known.factors.shift is not None:
            tensors[f"{name}|shift"] = known.factors.shift
    absorbers = {name: known.absorber for name, known in sorted(fitted.items()) if known.absorber is not None}
    return tensors, _Note(absorbers=absorbers, note=dict(note))


def read(path: str | Path | bytes, name: str = "") -> tuple[dict[str, Fitted], dict[str, Any]]:
    """What ``to_bytes`` wrote, from a file or its bytes; ``ValueError`` in one line if that is something else."""
    return _FILE.read(path, _built, name)


def _built(tensors: Mapping[str, Tensor], text: _Note) -> tuple[dict[str, Fitted], dict[str, Any]]:
    found: dict[str, dict[str, Tensor]] = {}
    for full, value in tensors.items():
        name, _, key = full.rpartition("|")
        found.setdefault(name, {})[key] = value
    fitted = {
        name: Fitted(
            Factors(tuple(parts[str(i)] for i in range(len(parts) - ("shift" in parts))), parts.get("shift")),
            text["absorbers"].get(name),
        )
        for name, parts in found.items()
    }
    return fitted, text["note"]
