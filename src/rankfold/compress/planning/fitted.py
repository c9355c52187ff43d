"""Factors that were fitted in a sweep, kept beside the plan: such a plan is carried out without data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from rankfold.sites import Factors

_KEY = "rankfold.factors"


@dataclass(frozen=True)
class Fitted:
    """The factors of one site, and the BatchNorm that takes up their shift where the new layer has no bias."""

    factors: Factors
    absorber: str | None = None


def to_bytes(fitted: Mapping[str, Fitted], note: Mapping[str, object] | None = None) -> bytes:
    """One safetensors file; ``read`` is the inverse. ``note``: what else belongs to it, as JSON."""
    tensors: dict[str, Tensor] = {}
    for name, known in fitted.items():
        for index, part in enumerate(known.factors.parts):
            tensors[f"{name}|{index}"] = part.detach().cpu().contiguous().clone()
        if known.factors.shift is not None:
            tensors[f"{name}|shift"] = known.factors.shift.detach().cpu().contiguous().clone()
    absorbers = {name: known.absorber for name, known in fitted.items() if known.absorber is not None}
    text = json.dumps({"absorbers": absorbers, "note": note or {}}, sort_keys=True)
    return to_safetensors(tensors, metadata={_KEY: text})


def read(path: str | Path) -> tuple[dict[str, Fitted], dict]:
    """What ``to_bytes`` wrote; ``ValueError`` with one line if it is damaged or something else."""
    found: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(str(path), "pt") as file:
            text = json.loads((file.metadata() or {})[_KEY])
            for full in file.keys():  # noqa: SIM118  # not a dict
                name, _, key = full.rpartition("|")
                found.setdefault(name, {})[key] = file.get_tensor(full)
        fitted = {
            name: Fitted(
                Factors(tuple(parts[str(i)] for i in range(len(parts) - ("shift" in parts))), parts.get("shift")),
                text["absorbers"].get(name),
            )
            for name, parts in found.items()
        }
        return fitted, text["note"]
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise ValueError(f"{path}: damaged or not a file of fitted factors ({error})") from None
