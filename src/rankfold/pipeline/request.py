"""What one run was asked for, written into its directory: the same request resumes, another one is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rankfold.compress.methods import method_named
from rankfold.compress.methods.method import Method
from rankfold.compress.planning.plan import fingerprint
from rankfold.compress.ranks.budget import Budget, parse_budget
from rankfold.compress.ranks.rules import RankRule, rule_named
from rankfold.compress.repair.finetune import finetune_recipe
from rankfold.files import write_atomically
from rankfold.objectives import Objective, objective_named
from rankfold.store import StoreError
from rankfold.train import Recipe
from rankfold.train.feed import length

FORMAT = 1


@dataclass(frozen=True)
class Settings:
    """How ``compress`` works; the defaults are those of the command line.

    ``samples``: calibration samples, drawn from the training split with ``seed``. ``finetune``: epochs of the default
    recipe, or a recipe; 0 for none. ``curve``: also measure accuracy at other budgets for the report.
    ``slices``: keep what is needed to slice the result later (``rankfold.pipeline.slice_``); it takes disk space.
    ``memory``: bytes that second moments may take, for methods that sweep (``rankfold.compress.layerwise.survey``).
    ``tune``: steps of training of each block to its original output, before fine-tuning (``rankfold.tune_``).
    ``objective``: what outputs and targets mean, by name or as an object; by default it is told from data and model.
    ``model``: the name from which the original can be built again, kept in the manifest beside ``notes``.
    """

    method: str | Method = "project"
    rule: str | RankRule = "optimal"
    samples: int = 2048
    finetune: int | Recipe = 0
    curve: bool = True
    seed: int = 0
    model: str = ""
    slices: bool = True
    memory: int | None = None
    tune: int = 0
    objective: str | Objective | None = None

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"samples must be at least 1, got {self.samples}")
        if self.tune < 0:
            raise ValueError(f"the number of tuning steps must be at least 0, got {self.tune}")
        if isinstance(self.finetune, int) and self.finetune < 0:
            raise ValueError(f"the number of fine-tuning epochs must be at least 0, got {self.finetune}")

    def objective_for(self, data: Any) -> Objective | None:
        """The objective that was asked for here, or that ``data`` bring as an attribute; None for neither."""
        asked = getattr(data, "objective", None) if self.objective is None else self.objective
        return None if asked is None else objective_named(asked)

    def recipe(self, data: Any) -> Recipe | None:
        """The recipe of fine-tuning; None for none."""
        if isinstance(self.finetune, Recipe):
            return self.finetune
        if self.finetune == 0:
            return None
        values = finetune_recipe(data, self.finetune).to_dict()
        return Recipe.from_dict(values | {"seed": self.seed})


def parsed(budget: str | Budget | Sequence[str | Budget]) -> tuple[Budget, ...]:
    """Budgets from their text or as they are; ``ValueError`` if there is none."""
    given = [budget] if isinstance(budget, str) or not isinstance(budget, Sequence) else budget
    budgets = tuple(parse_budget(item) if isinstance(item, str) else item for item in given)
    if not budgets:
        raise ValueError("no budget was given: for example 'flops=0.5'")
    return budgets


def request_of(model: nn.Module, data: Any, budgets: Sequence[Budget], settings: Settings) -> dict[str, Any]:
    """Everything that the result depends on, as JSON: the model by its fingerprint, the data by size and labels."""
    recipe, objective = settings.recipe(data), settings.objective_for(data)
    request = {
        "format": FORMAT,
        "model": settings.model,
        "fingerprint": fingerprint(model),
        "data": {part: _digest(getattr(data, part, None)) for part in ("train", "validation", "test")},
        "budgets": [asdict(budget) for budget in budgets],
        "method": method_named(settings.method).name,
        "rule": asdict(rule_named(settings.rule)),
        "samples": settings.samples,
        "finetune": None if recipe is None else recipe.to_dict(),
        "seed": settings.seed,
    } | ({"tune": settings.tune} if settings.tune else {})
    request |= {} if objective is None else {"objective": objective.name}
    return json.loads(json.dumps(request))


def _digest(split: Any) -> str | None:
    if split is None:
        return None
    labels = getattr(split, "labels", None)
    known = length(split)
    size = "?" if known is None else known
    if not isinstance(labels, torch.Tensor):
        return f"{size} of {type(split).__name__}"
    return f"{size} labels {hashlib.sha256(labels.long().numpy().tobytes()).hexdigest()[:16]}"


def check_place(directory: Path) -> None:
    """``StoreError`` for a directory in which there is anything else than a run of rankfold."""
    if directory.exists() and not directory.is_dir():
        raise StoreError(f"{directory} is a file; give a directory")
    if (directory / "run" / "request.json").exists() or not directory.exists():
        return
    if any(path.name != "run" for path in directory.iterdir()):
        raise StoreError(f"{directory} is not empty and holds no run of rankfold: give another directory")


def claim(directory: Path, request: Mapping[str, Any], restart: bool) -> None:
    """Make ``directory`` the place of this request: new, or the same one again.

    Raises ``StoreError`` for a directory with other files in it, and for another request unless ``restart``, which
    forgets how far the earlier run had come.
    """
    file = directory / "run" / "request.json"
    check_place(directory)
    if file.exists() and restart:
        forget(directory)
    elif file.exists():
        differing = _differing(file, request)
        if differing:
            raise StoreError(
                f"{directory} holds a run that was asked otherwise ({', '.join(differing)} differ): "
                "give another directory, or --restart (restart=True) to replace it"
            )
        return
    write_atomically(file, (json.dumps(request, indent=1) + "\n").encode())


def forget(directory: Path) -> None:
    """Remove the state of a run. Its model and report stay until those of the next run replace them, whole."""
    (directory / "result.json").unlink(missing_ok=True)
    for path in [path for path in (directory / "run").rglob("*") if path.is_file()]:
        path.unlink()


def _differing(file: Path, request: Mapping[str, Any]) -> list[str]:
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(f"{file}: damaged ({error}): give another directory, or --restart") from None
    if not isinstance(before, dict):
        raise StoreError(f"{file}: not a request of rankfold: give another directory, or --restart")
    return [key for key in {**request, **before} if before.get(key) != request.get(key)]
