"""Adapting a trained network, from its data to a saved adapter: prepared, trained, cut to its budget, judged."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from math import isclose
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rankfold.adapt.deep_lora import check_unadapted
from rankfold.adapt.extraction.adapters import combine
from rankfold.adapt.extraction.budget import Asked
from rankfold.adapt.extraction.compare import LeftOut
from rankfold.adapt.extraction.result import Extraction, Layer
from rankfold.adapt.peft_format import Adapter
from rankfold.adapt.places import in_words
from rankfold.adapt.request import MERGED, REPORT, REQUEST, TRAINING, check_request, forget
from rankfold.adapt.ways import METHODS, Way, Wish, add_, prepared_
from rankfold.batches import copied, in_eval_mode
from rankfold.objectives import Evaluation, Objective
from rankfold.observe import before as before_call
from rankfold.run.claim import claimed
from rankfold.run.digest import digest
from rankfold.run.disk.container import packed
from rankfold.run.disk.files import write_atomically
from rankfold.run.ordinary import ordinarily
from rankfold.run.progress import Tell
from rankfold.sites import fingerprint, is_causal, is_pretrained, sites, unwrap
from rankfold.sites.wish import Where
from rankfold.train import History, Recipe, TrainingError, choose, evaluate, fit
from rankfold.train.feed import Feed, samples
from rankfold.zoo.data import parts_of

_EPOCHS, _STEPS, _MOST = 3, 500, 30
_RATE, _SIZE = 1e-2, 300_000
_SAME = 1e-4  # a loss that moved by less than this share of itself did not move


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
        for name, count in (("epochs", 1 if self.epochs is None else self.epochs), ("batch_size", self.batch_size)):
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {count!r}")
        for name, number in (("radius", self.radius), ("learning_rate", self.learning_rate)):
            if number is not None and not 0 < number < float("inf"):
                raise ValueError(f"{name} must be positive and finite, got {number!r}")

    def filled(self, size: int, samples: int) -> tuple[int, float]:
        """Epochs and learning rate for a network of ``size`` parameters and so many training samples."""
        steps = max(1, -(-samples // self.batch_size))
        epochs = min(_MOST, max(_EPOCHS, -(-_STEPS // steps))) if self.epochs is None else self.epochs
        # where rates were compared (docs/adapt.md), .01 was best or close to it at 75,000 to 280,000 parameters
        rate = _RATE * min(1.0, (_SIZE / size) ** (1 / 3)) if self.learning_rate is None else self.learning_rate
        return epochs, rate


class NothingLearntError(ValueError):
    """Training left every layer as it was, or no epoch was better than the base."""


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
            "left_out": [{"name": item.name, "why": item.why} for item in self.extraction.left_out],
            "before": self.before.values | {"loss": self.before.loss},
            "after": self.after.values | {"loss": self.after.loss},
            "epochs": list(self.history), "directory": self.directory,
        }  # fmt: skip


@ordinarily
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
    values of all updates together. Epochs are chosen on the validation split, the figures are those of the test split,
    or of validation where there is none.
    ``merge``: also write the adapted weights, to ``merged``. ``model`` ends as the adapted network, its mode and what
    is frozen as found. The same call goes on after an interruption; another one, of a base with other weights too, is
    refused unless ``restart``, which removes what the earlier one wrote. Layers whose adapter PEFT would read wrong are
    left out, with the reason. Raises ``ValueError`` in one line. Where the training fails or is interrupted, ``model``
    is left as it was.
    """
    tell, place = tell or Tell(), Path(directory)
    data = parts_of(data)
    split = "test" if getattr(data, "test", None) is not None else "validation"
    judged_on = getattr(data, split)
    if judged_on is None:
        raise ValueError("the data have no validation part, on which epochs are chosen: give train and validation")
    root, said = unwrap(model), getattr(data, "objective", None)
    check_unadapted(root)
    size = sum(parameter.numel() for parameter in root.parameters())
    numbers = int(settings.params * size if settings.params <= 1 else settings.params)
    learning = _samples(data.train, settings.batch_size)
    epochs, rate = settings.filled(size, learning)
    settings = replace(settings, epochs=epochs, learning_rate=rate)
    with claimed(place), in_eval_mode(root):
        request = _request(root, data, settings, objective)
        known = check_request(place, request, restart, merge)
        chosen = choose(root, data.train, objective, said=said)
        tell.say(str(chosen))
        # what compares with the base needs it as it was: it is kept where nothing else can be told
        base = None if chosen.objective.labelled else copied(root)
        before = evaluate(root, judged_on, role=split, objective=chosen.objective, teacher=base)
        steps = epochs * max(1, -(-learning // settings.batch_size))
        wish = Wish(
            settings.method, numbers, steps, settings.radius, settings.where, settings.seed, settings.base_model,
            chosen.objective,
        )  # fmt: skip
        with prepared_(root, wish, data.train) as way:
            if way.left_out:
                tell.say(f"left out: {in_words(way.left_out)}")
            if restart:  # nothing refuses it now
                forget(place, known)
            request |= {MERGED: merge or (bool(known.get(MERGED)) and not restart)}
            write_atomically(place / REQUEST, (json.dumps(request, indent=1) + "\n").encode())
            recipe = Recipe(
                epochs=epochs, batch_size=settings.batch_size, optimizer="adam", weight_decay=0.0, learning_rate=rate,
                seed=settings.seed,
            )  # fmt: skip
            history = _trained(root, data, recipe, way, place / TRAINING, chosen.objective, tell)
            found = replace(way.finish(), task="CAUSAL_LM" if is_causal(root) else None)
            left_out = tuple(LeftOut(name, why, None) for name, why in way.left_out)
            cut = replace(_cut(found, numbers, size), left_out=left_out)
        add_(root, cut.adapter)
        after = evaluate(root, judged_on, role=split, objective=chosen.objective, teacher=base)
        course = tuple({"epoch": e.epoch, "loss": e.train_loss} for e in history.epochs)
        told = Adapted(cut, before, after, split, chosen.objective.name, settings, course, str(place))
        cut.save(place)
        if merge:
            _write_merged(root, place / MERGED)
        write_atomically(place / REPORT, (json.dumps(told.to_dict(), indent=1) + "\n").encode())
    return told


def _trained(
    root: nn.Module, data: Any, recipe: Recipe, way: Way, place: Path, objective: Objective, tell: Tell
) -> History:
    """How what ``way`` has put into ``root`` was trained; ``TrainingError`` where that broke off, and what
    ``_check_learnt`` raises."""
    with before_call(root, _still(root)):
        history = fit(
            root, data.train, data.validation, recipe, directory=place, objective=objective,
            optimizer=way.optimizer, progress=tell.training("adapting"),
        )  # fmt: skip
    if history.stopped is not None:
        raise TrainingError(f"{history.stopped}; no adapter was written, and the checkpoint is kept in {place}")
    _check_learnt(history, recipe.learning_rate)
    return history


def _samples(train: Any, batch_size: int) -> int:
    """How many there are to learn from; of data in batches of their own so many as make as many steps."""
    fed = Feed(train, batch_size, None)
    known = None if fed.is_batched else samples(train)
    return len(fed) * batch_size if known is None else known


def _still(root: nn.Module) -> dict[str, Any]:
    """Normalisations keep the statistics that they have: an adapter has no place for others."""

    def at_rest(module: nn.Module, args: tuple, kwargs: dict) -> None:
        module.training = False

    return {
        name: at_rest for name, module in root.named_modules() if isinstance(module, nn.modules.batchnorm._NormBase)
    }


def _check_learnt(history: History, rate: float) -> None:
    """``NothingLearntError`` where the base was the best, with what helps: training moved nothing, or for the worse.

    Of a way that must come within a budget ``fit`` keeps an epoch within it, be it worse than the start; here the start
    is within any budget, as its update is zero.
    """
    looks = [epoch.validation for epoch in history.epochs if epoch.validation is not None]
    start, kept = history.start, None if history.best is None else history.best.validation
    if start is None or not looks or (kept is not None and kept.rank > start.rank):
        return
    if all(isclose(look.loss, start.loss, rel_tol=_SAME) for look in looks):
        raise NothingLearntError(_unmoved())
    best = max(looks, key=lambda look: look.rank)
    raise NothingLearntError(
        f"no epoch was better on validation than the base ({start.judged.name} {start.judged.text}, loss "
        f"{start.loss:.4g}; the best epoch {best.judged.text}, {best.loss:.4g}), so that there is nothing to keep: "
        f"give a learning rate below {rate:.3g} (--learning-rate), or more data"
    )


def _unmoved() -> str:
    return (
        "training changed no layer: give a higher learning rate (--learning-rate), or, for debora, a larger radius "
        "(--radius)"
    )


def _cut(found: Adapter, numbers: int, size: int) -> Extraction:
    """The adapter within its numbers; ``NothingLearntError`` where it is zero."""
    if found.magnitudes:  # its directions belong to its norms: as it was trained, which is within the numbers
        energies = {n: float(((b.mT @ b).double() * (a @ a.mT).double()).sum()) for n, (a, b) in found.pairs.items()}
        whole = sum(energies.values())
        if not whole > 0:
            raise NothingLearntError(_unmoved())
        layers = tuple(
            Layer(name, (len(b), a.shape[1]), len(a), a.numel() + b.numel() + len(b), energies[name] / whole, 0.0)
            for name, (a, b) in found.pairs.items()
        )
        return Extraction(found, layers, (), f"params={numbers}", 0.0, "entries", size)
    result = combine([found], Asked(params=float(max(numbers, 2))))
    if not any(result.adapter.ranks.values()):
        raise NothingLearntError(_unmoved())
    return Extraction(
        result.adapter, result.layers, (), f"params={numbers}", result.error, result.norm, size, notes=result.notes
    )  # fmt: skip


def _request(root: nn.Module, data: Any, settings: AdaptSettings, objective: Any) -> dict[str, Any]:
    return {
        # first, as defaults of the others follow from these
        "base": fingerprint(root),
        "data": {part: digest(getattr(data, part, None)) for part in ("train", "validation", "test")},
        **{key: value for key, value in asdict(settings).items() if key != "where"},
        "where": _layers(root, settings.where), "objective": str(objective),
    }  # fmt: skip


def _layers(root: nn.Module, where: Where | None) -> str:
    """What is asked for, in words that another process repeats: a function by the layers that it chooses."""
    return f"{[site.name for site in sites(root, where)]}" if callable(where) else repr(where)


def _write_merged(root: nn.Module, place: Path) -> None:
    if is_pretrained(root):
        from rankfold.hub import files_of

        for name, content in files_of(root).items():
            write_atomically(place / name, content)
        return
    with torch.no_grad():
        write_atomically(place / "model.safetensors", packed(root.state_dict(), {"format": "pt"}))
