"""Rank rules: how ranks are chosen within limits, whatever the method. A rule carries its own ``choose``.

A rule of one's own is any object with ``name`` and ``choose(choices, limits, known)``: for each site a list of options,
the first of which keeps it, and one limit for each resource; it gives the option picked for each site. ``known`` is the
profile, for rules that run the model. With an attribute ``across_forms = True`` a rule is offered every form of a site,
otherwise the first one alone; with ``across_groups = True`` also what the members of each of ``known.sites.joint`` may
share, under the name of the group: where it takes one of these options, it gives none for the members.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from types import NoneType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

from rankfold.compress.ranks.allocate import global_, local, optimal
from rankfold.compress.ranks.groups import optimal_of_groups
from rankfold.compress.ranks.numbers import is_number, plain, whole
from rankfold.compress.ranks.options import Costs, Option

if TYPE_CHECKING:
    from rankfold.compress.planning.profile import Profile

Choices = Mapping[str, Sequence[Option]]


@runtime_checkable
class RankRule(Protocol):
    @property
    def name(self) -> str: ...

    def choose(self, choices: Choices, limits: Costs, known: Profile) -> dict[str, Option]:
        """The option of each site; their costs together within ``limits``. ``BudgetError`` where none is."""
        ...


@dataclass(frozen=True)
class Optimal:
    """Least predicted loss within the budget, with keeping among the choices of each site. The default rule.

    For methods that cannot tell it themselves the loss follows in closed form from statistics of the calibration
    samples.

    Args:
        probes: truncations of each site that are tried where these do not tell (on fewer samples where more than 64 are
            to be tried); 0 compares sites by relative error alone, and so does a plan without data.
        samples: calibration samples for it.
        name: of the rule.

    Raises:
        ValueError: a number out of range.

    Cost: an integer program of at most 30 seconds; see docs/budgets.md.

    Source: Kellerer, Pferschy, Pisinger 2004 (multiple-choice knapsack).

    Example:
        >>> net = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
        >>> rf.plan(net, "params=0.6", data=torch.randn(64, 16), rule=rf.Optimal()).rule
        'optimal'
    """

    probes: int = 4
    samples: int = 256
    name: str = "optimal"
    across_forms: ClassVar[bool] = True
    across_groups: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "probes", whole("probes", self.probes, least=0))
        object.__setattr__(self, "samples", whole("samples", self.samples))

    def choose(self, choices: Choices, limits: Costs, known: Profile) -> dict[str, Option]:
        groups = {each.name: each.names for each in known.sites.joint if each.name in choices}
        return optimal_of_groups(choices, limits, groups) if groups else optimal(choices, limits)


@dataclass(frozen=True)
class Local:
    """The same fraction of the full rank, or the same rank, in every site (LSVT); the largest that fits by default.

    Args:
        fraction: of the full rank.
        rank: the same in every site.
        name: of the rule.

    Raises:
        ValueError: both are given, or one is out of range.

    Source: LoRITa, local singular value truncation.

    Example:
        >>> net = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
        >>> plan = rf.plan(net, "params=0.9", "truncate", example=torch.randn(1, 16), rule=rf.Local(rank=3))
        >>> [entry.rank for entry in plan.entries]
        [3, 3]
    """

    fraction: float | None = None
    rank: int | None = None
    name: str = "local"

    def __post_init__(self) -> None:
        if self.fraction is not None and self.rank is not None:
            raise ValueError(f"give a fraction or a rank, not both: got fraction={self.fraction} and rank={self.rank}")
        if self.fraction is not None:
            share = plain(self.fraction)
            if not is_number(share) or not 0 < share <= 1:
                raise ValueError(f"fraction, a share of the full rank, must be above 0 and at most 1, got {share!r}")
            object.__setattr__(self, "fraction", float(share))
        if self.rank is not None:
            object.__setattr__(self, "rank", whole("rank", self.rank))

    def choose(self, choices: Choices, limits: Costs, known: Profile) -> dict[str, Option]:
        return local(choices, limits, self.fraction, self.rank)


@dataclass(frozen=True)
class Global:
    """All spectra, each divided by its largest value, ranked together (GSVT).

    Args:
        name: of the rule.

    Source: LoRITa, global singular value truncation.

    Example:
        >>> net = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
        >>> rf.plan(net, "params=0.7", "truncate", example=torch.randn(1, 16), rule=rf.Global()).rule
        'global'
    """

    name: str = "global"

    def choose(self, choices: Choices, limits: Costs, known: Profile) -> dict[str, Option]:
        return global_(choices, limits)


@dataclass(frozen=True)
class Iterative:
    """Performance-preserving truncation (ISVT): each step shrinks the site where that raises the loss least.

    Args:
        step: parameters that one step removes.
        samples: random calibration samples on which the loss is measured.
        seed: that draws them.
        counted: which parameters. "stored": those that the network has, so that the first step of a layer goes from its
            m·n to the rank at which the factors are so many fewer. "values": m + n for each singular value from full
            rank on, as the paper prints it; a layer is then truncated in small steps from the first, and one that ends
            with more in its factors than in its matrix is kept whole.
        name: of the rule.

    Raises:
        ValueError: a number out of range.

    Cost: for each step one evaluation of the samples for each site.

    Source: LoRITa, appendix A.

    Example:
        >>> rf.Iterative(step=1000, seed=1).samples
        120
    """

    step: int = 500
    samples: int = 120
    seed: int = 0
    counted: Literal["stored", "values"] = "stored"
    name: str = "iterative"

    def __post_init__(self) -> None:
        if self.counted not in ("stored", "values"):
            raise ValueError(f"counted must be 'stored' or 'values', got {self.counted!r}")
        for name in ("step", "samples"):
            object.__setattr__(self, name, whole(name, getattr(self, name)))

    def choose(self, choices: Choices, limits: Costs, known: Profile) -> dict[str, Option]:
        from rankfold.compress.ranks.iterative import iterate

        return iterate(known.needed_model(), known.candidates, choices, limits, known.needed_data(), self, known.tell)


def rule_named(name: str | RankRule) -> RankRule:
    """The rule called ``name``; an object that is one already is returned as it is. ``ValueError`` for other things."""
    if not isinstance(name, str):
        if isinstance(name, type) or not isinstance(name, RankRule):
            raise ValueError(
                f"rule= must be the name of a rank rule, or an object with name and choose(…); got {name!r}"
            )
        return name
    if name in _NAMED:
        return _NAMED[name]
    raise ValueError(f"there is no rank rule named {name!r}: the rules are {', '.join(_NAMED)}")


_NAMED: dict[str, RankRule] = {rule.name: rule for rule in (Optimal(), Local(), Global(), Iterative())}


def register_rule(rule: RankRule) -> RankRule:
    """Make a rank rule of one's own known by its name.

    Args:
        rule: an object with ``name`` and ``choose(choices, limits, known)``; see docs/inside.md.

    Returns:
        ``rule``.

    Raises:
        ValueError: what is missing of it, or a name that is taken.

    Example:
        >>> class Nothing:
        ...     name = "nothing"
        ...     def choose(self, choices, limits, known):
        ...         return {site: options[0] for site, options in choices.items()}
        >>> rf.register_rule(Nothing()).name
        'nothing'
    """
    _NAMED[rule_named(rule).name] = rule
    return rule


def described(rule: RankRule) -> dict[str, Any]:
    """The settings of a rule as plain values."""
    values: dict[str, Any] = asdict(rule) if is_dataclass(rule) and not isinstance(rule, type) else {}
    plain = (str, int, float, bool, NoneType)
    return {key: value if isinstance(value, plain) else repr(value) for key, value in values.items()} | {
        "name": rule.name
    }
