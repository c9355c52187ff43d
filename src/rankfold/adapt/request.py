"""What an adaptation was asked for, in its directory: the same one goes on, another is refused or replaces it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from rankfold.adapt.peft_format import CONFIG, NOTE, WEIGHTS, check_adapter_place, is_adapter
from rankfold.run.disk.container import read_object
from rankfold.run.disk.foreign import foreign

REQUEST, REPORT, TRAINING, MERGED = "request.json", "report.json", "training", "merged"
_TITLES = {"params": "budget", "learning_rate": "learning rate", "batch_size": "batch size", "base_model": "model"}


def check_request(place: Path, request: dict[str, Any], restart: bool, merge: bool) -> dict[str, Any]:
    """What was asked for in the directory before; ``ValueError`` where that is something else, unless ``restart``, and
    where files of somebody else would be replaced."""
    check_adapter_place(place)
    known = _known(place / REQUEST, restart)
    if not restart:
        _check_same(place, known, request)
    merged = place / MERGED
    if merge and not (known and known.get(MERGED)) and merged.exists() and (merged.is_file() or any(merged.iterdir())):
        raise ValueError(foreign(merged))
    return known or {}


def _known(file: Path, restart: bool) -> dict[str, Any] | None:
    if not file.exists():
        return None
    try:
        return read_object(file, "what an adaptation was asked for", "give another directory, or --restart")
    except ValueError:
        if restart:  # which is the remedy for a damaged one
            return {}
        raise


def _check_same(place: Path, known: dict[str, Any] | None, request: dict[str, Any]) -> None:
    remedy = "give another directory, or --restart (restart=True) to replace it"
    if known is None:
        if is_adapter(place):
            raise ValueError(f"{place} holds an adapter that another command wrote: {remedy}")
        return
    if "base" not in known:  # an earlier version knew 50 shapes, and any weights of these shapes passed for the same
        raise ValueError(
            f"{place} holds an adaptation of an earlier version, which did not note the weights of its base, so that "
            f"nothing tells whether this is the same one: {remedy}"
        )
    for key, here in json.loads(json.dumps(request)).items():
        there = known.get(key)
        if there == here:
            continue
        what = f"{_TITLES.get(key, key)}: {there!r} there, {here!r} here"
        if key == "base":
            shapes = [value.partition(":")[0] for value in (str(there), str(here))]
            what = "the model had other weights there" if shapes[0] == shapes[1] else "it was another model there"
        elif key == "data" and isinstance(there, dict):
            other = [part for part in here if there.get(part) != here[part]]
            what = f"the {' and '.join(other)} data were other ones there"
        raise ValueError(f"{place} holds an adaptation that was asked for otherwise ({what}): {remedy}")


def forget(place: Path, known: dict[str, Any]) -> None:
    """Remove what was written here before, so that nothing of it passes for a part of what comes now."""
    ours = (place / REQUEST).exists()
    if ours:
        shutil.rmtree(place / TRAINING, ignore_errors=True)
        (place / REPORT).unlink(missing_ok=True)
    if known.get(MERGED):  # a folder of that name may be somebody else's
        shutil.rmtree(place / MERGED, ignore_errors=True)
    for name in (WEIGHTS, CONFIG, NOTE) if ours or is_adapter(place) else ():
        (place / name).unlink(missing_ok=True)
