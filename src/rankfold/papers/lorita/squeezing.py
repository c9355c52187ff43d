"""Compressing a trained network to a budget and fine-tuning it once, in the paper's way and in ours."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rankfold.compress.applying.apply import apply_
from rankfold.compress.planning.planner import plan
from rankfold.compress.planning.profile import Calibration
from rankfold.compress.ranks.budget import Flops, Params
from rankfold.compress.ranks.rules import Iterative, Optimal, RankRule
from rankfold.compress.repair.finetune import finetune, finetune_recipe
from rankfold.papers.lorita.truncation import by_kind, curve, decomposed, smallest, truncated
from rankfold.papers.runs import without_checkpoints
from rankfold.pipeline import Tell, calibration_part, compressed_copy, first_example
from rankfold.report.quantities import percent
from rankfold.run.disk.container import parsed
from rankfold.run.disk.files import write_atomically
from rankfold.run.mark import mark
from rankfold.sites import fingerprint
from rankfold.train import Recipe, evaluate
from rankfold.zoo import Data

TENTHS = tuple(tenth / 10 for tenth in range(1, 11))
UNNOTICED = 0.001  # of validation accuracy: as far as global truncation goes before the iterative one
RATE = 1e-2  # section 5.2; how long was fine-tuned is not said


@dataclass(frozen=True)
class Way:
    """How a network is made smaller and trained again.

    ``global_first``: global truncation as far as validation does not notice, before ranks are chosen. ``repaired``:
    BatchNorm statistics corrected. ``distilled``: fine-tuned with the network before compression as teacher.
    ``rate``: the peak rate of fine-tuning; None is that of ``finetune_recipe``.
    """

    name: str
    method: str
    rule: RankRule
    global_first: bool = False
    repaired: bool = False
    distilled: bool = False
    rate: float | None = None

    def recipe(self, data: Data, epochs: int) -> Recipe:
        recipe = finetune_recipe(data, epochs)
        return replace(
            recipe,
            distill=recipe.distill if self.distilled else None,
            learning_rate=self.rate or recipe.learning_rate,
        )

    def at(self, rate: float | None) -> Way:
        """This way, fine-tuned at another rate where one is given."""
        return self if rate is None else replace(self, rate=rate)


ISVT = Way("GSVT, ISVT, fine-tuned", "truncate", Iterative(counted="values"), global_first=True, rate=RATE)
OURS = Way("project, optimal ranks, distilled", "project", Optimal(), repaired=True, distilled=True)


@dataclass(frozen=True)
class Budget:
    """Kept fractions of the FLOPs and of the parameters of the whole network; both must hold."""

    flops: float
    params: float


@dataclass(frozen=True)
class Squeezed:
    """A network at a budget: test accuracies before, after compression and after fine-tuning, and what is left.

    ``validation`` accuracy is that of the finished network; it is what a choice may be made by.
    """

    before: float
    compressed: float
    finetuned: float | None
    validation: float
    flops: float
    params: float

    @property
    def final(self) -> float:
        return self.compressed if self.finetuned is None else self.finetuned


def squeeze(
    network: nn.Module, data: Data, way: Way, budget: Budget, epochs: int, directory: Path, tell: Tell
) -> Squeezed:
    """``network`` within ``budget``, fine-tuned for ``epochs`` (0: not at all); read back from ``directory`` if it is
    there. ``network`` itself is left as it is. Raises ``BudgetError`` for a budget that cannot be met.
    """
    place = place_of(network, data, way, budget, epochs, directory)
    file = place / "point.json"
    if file.exists():
        return Squeezed(**parsed(file.read_bytes())["squeezed"])
    example = first_example(network, data.train)
    calibration = calibration_part(data.train, Calibration().samples, 0)
    start = globally_truncated(network, data) if way.global_first else network
    limits = (Flops(budget.flops), Params(budget.params))
    made = plan(start, limits, way.method, calibration, rule=way.rule, example=example, progress=tell.progress)
    if way.repaired:
        small, _ = compressed_copy(start, made, calibration, data.validation, progress=tell.progress)
    else:
        small = apply_(copy.deepcopy(start), made)
    compressed, finetuned = evaluate(small, data.test).accuracy, None
    if epochs:
        recipe, told = way.recipe(data, epochs), Tell(tell.progress).training("fine-tuning")
        finetune(small, data, teacher=network, recipe=recipe, directory=place / "finetune", progress=told)
        finetuned = evaluate(small, data.test).accuracy
    result = Squeezed(
        evaluate(network, data.test).accuracy,
        compressed,
        finetuned,
        evaluate(small, data.validation, role="validation").accuracy,
        made.after.flops / made.before.flops,
        made.after.params / made.before.params,
    )
    made.save(place / "plan.json")
    values = {"way": asdict(way), "budget": asdict(budget), "epochs": epochs, "squeezed": asdict(result)}
    write_atomically(file, (json.dumps(values, indent=1) + "\n").encode())
    without_checkpoints(place / "finetune")
    tell.say(
        f"{way.name} at {percent(result.flops)} of the FLOPs and {percent(result.params)} of the parameters: "
        f"validation accuracy {percent(result.validation, 2)}"
    )
    return result


@torch.no_grad()
def globally_truncated(network: nn.Module, data: Data) -> nn.Module:
    """A copy whose smallest singular values, ranked together over each type of layer, are gone; as dense as before.

    The tenth that is kept is the smallest at which validation accuracy drops by at most 0.1 points. What is gone
    costs the iterative rule nothing to remove.
    """
    known = decomposed(copy.deepcopy(network))
    points = curve(known, data.validation, ("global",), TENTHS, by_kind, ("matrices",))
    point = smallest(points, "global", UNNOTICED)
    assert point is not None  # all of the singular values lose nothing
    with truncated(known, point.ranks) as model:
        return copy.deepcopy(model)


def budgets_of(rows: Sequence[Any]) -> tuple[Budget, ...]:
    """The sizes of published rows, as kept fractions, each once."""
    kept = [Budget(round(1 - row.flops_drop / 100, 4), round(1 - row.params_drop / 100, 4)) for row in rows]
    return tuple(dict.fromkeys(kept))


def place_of(network: nn.Module, data: Data, way: Way, budget: Budget, epochs: int, directory: Path) -> Path:
    """Where ``squeeze`` keeps this point: ``plan.json``, ``point.json`` and the run of the fine-tuning."""
    asked = {
        "format": 2 if way.global_first else 1,  # 2: global truncation at the ranks that were measured
        "network": fingerprint(network),
        "data": [data.name, len(data.train), len(data.validation), len(data.test)],
        "way": asdict(way),
        "budget": asdict(budget),
        "recipe": way.recipe(data, epochs).to_dict() if epochs else None,
    }
    return directory / f"{way.method}-flops{budget.flops:g}-params{budget.params:g}-{mark(asked, 12)}"
