"""Which form of a linear layer pays in time, at which size, number of rows and rank; measured for a machine's table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from rankfold.costs import latencies
from rankfold.costs.curve import FASTER, curves
from rankfold.costs.machine import arithmetic
from rankfold.costs.table import LatencyTable, Spot
from rankfold.sites import Form, sites

SHAPES = (
    (32, 32),
    (64, 64),
    (256, 256),
    (1024, 256),
    (256, 1024),
    (768, 768),
    (2048, 768),
    (768, 2048),
    (2048, 2048),
)  # (m, n)
ROWS = (1, 8, 64, 512, 4096)
FRACTIONS = (0.125, 0.25, 0.375, 0.5, 0.75)  # of the full rank
_MOST = 3e9  # FLOPs of one call: what is larger is left out


@dataclass(frozen=True)
class Pays:
    """One linear layer of m×n, ``shape``, with ``rows`` rows: milliseconds of it and of one form by its rank, and the
    largest fraction of the full rank at which the form is faster; None where it is at none."""

    shape: tuple[int, int]
    rows: int
    form: str
    dense_ms: float
    ms: dict[int, float]

    @property
    def up_to(self) -> float | None:
        found = None
        for rank, ms in sorted(self.ms.items()):
            if ms >= FASTER * self.dense_ms:
                break
            found = rank / min(self.shape)
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**vars(self), "ms": {str(key): ms for key, ms in self.ms.items()}, "faster_up_to": self.up_to}


def spots(
    shapes: Sequence[tuple[int, int]] = SHAPES, rows: Sequence[int] = ROWS
) -> Iterator[tuple[tuple[int, int], int]]:
    """The sizes and numbers of rows that are timed: all but those that would take too long."""
    return ((shape, many) for many in rows for shape in shapes if 2.0 * many * shape[0] * shape[1] <= _MOST)


def paying(
    shapes: Sequence[tuple[int, int]] = SHAPES, rows: Sequence[int] = ROWS, *, dtype: torch.dtype = torch.float32,
    device: str = "cpu", rounds: int = 30, seconds: float = 0.05, table: LatencyTable | None = None,
) -> Iterator[Pays]:  # fmt: skip
    """Which form of a linear layer takes less time than the dense one, at which rank; one line for each size, number of
    rows and form, noted in ``table``. All forms and ranks of a size are timed in turns with the dense layer, and the
    lower quartile counts. Cost: about ``seconds`` for each of them, or three rounds."""
    for (m, n), many in spots(shapes, rows):
        dense = nn.Linear(n, m, dtype=dtype, device=device)
        layer = sites(nn.Sequential(dense))[0].layer
        models: dict[str, nn.Module] = {"dense": dense}
        found = dict[str, tuple[Form, int]]()
        for form in sorted(layer.forms - {Form.KEEP, Form.DENSE}):
            for rank in sorted({max(1, int(part * min(m, n))) for part in FRACTIONS}):
                found[f"{form} {rank}"] = form, rank
                models[f"{form} {rank}"] = _drawn(layer.skeleton(dense, form, rank, bias=True))
        x = torch.randn(1, n, dtype=dtype, device=device)
        times = latencies(models, x, batch=many, rounds=rounds, seconds=seconds, quantile=0.25)
        whole = times.pop("dense")
        by_form = {found[name]: ms for name, ms in times.items()}
        if table is not None:
            spot = Spot.linear(layer.kind, (m, n), many, arithmetic(dense.weight))
            table.add(spot, curves(whole, by_form))
        for form in dict.fromkeys(form for form, _ in by_form):
            known = {rank: ms for (other, rank), ms in by_form.items() if other is form}
            yield Pays((m, n), many, str(form), whole, known)


def _drawn(layer: nn.Module) -> nn.Module:
    """Random weights: numbers that are no numbers, or next to zero, take other times."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(0, 0.02, generator=torch.Generator(parameter.device).manual_seed(0))
    return layer
