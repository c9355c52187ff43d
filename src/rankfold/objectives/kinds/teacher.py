"""No targets at all: how far the outputs move from those of the original network."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from rankfold.batches import labels_of, size_of
from rankfold.objectives.base import Objective
from rankfold.objectives.compare import in_parts, paired
from rankfold.objectives.evaluation import SPREAD, Figure, ObjectiveError, joined, moments


@dataclass(frozen=True)
class Teacher(Objective):
    """Every floating tensor of the output counts, each on its own scale; ``change`` from the original judges.

    ``change`` is the root of the squared change over the outputs' own variance: 0 is the original, 1 as far from it as
    its mean. No targets.

    Args:
        name: of the objective.
        labelled: False.

    Example:
        >>> x = torch.randn(8, 4)
        >>> rf.evaluate(nn.Identity(), x, objective=rf.Teacher(), teacher=nn.Identity()).judged.value
        0.0
    """

    name: str = "teacher"
    labelled: bool = False

    def target(self, batch: Any) -> None:
        return None

    def losses(self, output: Any, batch: Any, smoothing: float = 0.0) -> tuple[Tensor, int]:
        raise ObjectiveError("teacher: without targets, training needs the original network: give it as teacher=")

    def measure(self, output: Any, batch: Any, taught: Any = None) -> dict[str, Tensor]:
        if taught is None:
            lacking = "" if labels_of(batch) is not None else "the data have no targets (labels), and "
            raise ObjectiveError(
                f"{self.name}: {lacking}outputs are compared with those of the original network: give it as teacher="
            )
        found: dict[str, Tensor] = {"count": torch.tensor(size_of(batch))}
        for index, (now, then) in enumerate(paired(self.answers(output, batch), self.answers(taught, batch))):
            a, b = now.places, then.places
            counted = torch.ones(len(b), dtype=torch.bool, device=b.device) if then.counted is None else then.counted
            each = [_measured(*part) for part in in_parts(a, b, counted.reshape(-1))]
            moved, energy, spread = zip(*each, strict=True)
            found |= {f"moved {index}": sum(moved), f"energy {index}": sum(energy)}
            found |= {f"{SPREAD}{index}": reduce(joined, spread)}
        return found

    def conclude(self, sums: Mapping[str, Tensor]) -> tuple[tuple[Figure, ...], float | None]:
        return (Figure("change", self.mean_loss(sums) ** 0.5, False),), None

    def mean_loss(self, sums: Mapping[str, Tensor]) -> float:
        """The mean over the answers of their squared change over their variance; NaN where an output is."""
        shares = []
        for index in range(sum(name.startswith("moved ") for name in sums)):
            moved, energy = float(sums[f"moved {index}"]), float(sums[f"energy {index}"])
            around = float(sums[f"{SPREAD}{index}"][2].sum())
            spread = around if around > 1e-12 * energy else energy
            if spread > 0:
                shares.append(moved / spread)
            else:
                shares.append(moved if math.isnan(moved) else float(moved != 0))
        return sum(shares) / len(shares)


def _measured(now: Tensor, then: Tensor, counted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of some places: the squared change, the squares of what was there, and the moments of what counts of that."""
    a, b = now.double(), then.double()
    return (a - b).square().sum(), b.square().sum(), moments(b if bool(counted.all()) else b[counted])
