"""The state of a run in a directory: complete or absent, whatever happens while it is written.

A checkpoint is a file `checkpoint-<epoch>.pt` of tensors and plain values and, written after it, the manifest
`checkpoint.json` with its name and SHA-256. Reading never runs code from the file.
"""

import hashlib
import io
import json
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from rankfold.files import write_atomically
from rankfold.train.errors import TrainingError

_MANIFEST = "checkpoint.json"
_FORMAT = 1


def save(directory: Path, epoch: int, state: dict[str, Any]) -> None:
    """Write `state` (tensors, numbers, strings, None; nested) as the checkpoint of `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    name = f"checkpoint-{epoch:04d}.pt"
    write_atomically(directory / name, content)
    manifest = {
        "format": _FORMAT,
        "file": name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "epoch": epoch,
    }
    write_atomically(directory / _MANIFEST, json.dumps(manifest).encode())
    for old in directory.glob("checkpoint-*.pt"):
        if old.name != name:
            old.unlink(missing_ok=True)


def load(directory: Path) -> dict[str, Any] | None:
    """The state last saved in `directory`, tensors on the CPU; None if there is none.

    Raises TrainingError if the manifest or the file it names is missing, damaged or foreign.
    """
    manifest = directory / _MANIFEST
    if not manifest.exists():
        return None
    try:
        entry = json.loads(manifest.read_text(encoding="utf-8"))
        known = isinstance(entry, dict) and entry.get("format") == _FORMAT
        file = directory / Path(str(entry["file"])).name if known else manifest
        content = file.read_bytes() if known else b""
        if not known or hashlib.sha256(content).hexdigest() != entry["sha256"]:
            raise TrainingError(
                f"checkpoint {file} is damaged or not of this version: delete {directory} to begin anew"
            )
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (
        OSError,
        json.JSONDecodeError,
        UnicodeDecodeError,
        KeyError,
        RuntimeError,
        pickle.UnpicklingError,
    ) as error:
        raise TrainingError(
            f"checkpoint in {directory} cannot be read ({type(error).__name__}): delete the directory to begin anew"
        ) from error


def write_lines(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Replace `file` by one JSON object a line."""
    write_atomically(file, "".join(json.dumps(row) + "\n" for row in rows).encode())
