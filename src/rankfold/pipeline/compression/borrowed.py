"""The profile of an earlier run, for another budget: only where it was measured on the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rankfold.compress.methods.method import Method, fits_layers
from rankfold.pipeline.compression.request import PLACE
from rankfold.store import StoreError

PROFILE = "run/profile.safetensors"
# what a profile depends on, by its key in a request, in words
_SAME = {
    "fingerprint": "model, or its weights", "data": "training data", "method": "method", "samples": "number of samples",
    "seed": "seed", "objective": "objective", "where": "choice of layers", "forms": "choice of forms",
}  # fmt: skip


def borrowed(place: str | Path, asked: Mapping[str, Any], method: Method) -> Path:
    """The file with the profile of the run in ``place``, a directory or that file, which serves the request ``asked``,
    by ``method``.

    Raises ``StoreError`` in one line where there is none, or where it was measured on something else.
    """
    place = Path(place)
    if fits_layers(method):
        raise StoreError(
            f"--profile {place}: method {method.name} fits layer after layer, which no profile holds: leave "
            "--profile out"
        )
    directory = place if place.is_dir() else place.parent.parent
    file = directory / PROFILE
    if not file.is_file() or (not place.is_dir() and place.resolve() != file.resolve()):
        raise StoreError(
            f"--profile {place}: there is no {PROFILE} of a run in it: give the directory that compress wrote, by a "
            "method that measures every matrix once (those that fit layer after layer keep no profile)"
        )
    before = PLACE.read(directory / PLACE.file)
    other = [words for key, words in _SAME.items() if _part(before, key) != _part(asked, key)]
    if other:
        raise StoreError(
            f"--profile {place}: it was measured on another {', another '.join(other)}: leave --profile out, which "
            "measures again"
        )
    return file


def _part(request: Mapping[str, Any], key: str) -> Any:
    """Of the data the part that is measured on."""
    found = request.get(key)
    return found.get("train") if key == "data" and isinstance(found, Mapping) else found
