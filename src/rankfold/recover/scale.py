"""How far predictions may lie from the values that are known: not at all, on their scale, or within one range of them.

What is met needs no bound: a matrix that is determined has its large values also where nothing is known. Ratings have a
scale, and no rating lies outside it. What noise or too few entries leave open goes astray where a row has hardly an
entry: it is held within one range of what is known.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from rankfold.recover.estimators.base import Recovery

STEPS = 24  # of a scale at most: 0.5 to 5, 0 to 10 by halves, −10 to 10
OFTEN = 5  # times that a value of a scale comes, on average, at least
MET = 1e-2  # relative error of held-out entries (of those fitted, where none were held out) that counts as met


@dataclass(frozen=True)
class Seen:
    """The least and the largest of the known values; ``scale``: whether they are few and evenly stepped, as ratings."""

    low: float
    high: float
    scale: bool = False

    @classmethod
    def of(cls, parts: Iterable[np.ndarray]) -> Seen:
        """Of all values, some at a time, which are at least one."""
        low, high, count = math.inf, -math.inf, 0
        kinds: np.ndarray | None = np.empty(0)
        for part in parts:
            count += len(part)
            low, high = min(low, float(part.min())), max(high, float(part.max()))
            if kinds is not None:
                kinds = np.union1d(kinds, np.unique(part))
                kinds = kinds if len(kinds) <= STEPS + 1 else None
        return cls(low, high, kinds is not None and count >= OFTEN * len(kinds) and _stepped(kinds))

    def bounds(self, found: Recovery) -> tuple[float, float, str]:
        """(low, high, a sentence) for the predictions of a fitted estimator; the sentence is empty without bounds."""
        missed = found.training_error_ if math.isnan(found.validation_error_) else found.validation_error_
        if found.converged_ and missed <= MET:
            return -math.inf, math.inf, ""
        if self.scale:
            return self.low, self.high, f"predictions are cut to the scale of the values, {self.low:g} to {self.high:g}"
        low, high = 2 * self.low - self.high, 2 * self.high - self.low
        what = "those fitted" if math.isnan(found.validation_error_) else "held-out ones"
        why = f"{what} are missed by {100 * missed:.2g} % of their size"
        if not found.converged_:
            why = "the fit did not converge on them"
        return low, high, f"predictions are cut to {low:.4g} … {high:.4g}, one range beyond the known values, as {why}"


def _stepped(kinds: np.ndarray) -> bool:
    """Whether the distinct values, sorted, are whole steps apart, at most `STEPS` of them in all."""
    if len(kinds) < 2:
        return False
    step = float(np.diff(kinds).min())
    whole = (kinds - kinds[0]) / step
    return bool(whole[-1] <= STEPS + 0.5 and np.allclose(whole, np.round(whole), atol=1e-6))
