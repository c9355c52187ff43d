"""The directory of a training run: claimed by its configuration, complete when it holds result.json."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from rankfold.pipeline.trainings.config import ConfigError, TrainConfig, parse, read
from rankfold.run.container import checked, read_object, said
from rankfold.run.files import write_atomically
from rankfold.run.place import Place

# What may differ between two commands that continue each other.
FREE = ("out", "threads", "device", "download", "tensorboard")
_OWN = ("result.json", "model.safetensors", "spectra.*", "checkpoint*", "metrics.jsonl", "config.yaml")


@dataclass(frozen=True)
class TrainResult:
    """What a run reached: all figures are of the folded, ordinary network in `model.safetensors`.

    Accuracies in [0, 1], losses in nats. `best_epoch`: whose weights were kept, by validation; 0 is the start. The
    test split was seen once, by the end. `params` of the ordinary network, `trained_params` with all factors.
    `seconds`: of all epochs. `warning`: a sentence if training broke down (None: it did not).
    """

    model: str
    data: str
    depth: int
    weight_decay: float
    seed: int
    epochs: int
    best_epoch: int
    validation_accuracy: float
    validation_loss: float
    test_accuracy: float
    test_loss: float
    params: int
    trained_params: int
    seconds: float
    device: str
    threads: int
    processes: int
    warning: str | None
    directory: str

    def to_dict(self) -> dict[str, Any]:
        """What `rankfold train --json` prints and `result.json` holds."""
        return asdict(self)


def forget(place: Path) -> None:
    """Remove what a run wrote, result first: what is left meanwhile is an unfinished run, or none."""
    for pattern in _OWN:
        for file in place.glob(pattern):
            file.unlink()
    for file in (place / "tensorboard").glob("events.out.*"):
        file.unlink()


def read_result(place: Path) -> TrainResult | None:
    """The result of a finished run, None of an unfinished one; ConfigError if the file is damaged."""
    file = place / "result.json"
    if not file.exists():
        return None
    try:
        values = read_object(file, "the result of a training", "--restart replaces the run")
    except (OSError, ValueError) as error:
        raise ConfigError(str(error)) from None
    try:
        known = {field.name: values[field.name] for field in fields(TrainResult)}
        return checked(TrainResult, known | {"directory": str(place)})
    except (ValueError, KeyError) as error:
        raise ConfigError(f"{file}: damaged ({said(error)}): --restart replaces the run") from None


def write_result(place: Path, result: TrainResult) -> None:
    text = json.dumps(result.to_dict(), indent=1, ensure_ascii=False)
    write_atomically(place / "result.json", f"{text}\n".encode())


def finished(config: TrainConfig) -> TrainResult | None:
    """The result that is there already for just this configuration; None if there is none."""
    place = Path(config.out)
    if not (place / "config.yaml").exists() or PLACE.differing(place, config.to_dict()):
        return None
    return read_result(place)


PLACE = Place(
    file="config.yaml",
    read=lambda file: parse(read(file), file).to_dict(),
    written=lambda values: parse(values).to_yaml().encode(),
    # a run that failed before it began (a missing file) is in nobody's way
    begun=lambda place: (place / "checkpoint.json").exists() or (place / "result.json").exists(),
    forget=forget,
    error=ConfigError,
    free=FREE,
    prefix="out: ",
)
