"""A law of the time of linear layers, from those that were timed: milliseconds = a + b·weights + c·(m + n + rank).

One triple of a, b, c ≥ 0 for each number of rows, by least squares of relative errors; between numbers of rows the
time is interpolated in logarithms. How far off it is, is measured: each shape is predicted from all others.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import exp, log
from typing import NamedTuple

import numpy as np

_SHAPES = 3  # that must have been timed at a number of rows, for three numbers to follow


class Point(NamedTuple):
    """One layer that was timed: (m, n) of the dense one, numbers in it, sum of its widths."""

    rows: int
    shape: tuple[int, int]
    weights: int
    widths: int
    ms: float


@dataclass(frozen=True)
class Law:
    """``numbers``: a, b, c by the number of rows. ``least``, ``most``: weights of the dense layers that were timed
    there; ``narrowest``, ``widest``: their m and n. ``error``, ``worst``: relative errors of shapes predicted from the
    others, the median and the ninth decile."""

    numbers: dict[int, tuple[float, float, float]]
    least: dict[int, int]
    most: dict[int, int]
    narrowest: int
    widest: int
    error: float
    worst: float

    def covers(self, rows: int, shape: tuple[int, int]) -> bool:
        """Whether layers as large, with as many rows, were timed on either side."""
        near, size = self._near(rows), shape[0] * shape[1]
        if not self.narrowest <= min(shape) <= max(shape) <= self.widest:
            return False
        return bool(near) and all(self.least[one] <= size <= self.most[one] for one in near)

    def at(self, rows: int, weights: int, widths: int) -> float:
        """Milliseconds of a layer of so many numbers, whose widths have this sum; ``rows`` must be covered."""
        near = self._near(rows)
        times = [log(_time(self.numbers[one], weights, widths)) for one in near]
        return exp(float(np.interp(log(rows), [log(one) for one in near], times)))

    def _near(self, rows: int) -> list[int]:
        """The numbers of rows on either side; one where it was itself timed, none outside."""
        known = sorted(self.numbers)
        if rows in self.numbers:
            return [rows]
        place = bisect_left(known, rows)
        return known[place - 1 : place + 1] if 0 < place < len(known) else []


def law_of(points: Iterable[Point]) -> Law | None:
    """The law of these layers, all in one form and arithmetic; None where too few sizes were timed."""
    groups = defaultdict[int, list[Point]](list)
    for point in points:
        groups[point.rows].append(point)
    groups = defaultdict(list, {rows: g for rows, g in groups.items() if len({p.shape for p in g}) >= _SHAPES})
    errors = [abs(_time(numbers, p.weights, p.widths) / p.ms - 1) for g in groups.values() for numbers, p in _apart(g)]
    if not errors:
        return None
    sizes = {rows: [p.shape[0] * p.shape[1] for p in group] for rows, group in groups.items()}
    widths = [width for group in groups.values() for p in group for width in p.shape]
    return Law(
        {rows: _fitted(group) for rows, group in groups.items()},
        {rows: min(found) for rows, found in sizes.items()},
        {rows: max(found) for rows, found in sizes.items()},
        min(widths), max(widths), float(np.median(errors)), float(np.quantile(errors, 0.9)),
    )  # fmt: skip


def _apart(group: Sequence[Point]) -> Iterable[tuple[tuple[float, float, float], Point]]:
    """Every point with the law of the other shapes; not of the smallest and largest, beyond which nothing is asked."""
    sizes = {point.shape: point.shape[0] * point.shape[1] for point in group}
    inside = [shape for shape, size in sizes.items() if min(sizes.values()) < size < max(sizes.values())]
    for shape in inside:
        numbers = _fitted([point for point in group if point.shape != shape])
        yield from ((numbers, point) for point in group if point.shape == shape)


def _fitted(group: Sequence[Point]) -> tuple[float, float, float]:
    from scipy.optimize import nnls  # heavy, and few commands need a law

    ms = np.array([point.ms for point in group])
    columns = np.array([[1.0, point.weights, point.widths] for point in group])
    scale = columns.max(axis=0)
    found = nnls(columns / scale / ms[:, None], np.ones(len(group)))[0] / scale
    return float(found[0]), float(found[1]), float(found[2])


def _time(numbers: tuple[float, float, float], weights: int, widths: int) -> float:
    return max(numbers[0] + numbers[1] * weights + numbers[2] * widths, 1e-9)
