"""Damage to files: bytes, JSON, YAML and tensors, drawn from a generator; and files that are signed anew afterwards."""

from __future__ import annotations

import copy
import io
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

from rankfold.run.disk.container import metadata
from rankfold.run.disk.files import sha256
from rankfold.store.manifest import _own_hash

DEEP = "[" * 100_000
ABSURD: list[Any] = [
    None, True, -1, 0, 3, 2**63, -(2**70), 1e308, float("nan"), float("inf"), 0.5, "", "x", "../../x", "ä" * 500, [],
    {}, [[]], {"a": {"b": []}}, [None] * 1000, {str(i): i for i in range(1000)}, [1, "a", None],
]  # fmt: skip
DTYPES = [torch.bool, torch.int8, torch.int64, torch.float16, torch.bfloat16, torch.float64, torch.float32, torch.uint8]


def of_bytes(data: bytes, draw: random.Random) -> bytes:
    """Flipped bits, a part lost, zeroed, doubled or replaced."""
    raw = bytearray(data)
    start = draw.randrange(len(raw) + 1)
    end = min(len(raw), start + draw.choice([1, 8, 100, len(raw)]))
    match draw.randrange(6):
        case 0 if raw:
            for _ in range(draw.choice([1, 1, 5])):
                raw[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
        case 1:
            del raw[start:end]
        case 2:
            raw[start:end] = bytes(end - start)
        case 3:
            raw[start:start] = raw[start:end]
        case 4:
            raw[start:end] = draw.randbytes(draw.choice([1, 50]))
        case _:
            raw = bytearray(draw.choice([b"", b"\x00" * 64, b"\xff\xfe", b"text", DEEP.encode(), b"PK\x03\x04", b"[]"]))
    return bytes(raw)


def of_value(value: Any, draw: random.Random) -> Any:
    """One place somewhere inside a plain value replaced, removed, doubled or renamed."""
    value = copy.deepcopy(value)
    holder, key = None, None
    inner = value
    while isinstance(inner, dict | list) and inner and (holder is None or draw.random() < 0.8):
        holder, key = inner, draw.choice(list(inner) if isinstance(inner, dict) else range(len(inner)))
        inner = holder[key]
    if holder is None:
        return draw.choice(ABSURD)
    kind = draw.randrange(5)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, list):
        holder.append(copy.deepcopy(draw.choice(holder)))
    elif kind == 1:
        holder[f"{key}x"] = holder.pop(key)
    elif kind == 2 and isinstance(inner, int | float):
        holder[key] = draw.choice([-inner, inner + 1, inner * 1000, str(inner), float(inner), -1])
    else:
        holder[key] = draw.choice(ABSURD)
    return value


def of_json(data: bytes, draw: random.Random) -> bytes:
    changed = json.dumps(of_value(json.loads(data), draw))
    return (changed if draw.random() < 0.95 else changed.replace("1", "9" * 6000, 1)).encode()


def of_tensors(data: bytes, draw: random.Random) -> bytes:
    """One tensor gone, of another shape, type or content, or a note in the metadata changed."""
    tensors, notes = load(data), metadata(data)
    if draw.random() < 0.7:  # a forger leaves the hash out, as the first release did
        notes = {key: text for key, text in notes.items() if key != "rankfold.sha256"}
    kind, name = draw.randrange(8), draw.choice(sorted(tensors)) if tensors else ""
    x = tensors.get(name, torch.zeros(2))
    if kind < 3 and notes:
        key = draw.choice(sorted(notes))
        try:
            notes[key] = json.dumps(of_value(json.loads(notes[key]), draw))
        except ValueError:
            notes[key] = draw.choice(["", "x", DEEP])
        if draw.random() < 0.1:
            del notes[key]
    elif kind == 3:
        tensors.pop(name, None)
    elif kind == 4:
        shapes = [
            x.flatten(),
            x.unsqueeze(0),
            x[:0] if x.dim() else x,
            x.T if x.dim() == 2 else x,
            x.new_zeros(3, 1, 2),
        ]
        tensors[name] = draw.choice(shapes).contiguous()
    elif kind == 5:
        tensors[name] = x.to(draw.choice(DTYPES))
    elif kind == 6:
        tensors[name] = (
            torch.full_like(x, draw.choice([float("nan"), float("inf"), -1e30])) if x.is_floating_point() else x - 7
        )
    else:
        tensors[f"{name}{draw.choice(['x', '|x', '', '|weight'])}"] = draw.choice([x.clone(), torch.zeros(0)])
    return save({key: value.contiguous() for key, value in tensors.items()}, notes or None)


def of_torch(data: bytes, draw: random.Random) -> bytes:
    """A torch file whose values are changed."""
    state = torch.load(io.BytesIO(data), weights_only=True)
    buffer = io.BytesIO()
    torch.save(of_value(state, draw), buffer)
    return buffer.getvalue()


INSIDE: dict[str, Callable[[bytes, random.Random], bytes]] = {
    ".json": of_json, ".safetensors": of_tensors, ".pt": of_torch,
}  # fmt: skip


def damage(file: Path, draw: random.Random) -> None:
    """Damage ``file``: half the times its bytes, else what they mean."""
    data, inside = file.read_bytes(), INSIDE.get(file.suffix)
    changed = of_bytes(data, draw) if inside is None or draw.random() < 0.4 else inside(data, draw)
    file.write_bytes(changed)


def signed_anew(directory: Path) -> None:
    """Make every hash in ``directory`` right again: a forger would."""
    for plan in directory.rglob("*.json"):
        try:
            values = json.loads(plan.read_bytes())
        except (ValueError, RecursionError):
            continue
        if not isinstance(values, dict):
            continue
        for key, ending in (("statistics_sha256", "statistics"), ("factors_sha256", "factors")):
            beside = plan.with_name(f"{plan.stem}.{ending}.safetensors")
            if values.get(key) and beside.exists():
                values[key] = sha256(beside.read_bytes())
        if isinstance(values.get("files"), dict):
            values["files"] = {
                name: sha256((plan.parent / name).read_bytes()) if (plan.parent / name).is_file() else hashed
                for name, hashed in values["files"].items()
            }
            values["sha256"] = _own_hash(values)
        checkpoint = values.get("file")
        if isinstance(checkpoint, str) and os.path.isfile(plan.parent / Path(checkpoint).name):  # whatever its length
            values["sha256"] = sha256((plan.parent / Path(checkpoint).name).read_bytes())
        plan.write_text(json.dumps(values))
    for mark in directory.rglob("*.sha256"):
        mark.write_text(sha256(mark.with_name(mark.name.removesuffix(".sha256")).read_bytes()) + "\n")
