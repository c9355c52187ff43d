"""What was extracted: an adapter, the rank and error of each layer, and all that was left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rankfold.adapt.extraction.budget import Asked
from rankfold.adapt.extraction.compare import LeftOut
from rankfold.adapt.extraction.spread import Part
from rankfold.adapt.peft_format import Adapter, write_adapter
from rankfold.compress.repair.whole import Way
from rankfold.linalg.brief import brief


@dataclass(frozen=True)
class Layer:
    """One layer's update. ``share``: of the squared norm of all; ``error``: relative to its own norm."""

    name: str
    shape: tuple[int, int]
    rank: int
    params: int
    share: float
    error: float


@dataclass(frozen=True)
class Extraction:
    """An adapter and what it cost.

    Attributes:
        adapter: the factors of each layer; ``save`` writes them.
        layers: name, shape, rank and error of each.
        left_out: what the adapter does not have, with the reason.
        budget: that was asked.
        error: relative, of all updates together.
        norm: in which it and the ranks were counted, "entries" of the updates or "outputs" on data.
        model_params: numbers of the model, or of the adapters that were combined.
        moved: the squared norm of all that differs, in the adapter or not; 0 where adapters were combined.
        notes: sentences on what is odd.
        tuned: where the factors were trained afterwards, how far the answers were off on held-out samples before and
            after; errors are those before.
        unit: of what ``tuned`` holds, a key of ``rankfold.objectives.units``.

    Example:
        >>> base, tuned = nn.Sequential(nn.Linear(8, 8)), nn.Sequential(nn.Linear(8, 8))
        >>> found = rf.extract(base, tuned, "rank=2")
        >>> found.adapter.ranks, found.norm
        ({'0': 2}, 'entries')
    """

    adapter: Adapter = field(repr=False)
    layers: tuple[Layer, ...]
    left_out: tuple[LeftOut, ...]
    budget: str
    error: float
    norm: str
    model_params: int = 0
    moved: float = 0.0
    notes: tuple[str, ...] = ()
    tuned: Way | None = None
    unit: str = ""

    __repr__ = brief

    @property
    def params(self) -> int:
        """Numbers of the adapter."""
        return self.adapter.params

    def save(self, directory: str | Path, *, base_model: str | None = None, uniform: bool = False) -> Path:
        """Write it as an adapter of PEFT, with ``extraction.json`` beside it; returns the directory.

        ``base_model``: what the adapter says of its base. ``uniform``: every layer at the largest rank by zeros, for
        readers that know one rank and one alpha. Raises as ``write_adapter``.
        """
        adapter = self.adapter if base_model is None else replace(self.adapter, base_model=base_model)
        return write_adapter(adapter, directory, uniform=uniform, note=self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """All but the factors, for JSON."""
        return {
            "budget": self.budget, "norm": self.norm, "error": self.error, "params": self.params,
            "model_params": self.model_params, "moved": self.moved, "layers": [asdict(layer) for layer in self.layers],
            "whole": sorted(self.adapter.whole), "left_out": [asdict(item) for item in self.left_out],
            "notes": list(self.notes),
            "tuned": None if self.tuned is None else asdict(self.tuned) | {"unit": self.unit},
        }  # fmt: skip


def extraction_of(
    parts: Mapping[str, Part],
    shapes: Mapping[str, tuple[int, int]],
    blank: Adapter,
    wanted: Asked,
    size: int,
    left_out: tuple[LeftOut, ...],
    by_data: bool,
) -> Extraction:
    """The result of sharing ranks out; ``blank``: the adapter without its pairs."""
    energy = sum(part.energy for part in parts.values())
    layers = tuple(
        Layer(
            name, shapes[name], part.rank, part.rank * sum(shapes[name]), part.energy / energy if energy else 0.0,
            (part.loss / part.energy) ** 0.5 if part.energy else 0.0,
        )
        for name, part in parts.items()
    )  # fmt: skip
    pairs = {name: (part.right, part.left) for name, part in parts.items()}
    error = (sum(part.loss for part in parts.values()) / energy) ** 0.5 if energy else 0.0
    notes = []
    if all(part.rank == part.full and part.loss < 1e-6 * part.energy for part in parts.values()):
        notes.append("every update fits into the budget at its full rank: nothing had to be left out")
    return Extraction(
        replace(blank, pairs=pairs), layers, left_out, str(wanted), error, "outputs" if by_data else "entries", size,
        notes=tuple(notes),
    )  # fmt: skip
