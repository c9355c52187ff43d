"""Milliseconds of one layer in one form, by its rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rankfold.forms import Form

FASTER = 0.95  # of the dense time: what is above is not measurably faster


@dataclass(frozen=True)
class Curve:
    """Milliseconds of one layer in one form: as it is (``dense``), and at some ``ranks``; none for the dense form."""

    dense: float
    ranks: tuple[int, ...] = ()
    times: tuple[float, ...] = ()

    def at(self, rank: int) -> float:
        """Between the ranks that were timed by interpolation; what is not measurably faster costs the dense time."""
        if not self.ranks:
            return self.dense
        time = float(np.interp(rank, self.ranks, self.times))
        if rank > self.ranks[-1]:  # the factors have more work to do than the dense layer
            time *= rank / max(1, self.ranks[-1])
        return time if time < FASTER * self.dense else max(time, self.dense)

    def times_calls(self, calls: float) -> Curve:
        """Of so many calls alike."""
        return Curve(calls * self.dense, self.ranks, tuple(calls * time for time in self.times))


def curves(dense: float, times: Mapping[tuple[Form, int], float]) -> dict[Form, Curve]:
    """A curve for each form from its times by rank, made to rise with the rank, and one for the layer as it is."""
    from sklearn.isotonic import isotonic_regression  # heavy, and few commands time layers

    found = {Form.KEEP: Curve(dense)}
    for form in sorted({form for form, _ in times}):
        ranks: Sequence[int] = sorted(rank for other, rank in times if other is form)
        rising = isotonic_regression([times[form, rank] for rank in ranks])
        found[form] = Curve(dense, tuple(ranks), tuple(map(float, rising)))
    return found
