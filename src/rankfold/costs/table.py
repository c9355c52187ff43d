"""Times of layers on one machine, measured once and kept in a file: of layers alike, and by a law of linear ones."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from rankfold.costs.curve import Curve
from rankfold.costs.law import Law, Point, law_of
from rankfold.costs.machine import Machine
from rankfold.forms import Form, Layer
from rankfold.run.claim import claimed
from rankfold.run.disk.cache import cache_folder
from rankfold.run.disk.files import write_atomically
from rankfold.sites import LinearLayer

VARIABLE = "RANKFOLD_LATENCY"
_REMEDY = "measure again: rankfold doctor --latency"


@dataclass(frozen=True)
class Spot:
    """What the time of a layer depends on besides its form and rank, on one machine.

    ``layer``: its type and settings; ``calls``: the shapes that it is given; ``arithmetic``: what it computes in. Of
    linear layers ``calls`` are the rows, and ``shape`` is (m, n); of others it is (0, 0), and no law covers them.
    """

    layer: str
    calls: str
    arithmetic: str
    shape: tuple[int, int] = (0, 0)
    rows: int = 0

    @classmethod
    def linear(cls, kind: str, shape: tuple[int, int], rows: int, arithmetic: str) -> Spot:
        """A linear layer of this ``kind``, called once with ``rows`` rows."""
        return cls(kind, f"{rows} rows", arithmetic, shape, rows)


@dataclass(frozen=True, eq=False)
class LatencyTable:
    """``curves``: for each spot the curve of every form that was timed there by its name, "keep" for the layer itself.

    ``file``: where ``save`` writes it. The laws are made when they are first asked for.
    """

    machine: Machine
    file: Path
    curves: dict[Spot, dict[str, Curve]] = field(default_factory=dict)
    laws: dict[tuple[str, str, str], Law | None] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, file: str | Path | None = None, device: torch.device | str = "cpu") -> LatencyTable:
        """The table of this machine that is kept in ``file``, an empty one where there is no file yet.

        By default ``$RANKFOLD_LATENCY``, or a file in the user's cache folder whose name tells the machine. Raises
        ``ValueError`` for a file that is damaged, or of another machine.
        """
        here = Machine.here(device)
        place = file_of(here) if file is None else Path(file)
        if not place.is_file():
            return cls(here, place)
        try:
            kept = _STORED.validate_json(place.read_bytes())
        except (ValidationError, ValueError, RecursionError) as error:
            raise ValueError(
                f"{place}: this is no latency table, or it is damaged: {_REMEDY}, or remove the file"
            ) from error
        if kept.machine != here:
            raise ValueError(
                f"{place}: its times were measured on another machine ({kept.machine}), and this one is {here}: "
                f"{_REMEDY} --table FILE, or give the file of this machine"
            )
        return cls(here, place, {row.spot: dict(row.curves) for row in kept.rows})

    @classmethod
    def kept(cls, device: torch.device | str = "cpu") -> LatencyTable | None:
        """The table that was measured for this machine; None where none was."""
        found = cls.of(None, device)
        return found if found.curves else None

    def exact(self, spot: Spot, forms: Sequence[Form]) -> dict[Form, Curve] | None:
        """What was timed at this very spot; None unless every one of ``forms`` was."""
        known = self.curves.get(spot, {})
        wanted = (Form.KEEP, *forms)
        return {form: known[str(form)] for form in wanted} if all(str(form) in known for form in wanted) else None

    def by_law(self, spot: Spot, layer: Layer, ranks: Mapping[Form, Sequence[int]]) -> dict[Form, Curve] | None:
        """What the law says of a linear layer at these ``ranks`` of every form; None where it does not cover it."""
        laws = {form: self.law(spot.layer, str(form), spot.arithmetic) for form in (Form.KEEP, *ranks)}
        if spot.rows < 1 or any(law is None or not law.covers(spot.rows, spot.shape) for law in laws.values()):
            return None

        def at(form: Form, rank: int) -> float:
            law = laws[form]
            assert law is not None
            return law.at(spot.rows, layer.params(form, rank, False), sum(spot.shape) + rank)

        dense = at(Form.KEEP, 0)
        return {Form.KEEP: Curve(dense)} | {
            form: Curve(dense, tuple(given), tuple(at(form, rank) for rank in given)) for form, given in ranks.items()
        }

    def law(self, kind: str, form: str, arithmetic: str) -> Law | None:
        """The law of linear layers of this ``kind`` in this form; None where too few were timed."""
        key = kind, form, arithmetic
        if key not in self.laws:
            self.laws[key] = law_of(self._points(*key))
        return self.laws[key]

    def _points(self, kind: str, form: str, arithmetic: str) -> list[Point]:
        found, registered = [], {str(each): each for each in Form}
        for spot, curves in self.curves.items():
            if not spot.rows or (spot.layer, spot.arithmetic) != (kind, arithmetic) or form not in curves:
                continue
            m, n = spot.shape
            if form == Form.KEEP:
                found.append(Point(spot.rows, spot.shape, m * n, m + n, curves[form].dense))
            elif form in registered:
                layer = LinearLayer("Linear", spot.shape, has_bias=False)
                for rank, ms in zip(curves[form].ranks, curves[form].times, strict=True):
                    weights = registered[form].params(layer, rank, False)
                    found.append(Point(spot.rows, spot.shape, weights, m + n + rank, ms))
        return found

    def add(self, spot: Spot, curves: Mapping[Form, Curve]) -> None:
        """Note what was timed; laws are made anew."""
        self.curves[spot] = self.curves.get(spot, {}) | {str(form): curve for form, curve in curves.items()}
        self.laws.clear()

    def save(self) -> None:
        """Write it, whole or not at all, together with what another process has added since. Raises ``OSError``."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with claimed(self.file.parent, name=f".{self.file.name}.writing", wait=60.0):
            merged = defaultdict[Spot, dict[str, Curve]](dict)
            if self.file.is_file():
                with suppress(ValidationError, ValueError):  # damaged since: it is written anew
                    merged.update(_STORED.validate_json(self.file.read_bytes()).of(self.machine))
            for spot, curves in self.curves.items():
                merged[spot] = merged[spot] | curves
            rows = [Row(spot, curves) for spot, curves in merged.items()]
            write_atomically(self.file, _STORED.dump_json(Stored(1, self.machine, rows), indent=1))


@checked(frozen=True)
class Row:
    """One entry of the file."""

    spot: Spot
    curves: dict[str, Curve]


@checked(frozen=True)
class Stored:
    """The file."""

    version: int
    machine: Machine
    rows: list[Row]

    def of(self, machine: Machine) -> dict[Spot, dict[str, Curve]]:
        return {row.spot: dict(row.curves) for row in self.rows} if self.machine == machine else {}


_STORED: TypeAdapter[Any] = TypeAdapter(Stored)


def file_of(machine: Machine) -> Path:
    """Where the table of a machine is kept unless another place is named."""
    named = os.environ.get(VARIABLE)
    return Path(named) if named else cache_folder() / "latency" / f"{machine.digest}.json"
