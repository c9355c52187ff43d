"""Objects of one's own are held to their laws where they are used: one line says what was expected and what was given.

``rankfold.testing`` checks the same and more, for whoever writes one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rankfold.compress.methods.method import Decomposition, Method
from rankfold.compress.ranks.budget import Resource
from rankfold.compress.ranks.options import Costs, Option
from rankfold.costs import Cost
from rankfold.sites import Form, Site

if TYPE_CHECKING:
    pass

_SLACK = 1e-9  # of a limit: sums of floats
_FLOORED = 0.01  # of a budget: FLOPs are rounded for each layer


class LawError(ValueError):
    """A method, rule or budget of one's own breaks one of its laws."""


def check_decomposition(method: Method, site: Site, form: Form, made: Decomposition) -> None:
    """``LawError`` for errors, levels or ranks that do not fit one another."""

    def need(holds: bool, what: str) -> None:
        if not holds:
            raise LawError(f"{site.title}: the decomposition of method {method.name!r} for {form}: {what}")

    errors, levels, ranks = made.errors, made.levels, list(made.ranks)
    numbers = isinstance(errors, Tensor) and errors.dtype == torch.float64 and errors.dim() == 1 and len(errors) > 0
    need(numbers, f"errors (k + 1,) in float64 were expected, got {_said(errors)}")
    need(bool((errors >= 0).all()), "errors of at least 0 were expected, and one is negative or NaN")
    k = len(errors) - 1
    fits = isinstance(levels, Tensor) and tuple(levels.shape) == (k,)
    need(fits, f"levels ({k},) were expected beside {k + 1} errors, got {_said(levels)}")
    inside = all(isinstance(rank, int) and form.least <= rank <= k for rank in ranks) and ranks == sorted(set(ranks))
    need(inside, f"ascending ranks from {form.least} to {k} were expected, got {listed(ranks)}")


def check_picked(
    rule: str, picked: Any, choices: Mapping[str, Sequence[Option]], limits: Costs, names: Sequence[str]
) -> dict[str, Option]:
    """What a rule chose; ``LawError`` for other sites or options than were offered, or for more than the budget."""
    if not isinstance(picked, Mapping) or picked.keys() != choices.keys():
        given = listed(sorted(map(str, picked))) if isinstance(picked, Mapping) else type(picked).__name__
        raise LawError(
            f"rule {rule!r}: its choose must return one option for each of the {len(choices)} layers, and returned "
            f"{given}"
        )
    for site, option in picked.items():
        if option not in choices[site]:
            raise LawError(
                f"rule {rule!r}: its choose must return one of the {len(choices[site])} options offered for {site}"
            )
    for axis, limit in enumerate(limits):
        spent = sum(option.costs[axis] for option in picked.values())
        if spent > limit + _SLACK * max(abs(limit), 1.0):
            raise LawError(
                f"rule {rule!r}: {names[axis]} leaves {limit:.6g} for the layers, and what it chose costs {spent:.6g}"
            )
    return dict(picked)


def check_summed(asked: Sequence[Resource], before: Cost, after: Cost) -> None:
    """``LawError`` for a budget that is no sum over the layers: then a plan within its limits is beyond it."""
    for budget in asked:
        whole, now = budget.of(before), budget.of(after)
        if not now <= (budget.keep + _FLOORED) * whole:
            raise LawError(
                f"budget {budget.describe()}: the plan takes {now:.6g} of {whole:.6g}, although its layers are "
                f"within the budget: {type(budget).__name__}.of must be a sum over layers, as parameters are"
            )


def _said(value: Any) -> str:
    return f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__


def listed(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values[:6])) + (", …" if len(values) > 6 else "") if values else "none"
