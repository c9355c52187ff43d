"""What a rating owes to its moment: a row's day, its five minutes, its second, each with an offset of its own.

Somebody who sits down to rate is in one mood, and what is rated in one second is often one page of a list. Offsets are
normal around zero with a width of each level that is drawn too, so that a level that says nothing costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

SPANS = (86_400.0, 300.0, 1.0)  # seconds
_BITS = 36  # of the number of a span: seconds of 2,000 years


@dataclass(frozen=True, eq=False)
class Moments:
    """For each span its ``keys`` (sorted: row and number of the span) and their mean offsets."""

    keys: tuple[np.ndarray, ...]
    offsets: tuple[np.ndarray, ...]

    def at(self, rows: np.ndarray, times: np.ndarray) -> np.ndarray:
        """(count,): the sum of the offsets; of rows and moments that are not known zero."""
        found = np.zeros(len(rows))
        for at, offsets in zip(self._places(rows, times), self.offsets, strict=True):
            found += np.append(offsets, 0.0)[at]
        return found

    def varying(self, variances: tuple[np.ndarray, ...], rows: np.ndarray, times: np.ndarray | None) -> np.ndarray:
        """(count,): by how much the offsets there vary, by the ``variances`` of those that are known, for each span,
        and last in each of one that is not; without ``times`` none is known."""
        unknown = np.full(len(rows), -1)
        places = [unknown] * len(SPANS) if times is None else list(self._places(rows, times))
        found = np.zeros(len(rows))
        for at, known in zip(places, variances, strict=True):
            found += known[at]
        return found

    def _places(self, rows: np.ndarray, times: np.ndarray) -> Iterator[np.ndarray]:
        """For each span which key each row and time has; −1 for one that is not known."""
        for span, keys in zip(SPANS, self.keys, strict=True):
            wanted = numbered(rows, times, span)
            near = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
            yield np.where((keys[near] == wanted) & (rows >= 0), near, -1)


def numbered(rows: np.ndarray, times: np.ndarray, span: float) -> np.ndarray:
    """One whole number for each row and span of time."""
    number = np.floor(np.where(np.isfinite(times), times, -(2.0**34)) / span).astype(np.int64) + (1 << (_BITS - 1))
    return (rows.astype(np.int64) << _BITS) + number


class Level:
    """The offsets of one span while sampling; all zero where no two entries share one, which noise explains as well."""

    def __init__(self, rows: np.ndarray, times: np.ndarray, span: float) -> None:
        self.keys, self.of = np.unique(numbered(rows, times, span), return_inverse=True)
        self.counts = np.bincount(self.of)
        self.shared = bool(self.counts.max() > 1)
        self.offsets, self.total, self.squares = np.zeros((3, len(self.keys)))
        self.precision, self.wide = 10.0, 0.0

    def resample(self, rest: np.ndarray, precision: float, rng: np.random.Generator) -> np.ndarray:
        """New offsets for what ``rest`` (count,) leaves without them; their value for each entry."""
        if not self.shared:
            return self.offsets[self.of]
        sums = np.bincount(self.of, rest, minlength=len(self.keys))
        weight = precision * self.counts + self.precision
        self.offsets = precision * sums / weight + rng.standard_normal(len(sums)) / np.sqrt(weight)
        squares = float(self.offsets @ self.offsets)
        self.precision = float(rng.gamma(1.0 + 0.5 * len(sums), 1.0 / (0.05 + 0.5 * squares)))
        return self.offsets[self.of]

    def keep(self, share: float) -> None:
        """Count the present draw for this ``share`` of all."""
        self.total += share * self.offsets
        self.squares += share * self.offsets**2
        self.wide += share / self.precision if self.shared else 0.0

    @property
    def variances(self) -> np.ndarray:
        """(keys + 1,): of each offset over the draws, and last of one that is not known."""
        return np.append(np.maximum(self.squares - self.total**2, 0.0), self.wide)
