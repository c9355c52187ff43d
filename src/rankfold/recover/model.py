"""What is kept of a recovery: two factors with the names of their rows and columns, to predict from and to save."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, Protocol

import numpy as np
import torch
from torch import Tensor
from typing_extensions import TypedDict

from rankfold.linalg.brief import brief
from rankfold.recover.folders import check_factors
from rankfold.recover.measurements.operators import inside
from rankfold.recover.ratings.moments import SPANS, Moments
from rankfold.recover.ratings.spread import Spread
from rankfold.recover.tables.names import name_of, names_of, paired
from rankfold.recover.tables.times import when
from rankfold.run.disk.container import Kind, checked, parsed

FACTORS = "factors.safetensors"
KIND = "rankfold factors"  # in the metadata of their file


class Known(Protocol):
    """Sparse rows, in memory or in files."""

    def __getitem__(self, rows: slice, /) -> Any: ...


@dataclass(frozen=True, eq=False)
class FactorModel:
    """value ≈ clip(offset + left_i · right_j + moment, low, high): left (m + 1, k), right (k, n + 1).

    The last row and the last column stand for those that have no entry: an average one. ``biases``: how many of the
    last columns of ``left`` carry biases and are not counted in the rank. ``moments``: offsets of a row at a time.
    ``spread``: what the uncertainty of predictions comes from; it is not saved.
    """

    left: np.ndarray
    right: np.ndarray
    offset: float
    low: float
    high: float
    row_names: tuple[str, ...]
    column_names: tuple[str, ...]
    biases: int = 0
    moments: Moments | None = None
    spread: Spread | None = None

    __repr__ = brief

    @property
    def rank(self) -> int:
        return int(self.left.shape[1]) - self.biases

    def at(self, rows: np.ndarray, columns: np.ndarray, times: np.ndarray | None = None) -> np.ndarray:
        """Predictions (count,) at pairs of indices; −1 is one that is not known. ``times`` (count,): when. A single
        row, column or time counts for all of the others. Raises ``ValueError`` for numbers that no row or column
        has."""
        rows, columns = paired(rows, columns)
        times = when(times, len(rows))
        at, to = self._known(rows, columns)
        told = self.offset + np.einsum("ij,ij->i", self.left[at], self.right.T[to])
        if times is not None and self.moments is not None:
            told = told + self.moments.at(rows, times)
        return np.clip(told, self.low, self.high)

    def uncertainty(self, rows: np.ndarray, columns: np.ndarray, times: np.ndarray | None = None) -> np.ndarray:
        """(count,): the standard deviation of a value about its prediction: noise, how far draws differ (before they
        are clipped), and how far rows, columns and moments do of which nothing is known. Raises ``ValueError`` for a
        model that was not averaged over draws, or was read from a file."""
        if self.spread is None:
            raise ValueError(
                "the uncertainty of a prediction comes from the draws of the sampler, which are in memory right after "
                "a fit of ratings and in no file: fit again"
            )
        rows, columns = paired(rows, columns)
        times = when(times, len(rows))
        varies = self.spread.variances(*self._known(rows, columns))
        if self.moments is not None:
            varies = varies + self.moments.varying(self.spread.moments, rows, times)
        return np.sqrt(varies + self.spread.noise**2)

    def _known(self, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        inside((len(self.row_names), len(self.column_names)), rows, columns, least=-1)
        return (
            np.where(rows < 0, len(self.row_names), rows),
            np.where(columns < 0, len(self.column_names), columns),
        )

    def predict(self, rows: Any, columns: Any, times: Any = None) -> np.ndarray:
        """Predictions (count,) for pairs of names; unknown ones get the prediction for an average row or column.

        ``rows``, ``columns``: names, or a single one beside all of the others; ``times``: seconds since 1970, or dates.
        Raises ``ValueError`` where there are not as many rows as columns.
        """
        return self.at(*self.indices(rows, columns), times)

    def indices(self, rows: Any, columns: Any) -> tuple[np.ndarray, np.ndarray]:
        """Where pairs of names stand; −1 for those that are not known. A single name goes with all of the others."""
        return paired(_places(rows, self.row_names), _places(columns, self.column_names))

    def top(self, row: Any, count: int, without: Any = ()) -> list[tuple[str, float]]:
        """The ``count`` columns with the largest predictions for ``row``, a name, except those that are ``without``:
        whole numbers are their places among ``column_names``, all else are names.

        Nothing is known here of what the row has entries for: give that as ``without``. An unknown row is answered as
        an average one, with a warning. Raises ``ValueError`` for a column that is not there, and a ``count`` below 1.
        """
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        places = _places(row, self.row_names)
        if len(places) != 1:
            raise ValueError(f"the best columns are those of one row, got {len(places)} names: ask for each by itself")
        at = int(places[0])
        if at < 0:
            warnings.warn(
                f"row {names_of(row)[0]!r} is not among the {len(self.row_names)} that were fitted: these are the best "
                "columns of an average one",
                stacklevel=2,
            )
        columns = np.arange(len(self.column_names))
        # unclipped: many predictions may lie at the upper end
        told = self.offset + self.left[at] @ self.right[:, :-1]
        told[self._without(without)] = -np.inf
        best = columns[np.argsort(-told, kind="stable")[:count]]
        return [(self.column_names[j], float(np.clip(told[j], self.low, self.high))) for j in best if told[j] > -np.inf]

    def _without(self, given: Any) -> np.ndarray:
        """The numbers of columns that are ``given`` by number or by name."""
        some = list(given) if np.iterable(given) and not isinstance(given, str | bytes) else [given]
        array = np.asarray(some)
        found = array.astype(np.int64) if array.dtype.kind in "iu" else _places(some, self.column_names)
        wrong = np.flatnonzero((found < 0) | (found >= len(self.column_names)))
        if len(wrong):
            raise ValueError(
                f"column {name_of(some[wrong[0]])!r}, to be left out, is not among the {len(self.column_names)} that "
                "were fitted: give names, or numbers from 0"
            )
        return found

    def best(self, count: int, known: Known) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """(row, its ``count`` best columns, predictions) for every row, without the columns that are ``known`` of it:
        sparse rows for a slice of them.

        Cost O(m n k) in blocks of 16 MB.
        """
        step = max(1, (1 << 21) // len(self.column_names))
        for start in range(0, len(self.row_names), step):
            block = known[start : min(start + step, len(self.row_names))]
            # unclipped: many predictions may lie at the upper end
            told = self.offset + self.left[start : start + block.shape[0]] @ self.right[:, :-1]
            told[np.repeat(np.arange(block.shape[0]), np.diff(block.indptr)), block.indices] = -np.inf
            for number, at in enumerate(largest(told, count)):
                at = at[np.isfinite(told[number, at])]
                yield start + number, at, np.clip(told[number, at], self.low, self.high)

    def to_bytes(self) -> bytes:
        """A safetensors file; the names and the range are in its header."""
        about = _About(
            kind=KIND,
            offset=repr(self.offset),
            low=repr(self.low),
            high=repr(self.high),
            rows=json.dumps(self.row_names, ensure_ascii=False),
            columns=json.dumps(self.column_names, ensure_ascii=False),
            biases=str(self.biases),
        )
        tensors = {"left": torch.tensor(self.left), "right": torch.tensor(self.right)}
        if self.moments is not None:
            for number, (keys, offsets) in enumerate(zip(self.moments.keys, self.moments.offsets, strict=True)):
                tensors |= {f"moment_keys.{number}": torch.tensor(keys), f"moments.{number}": torch.tensor(offsets)}
        return _FILE.write(tensors, about)

    @staticmethod
    def from_bytes(data: bytes, name: str = "") -> FactorModel:
        """The model of `to_bytes`. Raises ``ValueError``, which names the file if ``name`` does, for anything else."""
        return _FILE.read(data, _built, name)


def load(directory: str | Path) -> FactorModel:
    """What ``rankfold recover`` left in a ``directory`` (or its ``factors.safetensors``): a model that predicts for
    names.

    Uncertainties are not stored. Raises ``ValueError`` for a file that is damaged or none of these, such as factors of
    measurements, which have no names, for a ranking of implicit feedback, which keeps no model, and
    ``FileNotFoundError`` where there is none: with what reads the folder, where that is known.

    Example:
        >>> found, _, _ = rf.recover.fit(rf.recover.triplets(["a", "a", "b"], ["x", "y", "x"], [1, 2, 3]),
        ...     rf.recover.Choice("low-rank", 1))
        >>> from pathlib import Path
        >>> _ = Path("factors.safetensors").write_bytes(found.to_bytes())
        >>> rf.recover.load(".").predict(["b"], ["x"]).round(2).tolist()
        [3.0]
    """
    file = Path(directory)
    if file.is_dir():
        check_factors(file, FACTORS)
        file = file / FACTORS
    return FactorModel.from_bytes(file.read_bytes(), str(file))


def _places(given: Any, names: Sequence[str]) -> np.ndarray:
    """Where each of the ``given`` names stands among ``names``; −1 for one that does not."""
    at = {name: index for index, name in enumerate(names)}
    return np.array([at.get(name, -1) for name in names_of(given)], dtype=np.int64)


class _About(TypedDict):
    kind: str
    offset: str
    low: str
    high: str
    rows: str
    columns: str
    biases: NotRequired[str]  # not in files of the first release


_FILE = Kind[_About]("", _About, "factors saved by rankfold recover", "recover them again")


def _built(tensors: Mapping[str, Tensor], about: _About) -> FactorModel:
    rows, columns = (checked(tuple[str, ...], parsed(about[axis])) for axis in ("rows", "columns"))
    left, right = (tensors[side].numpy() for side in ("left", "right"))
    if left.ndim != 2 or right.ndim != 2 or left.shape[1] != right.shape[0]:
        raise ValueError(f"left of shape {left.shape} and right of shape {right.shape} are not factors of one matrix")
    if (left.shape[0], right.shape[1]) != (len(rows) + 1, len(columns) + 1):
        raise ValueError(
            f"the factors are of a {left.shape[0]} × {right.shape[1]} matrix, and there are {len(rows)} and "
            f"{len(columns)} names"
        )
    biases = int(about.get("biases", "0"))
    if not 0 <= biases <= left.shape[1]:
        raise ValueError(f"the factors have {left.shape[1]} columns, of which {biases} cannot be biases")
    moments = _moments(tensors)
    offset, low, high = (float(about[name]) for name in ("offset", "low", "high"))
    return FactorModel(left, right, offset, low, high, rows, columns, biases, moments)


def _moments(tensors: Mapping[str, Tensor]) -> Moments | None:
    levels = [number for number in range(len(SPANS)) if f"moments.{number}" in tensors]
    if len(levels) < len(SPANS):
        return None
    return Moments(
        tuple(tensors[f"moment_keys.{number}"].numpy() for number in levels),
        tuple(tensors[f"moments.{number}"].numpy() for number in levels),
    )


def largest(scores: np.ndarray, count: int) -> np.ndarray:
    """(rows, ≤ count): where the largest numbers of each row stand, the largest first, of equal ones the leftmost."""
    size = scores.shape[1]
    count = min(count, size)
    if count < size // 4:
        least = np.partition(scores, size - count, axis=1)[:, size - count, None]
        chosen = scores >= least
        many = np.flatnonzero(np.count_nonzero(chosen, axis=1) > count)  # rows without room for all of the least
        if len(many):
            above, level = scores[many] > least[many], scores[many] == least[many]
            room = count - np.count_nonzero(above, axis=1, keepdims=True)
            chosen[many] = above | (level & (level.cumsum(axis=1) <= room))
        some = np.nonzero(chosen)[1].reshape(len(scores), count)
    else:
        some = np.broadcast_to(np.arange(size), scores.shape)
    order = np.argsort(-np.take_along_axis(scores, some, 1), axis=1, kind="stable")[:, :count]
    return np.take_along_axis(some, order, 1)
