"""What a rating owes to its moment: a row's day, its five minutes, its second, each with an offset of its own.

Somebody who sits down to rate is in one mood, and what is rated in one second is often one page of a list. Offsets are
normal around zero with a width of each level that is drawn too, so that a level that says nothing costs nothing.
"""

from __future__ import annotations

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
        for span, keys, offsets in zip(SPANS, self.keys, self.offsets, strict=True):
            wanted = numbered(rows, times, span)
            at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
            found += np.where((keys[at] == wanted) & (rows >= 0), offsets[at], 0.0)
        return found


def numbered(rows: np.ndarray, times: np.ndarray, span: float) -> np.ndarray:
    """One whole number for each row and span of time."""
    number = np.floor(np.where(np.isfinite(times), times, -(2.0**34)) / span).astype(np.int64) + (1 << (_BITS - 1))
    return (rows.astype(np.int64) << _BITS) + number


class Level:
    """The offsets of one span while sampling."""

    def __init__(self, rows: np.ndarray, times: np.ndarray, span: float) -> None:
        self.keys, self.of = np.unique(numbered(rows, times, span), return_inverse=True)
        self.counts = np.bincount(self.of)
        self.offsets, self.total = np.zeros(len(self.keys)), np.zeros(len(self.keys))
        self.precision = 10.0

    def resample(self, rest: np.ndarray, precision: float, rng: np.random.Generator) -> np.ndarray:
        """New offsets for what ``rest`` (count,) leaves without them; their value for each entry."""
        sums = np.bincount(self.of, rest, minlength=len(self.keys))
        weight = precision * self.counts + self.precision
        self.offsets = precision * sums / weight + rng.standard_normal(len(sums)) / np.sqrt(weight)
        squares = float(self.offsets @ self.offsets)
        self.precision = float(rng.gamma(1.0 + 0.5 * len(sums), 1.0 / (0.05 + 0.5 * squares)))
        return self.offsets[self.of]
