"""The directory of a training run: claimed by its configuration, complete when it holds result.json."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from rankfold.linalg.brief import brief
from rankfold.objectives import Evaluation
from rankfold.pipeline.trainings.config import ConfigError, TrainConfig, parse, read
from rankfold.pipeline.trainings.inputs import INPUTS, check_inputs
from rankfold.run.disk.container import FAULTS, read_object, said
from rankfold.run.disk.files import write_atomically
from rankfold.run.place import Place, visible
from rankfold.store import saved_files
from rankfold.train.checkpoint import CHECKPOINT

# What may differ between two commands that continue each other.
FREE = ("out", "threads", "device", "download", "tensorboard")
SMALL = "small"  # the network in its factors, where it was trained at low rank
_OWN = re.compile(
    rf"metrics\.jsonl|{re.escape(INPUTS)}|spectra\.(safetensors|csv|svg)|checkpoint\.json|{CHECKPOINT.pattern}|"
    r"tensorboard/events\.out\.[^/]+"
)


@dataclass(frozen=True)
class TrainResult:
    """What a run reached: all figures are of the folded, ordinary network in `model.safetensors`.

    `validation` and `test` are what the objective says, losses included; of classifiers `validation_accuracy` and the
    like are their parts. `test` is None where the data have no such part. `best_epoch`: whose weights were kept, by
    validation; 0 is the start. The test split was seen once, by the end. `params` of the ordinary network,
    `trained_params` with all factors; `ranks` of layers that were trained at low rank, and `small` the directory with
    these in their factors, of `small_params` (a layer that would grow stays dense there), None where there are none;
    `dlrt` and `way` are what was asked for, None where it was not. `seconds`: of all epochs. `warning`: a sentence if
    training broke down (None: it did not).
    """

    model: str
    data: str
    depth: int
    weight_decay: float
    seed: int
    epochs: int
    best_epoch: int
    validation: Evaluation
    test: Evaluation | None
    params: int
    trained_params: int
    seconds: float
    device: str
    threads: int
    processes: int
    warning: str | None
    directory: str
    ranks: Mapping[str, int] = field(default_factory=dict)
    small: str | None = None
    small_params: int | None = None
    dlrt: Mapping[str, Any] | None = None
    way: Mapping[str, Any] | None = None

    __repr__ = brief

    @property
    def validation_accuracy(self) -> float:
        """In [0, 1]; AttributeError for objectives without one."""
        return self.validation.accuracy

    @property
    def test_accuracy(self) -> float:
        """In [0, 1]; AttributeError for objectives without one, and for data without a test part."""
        if self.test is None:
            raise AttributeError("the data had no test part: its figures are those of validation")
        return self.test.accuracy

    @property
    def validation_loss(self) -> float:
        return self.validation.loss

    def to_dict(self) -> dict[str, Any]:
        """What `rankfold train --json` prints: every figure by its name, `validation_…` and `test_…`, then its loss."""
        values: dict[str, Any] = {}
        for key, value in asdict(self).items():
            if key not in ("validation", "test"):
                values[key] = value
                continue
            score = self.validation if key == "validation" else self.test
            if score is None:
                continue
            values |= {f"{key}_{figure}": number for figure, number in score.values.items()}
            values[f"{key}_loss"] = score.loss
        return values

    def state(self) -> dict[str, Any]:
        """What `result.json` holds; `from_state` is the inverse."""
        test = None if self.test is None else self.test.to_dict()
        return self.to_dict() | {"scores": {"validation": self.validation.to_dict(), "test": test}}

    @classmethod
    def from_state(cls, values: Mapping[str, Any]) -> TrainResult:
        """From `state`, or from what the first release wrote, of a classifier; KeyError and TypeError if damaged."""
        # runs from before these
        earlier: dict[str, Any] = {"ranks": {}} | dict.fromkeys(("small", "small_params", "dlrt", "way"))
        values = earlier | dict(values)
        own = {key: values[key] for key in (field.name for field in fields(cls)) if key not in ("validation", "test")}
        scores = values.get("scores") or {
            part: {"accuracy": values[f"{part}_accuracy"], "loss": values[f"{part}_loss"], "count": 0}
            for part in ("validation", "test")
        }
        own |= {part: scores[part] and Evaluation.from_dict(scores[part]) for part in ("validation", "test")}
        return cls(**own)


def forget(place: Path) -> None:
    """Remove what a run wrote, result first: what is left meanwhile is an unfinished run, or none."""
    networks = ["model.safetensors", *(f"{SMALL}/{name}" for name in sorted(saved_files(place / SMALL)))]
    others = [name for name in visible(place) if _OWN.fullmatch(name)]
    for name in ("result.json", *networks, "checkpoint.json", *others):
        if (place / name).is_file():
            (place / name).unlink()


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
        small = values.get("small") and str(place / SMALL)  # it may have been moved
        return TrainResult.from_state(values | {"directory": str(place), "small": small})
    except FAULTS as error:
        raise ConfigError(f"{file}: damaged ({said(error)}): --restart replaces the run") from None


def write_result(place: Path, result: TrainResult) -> None:
    text = json.dumps(result.state(), indent=1, ensure_ascii=False)
    write_atomically(place / "result.json", f"{text}\n".encode())


def finished(config: TrainConfig, data: Callable[[], Mapping[str, Any]]) -> TrainResult | None:
    """The result that is there already for just this configuration; None if there is none. ConfigError where it was
    made from other weights or other ``data``, of which this is the content (`inputs`)."""
    place = Path(config.out)
    if not (place / "config.yaml").exists() or PLACE.differing(place, config.to_dict()):
        return None
    found = read_result(place)
    if found is not None:
        check_inputs(config, data)
    return found


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
    ours=_OWN,
)
