"""How many directions of each layer stay when a window closes: by a tolerance, or within a budget that all share."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from math import isfinite

from torch import Tensor, nn

from rankfold.induce.places import numbers_within
from rankfold.layers import DynamicLowRank
from rankfold.linalg.manifold.tangent import rank_within, ranks_within

Layers = Collection[DynamicLowRank]
TOLERANCE = 0.1


@dataclass
class Cut:
    """``budget``: numbers that all layers may take when factored, or None. Reached over ``reach`` windows, of which
    ``closed`` have ended, from the ``first`` numbers, those before any base has grown: where training was to begin
    small, it never is large."""

    tolerance: float
    budget: int | None
    reach: int
    most: int | None
    closed: int = 0
    first: int = 0

    @classmethod
    def of(
        cls,
        model: nn.Module,
        layers: Layers,
        tolerance: float | None,
        budget: float | None,
        reach: int,
        most: int | None,
    ) -> Cut:
        """``budget`` as a share of the parameters of the dense network. ``ValueError`` for what is out of range, for
        both of them, and for a budget below rank 1 in every layer."""
        check_one_of(tolerance, budget=budget)
        tolerance = TOLERANCE if tolerance is None else tolerance
        if not (isfinite(tolerance) and 0 <= tolerance < 1):
            raise ValueError(
                f"tolerance, a share of the layer's norm, must be at least 0 and below 1, got {tolerance!r}"
            )
        if budget is not None and not 0 < budget <= 1:
            raise ValueError(
                f"budget, a share of the dense network's parameters, must be above 0 and at most 1, got {budget!r}"
            )
        for name, value, least in (("reach", reach, 0), ("most", most, 1)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
        within = None if budget is None else numbers_within(model, budget)
        return cls(tolerance, within, reach, most, first=_taken(layers))

    def within_tolerance(self, spectra: Collection[Tensor]) -> list[int]:
        """The rank of each layer at the end of a window, from the sizes of its directions there: of a matrix the
        singular values."""
        return [rank_within(values, self.tolerance, self.most) for values in spectra]

    def within_budget(self, layers: Layers, worth: Collection[Tensor], still: int = 0) -> list[int]:
        """The rank of each layer at the end of a window: together they stay within the size that is due by then, for
        which directions compete by what they are ``worth``. ``still``: numbers of the layers that are frozen."""
        assert self.budget is not None
        left = max(0.0, 1 - self.closed / self.reach) if self.reach else 0.0
        size = int(self.budget * max(1.0, self.first / self.budget) ** left)
        return ranks_within(
            [values[: self.most].cpu() for values in worth], [x.numbers_at for x in layers], size - still
        )

    def met(self, layers: Layers) -> bool:
        return self.budget is None or _taken(layers) <= self.budget

    def lacking(self, layers: Layers, factors: bool) -> str:
        """A sentence where the layers are not within the budget, or ``factors`` were to be trained by themselves and
        that has not begun, with what leads there; else empty."""
        if self.budget is not None and not self.met(layers):
            what = (
                f"the budget was not reached: the layers take {_taken(layers):,} numbers where {self.budget:,} were "
                "asked for"
            )
        elif factors and self.closed < self.reach:
            what = "training in factors, which factors=True asks for, has not begun"
        else:
            return ""
        half = self.closed // 2
        how = f" (reach={half} leaves half of this training to the ranks asked for)" if half else ""
        return (
            f"{what}, since {self.closed} of reach={self.reach} windows have closed: train longer, or give a smaller "
            f"reach= or window={how}"
        )


def check_one_of(tolerance: float | None, **size: float | None) -> None:
    """``ValueError`` where ranks are to follow a tolerance and a size, of which one alone decides."""
    for name, value in size.items():
        if value is not None and tolerance is not None:
            raise ValueError(f"{name}={value!r} and tolerance={tolerance!r} are two ways to choose ranks: give one")


def _taken(layers: Layers) -> int:
    return sum(layer.numbers for layer in layers)
