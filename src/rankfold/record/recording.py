"""All measurements of one run, what is needed to go on with it, and their file: save and load, tables."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired

import torch
from torch import Tensor, nn
from typing_extensions import TypedDict

from rankfold.forms import Layer
from rankfold.record.layers import layer_of, told
from rankfold.record.measure import Measurement, Subspaces
from rankfold.record.reading import GONE
from rankfold.run.disk.container import Kind
from rankfold.sites import Site, sites
from rankfold.spectrum import Spectrum

if TYPE_CHECKING:
    import pandas as pd

_FORMAT = 1


@dataclass
class Track:
    """One site: W(0) (m, n) or (groups, m, n), the leading subspaces last seen, and every measurement.

    ``layer``: how it is read, whatever stands there now; None where a file does not tell.
    """

    kind: str
    start: Tensor
    before: Subspaces | None = None
    rows: list[Measurement] = field(default_factory=list)
    layer: Layer | None = None

    @property
    def shape(self) -> tuple[int, int]:
        m, n = self.start.shape[-2:]
        return m, n

    @property
    def groups(self) -> int:
        return self.start.shape[0] if self.start.ndim == 3 else 1

    @property
    def is_there(self) -> bool:
        """Whether the last record found its weight in the model."""
        return not self.rows or self.rows[-1].note != GONE


@dataclass
class Recording:
    """``rank`` of the subspaces, ``every`` how many calls one is measured, ``calls`` so far, and a track per site.

    ``columns``: those of the recorder's probe.
    """

    rank: int
    every: int
    tracks: dict[str, Track]
    calls: int = 0
    last: float = -math.inf  # label of the last measured call
    columns: tuple[str, ...] = ()

    def sites_in(self, model: nn.Module) -> tuple[Site, ...]:
        """What is to be read of ``model`` now; without sites of which neither the file nor the model tells how."""
        untold = any(track.layer is None for track in self.tracks.values())
        known = {site.name: site.layer for site in (sites(model) if untold else ())}
        layers = {name: track.layer or known.get(name) for name, track in self.tracks.items()}
        return tuple(Site(name, "", layer, frozenset()) for name, layer in layers.items() if layer is not None)

    def frame(self, eps: float) -> "pd.DataFrame":
        import pandas as pd  # slow to import: only where a table is asked for

        records = [
            {
                "epoch": row.epoch,
                "site": site,
                "m": track.shape[0],
                "n": track.shape[1],
                "groups": track.groups,
                **_ranks(row.weight, eps, ""),
                **_ranks(row.update, eps, "update_"),
                "subspace_rank": min(self.rank, *track.shape),
                "gap": row.gap,
                "left_distance": row.left_distance,
                "right_distance": row.right_distance,
                "note": row.note,
                **{column: row.extra.get(column, math.nan) for column in self.columns},
            }
            for site, track, row in self._rows()
        ]
        kinds = _COLUMNS | dict.fromkeys(self.columns, "float64")
        return pd.DataFrame.from_records(records, columns=[*kinds]).astype(kinds)

    def singular_values(self) -> "pd.DataFrame":
        import pandas as pd

        parts = [
            pd.DataFrame(
                {
                    "epoch": row.epoch,
                    "site": site,
                    "of": of,
                    "index": range(1, len(found) + 1),
                    "value": found.values.numpy(),
                }
            )
            for site, _, row in self._rows()
            for of, found in (("weight", row.weight), ("update", row.update))
            if found is not None
        ]
        kinds = {"epoch": "float64", "site": "str", "of": "str", "index": "int64", "value": "float64"}
        return (pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=[*kinds])).astype(kinds)

    def _rows(self) -> Iterator[tuple[str, Track, Measurement]]:
        """By epoch, then in the order of the sites: the order in which they were measured."""
        rows = [(site, track, row) for site, track in self.tracks.items() for row in track.rows]
        return iter(sorted(rows, key=lambda item: item[2].epoch))

    def save(self, path: Path) -> None:
        tensors: dict[str, Tensor] = {}
        for site, track in self.tracks.items():
            width = min(track.shape)
            tensors |= {
                f"{site}|start": track.start,
                f"{site}|weight": _stack((row.weight for row in track.rows), width),
                f"{site}|update": _stack((row.update for row in track.rows), width),
                f"{site}|numbers": torch.tensor([_numbers(row) for row in track.rows], dtype=torch.float64),
            }
            if self.columns:
                extra = [[row.extra.get(column, math.nan) for column in self.columns] for row in track.rows]
                tensors[f"{site}|extra"] = torch.tensor(extra, dtype=torch.float64)
            if track.before is not None:
                tensors[f"{site}|left"], tensors[f"{site}|right"] = track.before
        facts = _Facts(
            format=_FORMAT,
            rank=self.rank,
            every=self.every,
            calls=self.calls,
            last=self.last if math.isfinite(self.last) else None,
            sites={site: track.kind for site, track in self.tracks.items()},
            notes={site: [row.note for row in track.rows] for site, track in self.tracks.items()},
            layers={site: held for site, track in self.tracks.items() if (held := told(track.layer)) is not None},
        )
        if self.columns:
            facts["columns"] = list(self.columns)
        _FILE.write_to(path, tensors, facts)

    @classmethod
    def load(cls, path: Path) -> "Recording":
        """The inverse of ``save``, exact. ``ValueError`` for a damaged or foreign file, ``OSError`` for none."""
        return _FILE.read(path, _built)


class _Facts(TypedDict):
    format: int
    rank: int
    every: int
    calls: int
    last: int | float | None
    sites: dict[str, str]
    notes: dict[str, list[str]]
    columns: NotRequired[list[str]]
    layers: NotRequired[dict[str, dict[str, Any]]]


_FILE = Kind[_Facts](
    "rankfold.recording", _Facts, "a recording of rankfold", "record again, or take the file of another run"
)


def _built(tensors: dict[str, Tensor], facts: _Facts) -> Recording:
    if facts["format"] != _FORMAT:
        raise ValueError(f"it has format {facts['format']}, and this version reads {_FORMAT}")
    columns = tuple(facts.get("columns", ()))
    tracks = {
        site: _track(
            kind,
            {key: tensors[f"{site}|{key}"] for key in _TENSORS if f"{site}|{key}" in tensors},
            facts["notes"][site],
            columns,
            layer_of(facts.get("layers", {}).get(site)),
        )
        for site, kind in facts["sites"].items()
    }
    last = -math.inf if facts["last"] is None else facts["last"]
    return Recording(facts["rank"], facts["every"], tracks, facts["calls"], last, columns)


_TENSORS = ("start", "weight", "update", "numbers", "extra", "left", "right")


def _track(
    kind: str, tensors: dict[str, Tensor], notes: list[str], columns: tuple[str, ...], layer: Layer | None
) -> Track:
    start = tensors["start"]
    m, n = start.shape[-2:]

    def spectra(key: str) -> list[Spectrum | None]:
        return [None if bool(values.isnan().any()) else Spectrum(values.clone(), (m, n)) for values in tensors[key]]

    extra = tensors["extra"].tolist() if columns else [[]] * len(notes)
    rows = [
        Measurement(epoch, weight, update, gap, left, right, note, dict(zip(columns, more, strict=True)))
        for (epoch, gap, left, right), weight, update, note, more in zip(
            tensors["numbers"].tolist(), spectra("weight"), spectra("update"), notes, extra, strict=True
        )
    ]
    before = (tensors["left"], tensors["right"]) if "left" in tensors else None
    return Track(kind, start, before, rows, layer)


def _numbers(row: Measurement) -> list[float]:
    return [row.epoch, row.gap, row.left_distance, row.right_distance]


def _stack(spectra: Iterable[Spectrum | None], width: int) -> Tensor:
    """(records, width) float64; NaN where there is no spectrum."""
    nothing = torch.full((width,), math.nan, dtype=torch.float64)
    rows = [nothing if found is None else found.values for found in spectra]
    return torch.stack(rows) if rows else nothing.new_empty(0, width)


def _ranks(found: Spectrum | None, eps: float, prefix: str) -> dict[str, Any]:
    if found is None:
        return {}
    return {
        f"{prefix}numerical_rank": found.numerical_rank(eps),
        f"{prefix}stable_rank": found.stable_rank,
        f"{prefix}effective_rank": found.effective_rank,
        f"{prefix}spectral_norm": found.spectral_norm,
        f"{prefix}norm": math.sqrt(found.energy),
    }


_RANKS = {
    "numerical_rank": "Int64",
    "stable_rank": "float64",
    "effective_rank": "float64",
    "spectral_norm": "float64",
    "norm": "float64",
}
_COLUMNS: dict[str, Any] = {
    "epoch": "float64",
    "site": "str",
    "m": "int64",
    "n": "int64",
    "groups": "int64",
    **_RANKS,
    **{f"update_{name}": kind for name, kind in _RANKS.items()},
    "subspace_rank": "int64",
    "gap": "float64",
    "left_distance": "float64",
    "right_distance": "float64",
    "note": "str",
}
