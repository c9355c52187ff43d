"""A time that was measured several times: the number that counts, and the quartiles it lies between."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

Key = TypeVar("Key")


class Milliseconds(float):
    """A number with ``quartiles`` (low, high) of what was measured; in sums and files it is the number alone."""

    quartiles: tuple[float, float]

    def __new__(cls, value: float, quartiles: Sequence[float] | None = None) -> Milliseconds:
        made = super().__new__(cls, value)
        made.quartiles = (value, value) if quartiles is None else (float(quartiles[0]), float(quartiles[1]))
        return made

    def shown(self, text: Callable[[float], str] = "{:.3f}".format, unit: str = "") -> str:
        """1.254 (1.201–1.312); ``text`` writes one number, and ``unit`` stands behind the first."""
        low, high = self.quartiles
        return f"{text(self)}{unit} ({text(low)}–{text(high)})"

    def apart(self, other: float) -> bool:
        """Whether it is clearly another time than ``other``."""
        return apart(self, other)

    @classmethod
    def of(cls, measured: Sequence[float], quantile: float = 0.5) -> Milliseconds:
        """One ``quantile`` of what was measured, and the quartiles."""
        low, value, high = np.quantile(measured, (0.25, quantile, 0.75)).tolist()
        return cls(value, (low, high))


def apart(one: float, other: float) -> bool:
    """Whether the quartiles of two times do not overlap, so that they are clearly different; of a number, itself."""
    (low, high), (least, most) = (x.quartiles if isinstance(x, Milliseconds) else (x, x) for x in (one, other))
    return high < least or most < low


def shown(ms: float) -> str:
    """1.254 (1.201–1.312): a time with its quartiles, where they are known."""
    return ms.shown() if isinstance(ms, Milliseconds) else f"{ms:.3f}"


def speed(before: float, after: float) -> str:
    """1.27 times as fast: of two times of the same thing; where their quartiles do not tell them apart, no ratio."""
    return f"{before / after:.2f} times as fast" if apart(before, after) else "no clear difference"


def spreads(times: Mapping[Key, float]) -> dict[Key, tuple[float, float]]:
    """The quartiles of those of which they are known, to be stored beside the numbers."""
    return {key: ms.quartiles for key, ms in times.items() if isinstance(ms, Milliseconds)}


def spread_over(times: Mapping[Key, float], known: Mapping[Key, Sequence[float]]) -> dict[Key, float]:
    """Stored numbers with their quartiles again."""
    return {key: Milliseconds(ms, known[key]) if key in known else ms for key, ms in times.items()}
