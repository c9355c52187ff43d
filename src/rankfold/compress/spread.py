"""How far the answers of a network deviate over its samples, and random directions among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rankfold.batches import forward
from rankfold.objectives import Answer, Objective, ObjectiveError
from rankfold.objectives.answer import filled_up
from rankfold.observe import Samples
from rankfold.run.processes.team import Team

ORTHOGONAL = 512  # entries of an answer up to which directions are made orthogonal: a table of as many squared
CHUNK = 32  # samples of one half, then as many of the other
SEED = 0


@dataclass
class Spread:
    """How far each answer deviates from its mean over the samples, summed as the samples come.

    ``names`` of the answers in an order that does not depend on how the model hands them out: by their shapes, then by
    their values on the first samples.
    """

    names: list[str] = field(default_factory=list)
    energies: list[float] = field(default_factory=list)
    totals: list[Tensor] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    samples: int = 0
    row_shape: tuple[int, int] = (1, 1)  # rows of a sample and entries of a row, of the first answer

    def ordered(self, answers: Sequence[Answer]) -> list[Answer]:
        known = {answer.name: answer for answer in answers}
        try:
            return [known[name] for name in self.names]
        except KeyError as error:
            raise ObjectiveError(
                f"the model's output had {error} in the first batch and does not have it in another"
            ) from None

    def add(self, answers: Sequence[Answer]) -> None:
        if not self.names:
            first = sorted(answers, key=lambda a: (tuple(a.values.shape[1:]), float(a.values.double().sum())))
            self.names = [answer.name for answer in first]
            self.energies, self.rows = [0.0] * len(first), [0] * len(first)
            self.totals = [torch.zeros(a.places.shape[-1], dtype=torch.float64) for a in first]
            shape = first[0].values.shape
            self.row_shape = (shape[1:-1].numel(), shape[-1])
        for index, answer in enumerate(self.ordered(answers)):
            rows = answer.places.detach()
            self.energies[index] += float(rows.square().sum(dtype=torch.float64))
            total, here = filled_up(self.totals[index], rows.sum(0, dtype=torch.float64).cpu())
            self.totals[index] = total + here
            self.rows[index] += len(rows) if answer.counted is None else int(answer.counted.sum())
        self.samples += len(answers[0].values)  # and not of the inputs, which may be nodes of graphs

    def joined(self, team: Team) -> Spread:
        """That of all processes."""
        if team.size == 1:
            return self
        shares: list[Any] = [None] * team.size
        dist.all_gather_object(shares, self)
        first, *others = [share for share in shares if share.names] or [self]
        for other in others:
            for index in range(len(first.names)):
                first.energies[index] += other.energies[index]
                total, there = filled_up(first.totals[index], other.totals[index])
                first.totals[index] = total + there
                first.rows[index] += other.rows[index]
            first.samples += other.samples
        return first

    @property
    def scales(self) -> list[float]:
        """For each answer 1 / its deviation for one sample, over the root of their number; 0 for one that is zero."""
        found = []
        for energy, total, rows in zip(self.energies, self.totals, self.rows, strict=True):
            varies = energy - float(total.square().sum()) / max(rows, 1)
            varies = varies if varies > 1e-9 * energy else energy
            found.append((self.samples / varies / len(self.names)) ** 0.5 if varies > 0 else 0.0)
        return found

    @property
    def chunk(self) -> int:
        """Samples at a time: ``CHUNK``, or near it a multiple of the directions that are orthogonal to one another."""
        rows, entries = self.row_shape
        return entries * max(1, round(CHUNK / entries)) if rows == 1 and entries <= 4 * CHUNK else CHUNK


@torch.no_grad()
def measure_spread(root: nn.Module, seen: Samples, objective: Objective) -> Spread:
    """One pass in eval mode. Empty where the model's outputs cannot be compared."""
    spread = Spread()
    for _, batch in seen.mine():
        try:
            spread.add(objective.answers(forward(root, batch), batch))
        except ObjectiveError:
            return Spread()
    return spread.joined(seen.team)


class Directions:
    """Random directions of variance one for numbered rows; of as many neighbours as a row has entries orthogonal."""

    def __init__(self, offset: int = 0) -> None:
        self.tables: dict[tuple[int, int], Tensor] = {}
        self.offset = offset  # other directions for another number

    def of(self, z: Tensor, answer: int, start: int) -> Tensor:
        """A direction for every row of ``z`` (N, …, C), whose first sample has number ``start``."""
        size, answer = z.shape[-1], answer + self.offset
        count = z.numel() // max(size, 1)
        first = start * z.shape[1:-1].numel()
        if size > ORTHOGONAL:
            drawn = torch.randn(count, size, generator=generator_of(answer, first))
        else:
            groups = range(first // size, (first + count - 1) // size + 1)
            table = torch.cat([self._group(size, answer, group) for group in groups])
            drawn = table[first - groups[0] * size :][:count]
        return drawn.reshape(z.shape).to(z)

    def _group(self, size: int, answer: int, group: int) -> Tensor:
        key = (size, answer)
        if key not in self.tables:
            square = torch.randn(size, size, generator=generator_of(answer, -1), dtype=torch.float64)
            self.tables[key] = (torch.linalg.qr(square)[0] * size**0.5).float()
        generator = generator_of(answer, group)
        signs = torch.randint(0, 2, (2, size), generator=generator) * 2.0 - 1
        order = torch.randperm(size, generator=generator)
        return self.tables[key][order] * signs[0] * signs[1].unsqueeze(1)


def generator_of(answer: int, number: int) -> torch.Generator:
    return torch.Generator().manual_seed((SEED + answer) * 1_000_003 + number + 1)
