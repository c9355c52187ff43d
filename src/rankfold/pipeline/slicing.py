"""Slicing a saved network: from one artifact to any smaller budget, without data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rankfold.compress.ranks.budget import Budget
from rankfold.compress.slicing.narrowed import SliceError
from rankfold.compress.slicing.narrowed import slice_ as narrow_
from rankfold.compress.slicing.slicing import plan_slice
from rankfold.run.ordinary import ordinarily
from rankfold.sites.earlier import warn_of_replaced
from rankfold.store import Stored


@ordinarily
def slice_(stored: Stored, budget: str | Budget | Sequence[str | Budget], *, example: Any = None) -> Stored:
    """Make the model of ``stored`` narrower inside its bottlenecks, in place, until it is within ``budget``.

    Nothing is trained and nothing is run: predictions are those of each layer alone, on the data that the bottlenecks
    were measured on.

    Args:
        stored: from ``rankfold.load``, saved with bottlenecks.
        budget: as in ``rankfold.plan``: fractions of the *original* network, several at once; not latency.
        example: one input of the model, needed only where the plan was edited after its FLOPs were counted.

    Returns:
        A ``Stored`` with the same model object, the plan with the new ranks and what they are predicted to cost, and
        the bottlenecks that the model then has, so that it can be saved and sliced again.

    Raises:
        SliceError: no network with bottlenecks, those of other weights, or nothing to slice.
        BudgetError: the budget cannot be met. Both come before the first change.

    Cost: one singular value decomposition for each bottleneck, and the new factors.

    Example:
        >>> net, x = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)), torch.randn(64, 16)
        >>> plan = rf.plan(net, "params=0.7", data=x)
        >>> small = rf.apply_(net, plan)
        >>> stored = rf.Stored(small, plan, {}, rf.bottlenecks(small, x))
        >>> rf.slice_(stored, "params=0.5").plan.after.params <= 0.5 * plan.before.params
        True
    """
    if not isinstance(stored, Stored):
        raise SliceError(
            f"slice_ needs a network with its bottlenecks, such as rankfold.load(DIR) reads, got a "
            f"{type(stored).__name__}"
        )
    if stored.bottlenecks is None:
        raise SliceError(
            "this network was saved without its bottlenecks, so that it cannot be narrowed yet: measure them on "
            "a few hundred samples, rankfold.bottlenecks(model, data), and save again with bottlenecks="
        )
    made = plan_slice(stored.model, stored.plan, stored.bottlenecks, budget, example=example)
    before = dict(stored.model.named_parameters())
    known = narrow_(stored.model, stored.plan, stored.bottlenecks, made)
    warn_of_replaced(before, stored.model, "slice_")
    return Stored(stored.model, made, stored.notes, known)
