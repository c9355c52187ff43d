"""Adapting a trained network, from its data to a saved adapter: prepared, trained, cut to its budget, judged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rankfold.adapt.extraction.adapters import combine
from rankfold.adapt.extraction.budget import Asked
from rankfold.adapt.extraction.extract import is_causal
from rankfold.adapt.extraction.result import Extraction, Layer
from rankfold.adapt.peft_format import Adapter, check_adapter_place, is_adapter
from rankfold.adapt.ways import METHODS, Wish, add_, prepare_
from rankfold.batches import copied
from rankfold.objectives import Evaluation, Objective
from rankfold.observe import before as before_call
from rankfold.run.claim import claimed
from rankfold.run.digest import digest
from rankfold.run.disk.container import packed, read_object
from rankfold.run.disk.files import write_atomically
from rankfold.run.progress import Tell
from rankfold.sites import is_pretrained, unwrap
from rankfold.sites.wish import Where
from rankfold.train import Recipe, TrainingError, choose, evaluate, fit
from rankfold.zoo.data import parts_of

_EPOCHS, _STEPS, _MOST = 3, 500, 30
_TITLES = {"params": "budget", "learning_rate": "learning rate", "batch_size": "batch size", "base_model": "model"}
_RATE, _SIZE = 1e-2, 300_000
REQUEST, REPORT, TRAINING = "request.json", "report.json", "training"


@dataclass(frozen=True)
class AdaptSettings:
    """``method``: one of ``rankfold.adapt.ways.METHODS``. ``params``: numbers of the adapter, as a share of the model's
    up to 1, as a count above. ``radius`` of debora. ``epochs``: by default 3, or as many as make 500 steps, at most 30.
    ``learning_rate``: by default .01 for a network of up to 300,000 parameters, and for a larger one that times the
    cube root of 300,000 / its parameters. ``base_model``: what the adapter says of its base. ``where`` as in
    ``rankfold.sites``."""

    method: str = "lora"
    params: float = 0.01
    radius: float = 8.0
    epochs: int | None = None
    batch_size: int = 32
    learning_rate: float | None = None
    seed: int = 0
    base_model: str = ""
    where: Where | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"there is no method named {self.method!r}: the methods are {', '.join(METHODS)}")
        if not 0 < self.params < float("inf"):
            raise ValueError(f"params must be a share of the model, above 0, or a count above 1, got {self.params!r}")

    def filled(self, size: int, samples: int) -> tuple[int, float]:
        """Epochs and learning rate for a network of ``size`` parameters and so many training samples."""
        steps = max(1, -(-samples // self.batch_size))
        epochs = self.epochs or min(_MOST, max(_EPOCHS, -(-_STEPS // steps)))
        # where rates were compared (docs/adapt.md), .01 was best or close to it at 75,000 to 280,000 parameters
        return epochs, self.learning_rate or _RATE * min(1.0, (_SIZE / size) ** (1 / 3))


class NothingLearntError(ValueError):
    """Training left every layer as it was."""


@dataclass(frozen=True)
class Adapted:
    """What came out. ``before``, ``after``: of the base and of the base with the saved adapter, on the ``split``."""

    extraction: Extraction
    before: Evaluation
    after: Evaluation
    split: str
    objective: str
    settings: AdaptSettings
    history: tuple[Mapping[str, Any], ...]
    directory: str

    def to_dict(self) -> dict[str, Any]:
        """A report as plain values."""
        told = self.extraction.to_dict()
        return {
            "method": self.settings.method, "objective": self.objective, "split": self.split,
            "params": told["params"], "model_params": told["model_params"], "budget": told["budget"],
            "cut": told["error"], "layers": told["layers"],
            "before": self.before.values | {"loss": self.before.loss},
            "after": self.after.values | {"loss": self.after.loss},
            "epochs": list(self.history), "directory": self.directory,
        }  # fmt: skip


def adapt(
    model: nn.Module,
    data: Any,
    settings: AdaptSettings,
    directory: str | Path,
    *,
    objective: Objective | str | None = None,
    merge: bool = False,
    restart: bool = False,
    tell: Tell | None = None,
) -> Adapted:
    """Adapt ``model`` to ``data``; write the adapter as PEFT reads it, with ``report.json``, into ``directory``.

    ``data``: an object with train, validation and test, such as ``zoo.Data``, or a tuple (train, test) or (train,
    validation, test), as ``rankfold.compress`` takes them; of text each part is one ``rankfold.text``.

    All methods end within the same number of parameters: what was trained at larger ranks is cut once, by the singular
    values of all updates together. Epochs are chosen on the validation split, the figures are those of the test split.
    ``merge``: also write the adapted weights, to ``merged``. ``model`` ends as the adapted network. The same call goes
    on after an interruption; another one is refused unless ``restart``. Raises ``ValueError`` in one line.
    """
    tell, place = tell or Tell(), Path(directory)
    data = parts_of(data)
    if getattr(data, "test", None) is None:
        raise ValueError("the data have no test part, on which adapters are judged: give train, validation and test")
    root, said = unwrap(model).eval(), getattr(data, "objective", None)
    size = sum(parameter.numel() for parameter in root.parameters())
    numbers = int(settings.params * size if settings.params <= 1 else settings.params)
    epochs, rate = settings.filled(size, len(data.train))
    settings = replace(settings, epochs=epochs, learning_rate=rate)
    with claimed(place):
        request = _request(root, data, settings, objective)
        _check(place, request, restart)
        chosen = choose(root, data.train, objective, said=said)
        tell.say(str(chosen))
        # what compares with the base needs it as it was: it is kept where nothing else can be told
        base = None if chosen.objective.labelled else copied(root)
        before = evaluate(root, data.test, role="test", objective=chosen.objective, teacher=base)
        steps = epochs * max(1, -(-len(data.train) // settings.batch_size))
        wish = Wish(
            settings.method, numbers, steps, settings.radius, settings.where, settings.seed, settings.base_model
        )
        way = prepare_(root, wish, data.train)
        write_atomically(place / REQUEST, (json.dumps(request, indent=1) + "\n").encode())  # nothing refuses it now
        recipe = Recipe(
            epochs=epochs, batch_size=settings.batch_size, optimizer="adam", weight_decay=0.0, learning_rate=rate,
            seed=settings.seed,
        )  # fmt: skip
        with before_call(root, _still(root)):
            history = fit(
                root, data.train, data.validation, recipe, directory=place / TRAINING, objective=chosen.objective,
                optimizer=way.optimizer, progress=tell.training("adapting"),
            )  # fmt: skip
        if history.stopped is not None:
            raise TrainingError(
                f"{history.stopped}; no adapter was written, and the checkpoint is kept in {place / TRAINING}"
            )
        cut = _cut(replace(way.finish(), task="CAUSAL_LM" if is_causal(root) else None), numbers, size)
        add_(root, cut.adapter)
        after = evaluate(root, data.test, role="test", objective=chosen.objective, teacher=base)
        course = tuple({"epoch": e.epoch, "loss": e.train_loss} for e in history.epochs)
        told = Adapted(cut, before, after, "test", chosen.objective.name, settings, course, str(place))
        cut.save(place)
        if merge:
            _write_merged(root, place / "merged")
        write_atomically(place / REPORT, (json.dumps(told.to_dict(), indent=1) + "\n").encode())
    return told


def _still(root: nn.Module) -> dict[str, Any]:
    """Normalisations keep the statistics that they have: an adapter has no place for others."""

    def at_rest(module: nn.Module, args: tuple, kwargs: dict) -> None:
        module.training = False

    return {
        name: at_rest for name, module in root.named_modules() if isinstance(module, nn.modules.batchnorm._NormBase)
    }


def _cut(found: Adapter, numbers: int, size: int) -> Extraction:
    """The adapter within its numbers; ``NothingLearntError`` where it is zero."""
    if found.magnitudes:  # its directions belong to its norms: as it was trained, which is within the numbers
        energies = {n: float(((b.mT @ b).double() * (a @ a.mT).double()).sum()) for n, (a, b) in found.pairs.items()}
        whole = max(sum(energies.values()), 1e-300)
        layers = tuple(
            Layer(name, (len(b), a.shape[1]), len(a), a.numel() + b.numel() + len(b), energies[name] / whole, 0.0)
            for name, (a, b) in found.pairs.items()
        )
        return Extraction(found, layers, (), f"params={numbers}", 0.0, "entries", size)
    result = combine([found], Asked(params=float(max(numbers, 2))))
    if not any(result.adapter.ranks.values()):
        raise NothingLearntError(
            "training changed no layer: give a higher learning rate (--learning-rate), or, for debora, a larger "
            "radius (--radius)"
        )
    return Extraction(
        result.adapter, result.layers, (), f"params={numbers}", result.error, result.norm, size, notes=result.notes
    )  # fmt: skip


def _request(root: nn.Module, data: Any, settings: AdaptSettings, objective: Any) -> dict[str, Any]:
    return {
        **{key: value for key, value in asdict(settings).items() if key != "where"},
        "where": repr(settings.where), "data": digest(data.train), "objective": str(objective),
        "shapes": sorted(f"{name} {tuple(value.shape)}" for name, value in root.state_dict().items())[:50],
    }  # fmt: skip


def _check(place: Path, request: dict[str, Any], restart: bool) -> None:
    """``ValueError`` where the directory holds what was asked otherwise; with ``restart`` its training is removed."""
    file = place / REQUEST
    check_adapter_place(place)
    if restart:
        shutil.rmtree(place / TRAINING, ignore_errors=True)
    elif file.exists():
        known = read_object(file, "what an adaptation was asked for", "give another directory, or --restart")
        other = next((key for key in request if known.get(key) != json.loads(json.dumps(request[key]))), None)
        if other is not None:
            raise ValueError(
                f"{place} holds an adaptation that was asked for otherwise ({_TITLES.get(other, other)}: "
                f"{known.get(other)!r} there, {request[other]!r} here): give another directory, or --restart "
                "(restart=True) to replace it"
            )
    elif is_adapter(place):
        raise ValueError(
            f"{place} holds an adapter that another command wrote: give another directory, or --restart (restart=True) "
            "to replace it"
        )


def _write_merged(root: nn.Module, place: Path) -> None:
    if is_pretrained(root):
        from rankfold.hub import files_of

        for name, content in files_of(root).items():
            write_atomically(place / name, content)
        return
    with torch.no_grad():
        write_atomically(place / "model.safetensors", packed(root.state_dict(), {"format": "pt"}))
