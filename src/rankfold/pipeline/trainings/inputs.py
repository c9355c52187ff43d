"""What a run was made from, by content: files of weights and data, which may be others under the same names."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rankfold.pipeline.trainings.config import ConfigError, TrainConfig
from rankfold.run.digest import digest
from rankfold.run.disk.container import read_object
from rankfold.run.disk.files import digest_of, write_atomically
from rankfold.zoo import Data, ZooError

INPUTS = "inputs.json"
_RESTART = "give another directory, or --restart (restart=True) to replace it"


def content_of(data: Data) -> dict[str, str | None]:
    """What is in each part of the data, as far as some of its samples tell."""
    return {part: digest(getattr(data, part)) for part in ("train", "validation", "test")}


def check_inputs(config: TrainConfig, data: Callable[[], Mapping[str, Any]]) -> bool:
    """``ConfigError`` where the run in the directory was made from other weights or data; whether it tells at all,
    which runs of earlier versions do not. ``data``: what `content_of` says now; what cannot be read now is not
    compared."""
    place = Path(config.out)
    if not (place / INPUTS).exists():
        return False
    try:
        there = read_object(place / INPUTS, "what a training was made from", "--restart replaces the run")
    except (OSError, ValueError) as error:
        raise ConfigError(str(error)) from None
    other = [f"{name} file" for name, here in _files(config).items() if here not in (None, there.get(name))]
    try:
        parts, known = data(), there.get("data")
        changed = [part for part, here in parts.items() if isinstance(known, dict) and known.get(part) != here]
        other += [f"{' and '.join(changed)} data"] if changed else []
    except ZooError:
        pass
    if other:
        raise ConfigError(f"{place} holds a run that was made from another {' and another '.join(other)}: {_RESTART}")
    return True


def note_inputs(config: TrainConfig, data: Data) -> None:
    """Write down what this run is made from, or check it against what is written; ``ConfigError`` as above."""
    content = content_of(data)
    if not check_inputs(config, lambda: content):
        noted = {**_files(config), "data": content}
        write_atomically(Path(config.out) / INPUTS, (json.dumps(noted, indent=1) + "\n").encode())


def _files(config: TrainConfig) -> dict[str, str | None]:
    """Of files of weights what is in them; None where there is none."""
    named = {"weights": config.weights, "teacher.weights": config.teacher and config.teacher.weights}
    return {name: digest_of(Path(file)) if file and Path(file).is_file() else None for name, file in named.items()}
