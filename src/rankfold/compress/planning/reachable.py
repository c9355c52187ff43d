"""Whether any plan can meet a budget: what layers cost at their smallest ranks is known before anything is measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rankfold.compress.planning.candidates import Candidate, forms_by
from rankfold.compress.planning.decide import check_asked, check_reachable
from rankfold.compress.planning.profile import Profile
from rankfold.compress.ranks.budget import Budget, KeepEnergy, Latency, Multiples, OfSites, Ranks
from rankfold.compress.ranks.options import BudgetError
from rankfold.compress.ranks.rules import RankRule
from rankfold.sites import Factors


def refused_early(
    budgets: Sequence[Budget], rule: RankRule, searched: Sequence[Budget] = ()
) -> Callable[[Profile], None]:
    """What raises ``BudgetError`` for a profile, counted and not measured yet, of which no plan is within ``budgets``,
    and ``ValueError`` for what cannot be asked of it. ``searched``: a budget beside those, whose fraction is searched.

    What layers take time is measured, and so not known; nor is what an energy asks for, without which the advice of
    the error would lead to the next one.
    """

    def check(known: Profile) -> None:
        check_asked((*budgets, *searched), rule, known)
        if not all(isinstance(each, Multiples | OfSites) for each in told) and not any(
            isinstance(each, KeepEnergy) for each in told
        ):
            _check(told, rule, known)

    told = tuple(each for each in budgets if not isinstance(each, Latency))
    return check


def _check(budgets: tuple[Budget, ...], rule: RankRule, known: Profile) -> None:
    if known.sites.joint:  # what they share is found by decomposing
        return
    every = any(isinstance(each, Multiples | Ranks) for each in budgets)  # else the smallest rank is the cheapest
    bare = replace(known, candidates=_smallest(known, every, biases=False))
    try:
        check_reachable(bare, budgets, rule)
    except BudgetError:
        if known.method.needs_data:  # which may add biases: advice must hold with them
            check_reachable(replace(known, candidates=_smallest(known, every, biases=True)), budgets, rule)
        raise


def _smallest(known: Profile, every: bool, biases: bool) -> dict[str, list[Candidate]]:
    return {
        site.name: [
            Candidate(
                site, form, _Free(form.max_rank(site.layer), form.least, every), site.layer.has_bias or biases
            )
            for form in forms_by(known.method, site)
        ]
        for site in known.sites.reducible
    }  # fmt: skip


@dataclass(frozen=True)
class _Free:
    """Stands for a decomposition that loses nothing at any rank up to ``most``."""

    most: int
    least: int
    every: bool
    comparable: bool = False

    @property
    def errors(self) -> Tensor:
        return torch.zeros(self.most + 1, dtype=torch.float64)

    @property
    def levels(self) -> Tensor:
        return torch.zeros(self.most, dtype=torch.float64)

    @property
    def ranks(self) -> range:
        return range(self.least, (self.most if self.every else self.least) + 1)

    def relative_error(self, rank: int) -> float:
        return 0.0

    def factors(self, rank: int) -> Factors:
        raise NotImplementedError("nothing is decomposed yet")
