"""How large an adapter may be, or how far off, and the ranks that follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from rankfold.compress.ranks.allocate import optimal
from rankfold.compress.ranks.options import BudgetError, Option
from rankfold.sites import Form


@dataclass(frozen=True)
class Asked:
    """``rank``: of each layer, at most; ``params``: numbers of the adapter, as a fraction of the model's up to 1, as a
    count above; ``error``: at most this relative error of all updates together. What is given must hold at once."""

    rank: int | None = None
    params: float | None = None
    error: float | None = None

    def __str__(self) -> str:
        told = (("rank", self.rank), ("params", self.params), ("error", self.error))
        return ", ".join(f"{name}={value:g}" for name, value in told if value is not None)

    def limit(self, model: int) -> int | None:
        """The numbers that the adapter may have, of a model with so many."""
        return None if self.params is None else int(self.params * model if self.params <= 1 else self.params)


def asked(budget: str | Asked | Sequence[str]) -> Asked:
    """``rank=16``, ``params=0.1`` or ``params=50000``, ``error=0.1``, or several of them; ``ValueError`` otherwise."""
    if isinstance(budget, Asked):
        return budget
    found: dict[str, float] = {}
    for text in [budget] if isinstance(budget, str) else budget:
        name, _, value = text.partition("=")
        try:
            number = float(value)
            if name not in ("rank", "params", "error") or not 0 < number < float("inf"):
                raise ValueError
            if (name == "rank" or number > 1) and number != int(number):
                raise ValueError
            if name == "error" and number >= 1:
                raise ValueError
        except ValueError:
            raise ValueError(
                f"budget {text!r} is not understood: write rank=16 (of each layer), params=0.1 (a share of the "
                "model, or a count if above 1) or error=0.1 (of all updates together, relative to them, below 1)"
            ) from None
        if name in found:
            raise ValueError(f"budget {text!r}: {name} was given before: give it once")
        found[name] = number
    if not found:
        raise ValueError("no budget was given: give one, such as rank=16, params=0.1 or error=0.1")
    return Asked(int(found["rank"]) if "rank" in found else None, found.get("params"), found.get("error"))


def room(limit: int | None, whole: int, smallest: int) -> int | None:
    """The numbers that are left for ranks beside ``whole`` ones; ``BudgetError`` where ``smallest``, the price of the
    cheapest rank, does not fit beside them."""
    if limit is None or not whole:
        return limit
    if limit - whole < smallest:
        raise BudgetError(
            f"what is stored whole takes {whole:,} of the {limit:,} numbers allowed, and rank 1 of the smallest layer "
            f"{smallest:,}: allow at least {whole + smallest:,} numbers (params=), or store fewer modules whole"
        )
    return limit - whole


@dataclass(frozen=True)
class Curve:
    """One update: its squared error at each rank 0 … k, what a rank costs, and whether higher ranks would say more."""

    losses: Tensor
    price: int
    ends: bool


def ranks(curves: Mapping[str, Curve], wanted: Asked, limit: int | None) -> dict[str, int]:
    """The rank of each update: least error within ``rank`` and ``limit`` numbers, or fewest numbers within ``error``.

    Optimal among all choices (a multiple-choice knapsack). ``BudgetError`` where none fits; where a curve ends too
    early to know, its last rank is given.
    """
    tops = {name: _top(curve, wanted.rank) for name, curve in curves.items()}
    if wanted.error is not None:
        return _within_error(curves, tops, wanted, limit)
    if limit is None:
        return tops
    least = min((curve.price for curve in curves.values()), default=0)
    if limit < least:
        raise BudgetError(
            f"{limit:,} numbers are too few for rank 1 in any layer, of which the smallest takes {least:,}: allow "
            "more (params=)"
        )
    options = {
        name: [
            Option(Form.FACTORED, r, float(curve.losses[r]), (float(r * curve.price),)) for r in range(tops[name] + 1)
        ]
        for name, curve in curves.items()
    }
    return {name: option.rank for name, option in optimal(options, (float(limit),)).items()}


def _top(curve: Curve, cap: int | None) -> int:
    most = len(curve.losses) - 1
    return most if cap is None else min(cap, most)


def _within_error(
    curves: Mapping[str, Curve], tops: Mapping[str, int], wanted: Asked, limit: int | None
) -> dict[str, int]:
    assert wanted.error is not None
    allowed = wanted.error**2 * sum(float(curve.losses[0]) for curve in curves.values())
    least = sum(float(curve.losses[tops[name]]) for name, curve in curves.items())
    if least > allowed:
        unknown = [name for name, curve in curves.items() if not curve.ends and tops[name] == len(curve.losses) - 1]
        if unknown:
            return dict(tops)
        reached = (least / max(float(sum(c.losses[0] for c in curves.values())), 1e-300)) ** 0.5
        if wanted.rank is None:
            raise BudgetError(
                f"error={wanted.error:g} cannot be told from the rounding of the weights, which alone leaves "
                f"{reached:.3g}: allow a larger error"
            )
        raise BudgetError(
            f"error={wanted.error:g} cannot be reached at rank {wanted.rank}, where the error is {reached:.3g}: "
            "allow a larger error or a higher rank"
        )
    # the same knapsack with loss and cost exchanged; the steps go from the largest rank down
    options = {
        name: [
            Option(Form.FACTORED, tops[name] - r, float(r * curve.price), (float(curve.losses[r]),))
            for r in range(tops[name] + 1)
        ]
        for name, curve in curves.items()
    }
    found = {name: tops[name] - option.rank for name, option in optimal(options, (allowed,)).items()}
    needed = sum(r * curves[name].price for name, r in found.items())
    if limit is not None and needed > limit:
        raise BudgetError(
            f"error={wanted.error:g} takes {needed:,} numbers, and {limit:,} are allowed: allow more numbers "
            "(params=) or a larger error"
        )
    return found
