"""A profile: a model's matrices, measured and decomposed once. It is asked for plans as often as one likes.

model, data ── profile ──▶ Profile ── budget, rule ──▶ Plan ── apply_(model, plan, profile) ──▶ smaller model
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from rankfold.batches import as_found, first_inputs
from rankfold.compress.affordable import bytes_together, check_affordable
from rankfold.compress.layerwise.in_parts import affordable
from rankfold.compress.measured import Statistics
from rankfold.compress.methods.method import Method, fits_layers
from rankfold.compress.planning.candidates import Candidate, Counter, decompose
from rankfold.compress.planning.plan import Plan
from rankfold.compress.ranks.numbers import is_number, plain, whole
from rankfold.costs import Cost, Example
from rankfold.linalg.brief import brief
from rankfold.objectives import Objective
from rankfold.observe import Samples
from rankfold.run.processes.team import Team, joined
from rankfold.run.progress import Progress
from rankfold.sites import (
    Form,
    SiteList,
    opened,
)
from rankfold.train.feed import undrawn

T = TypeVar("T")


@dataclass(frozen=True)
class Calibration:
    """Which part of the data is used: its first ``samples`` samples.

    Args:
        samples: how many.
        batch_size: of the passes.
        name: of the data, written into the plan for whoever reads it.
        statistics: of an earlier plan for the same model (``plan.statistics``); they save taking them again.
        memory: the bytes that second moments and their decompositions may take; methods that fit layer after layer keep
            to it, and others are refused where they need more. None: as many as needed, or half of what is free where
            they would not fit.
        distributed: every process of torchrun takes its share of the data, and all end with the same plan.

    Raises:
        ValueError: a number below 1.

    Example:
        >>> net, x = nn.Sequential(nn.Linear(16, 16)), torch.randn(64, 16)
        >>> rf.profile(net, x, calibration=rf.Calibration(samples=32)).samples
        32
    """

    samples: int = 2048
    batch_size: int = 128
    name: str = ""
    statistics: Statistics | None = None
    memory: int | None = None
    distributed: bool = False

    __repr__ = brief

    def __post_init__(self) -> None:
        for name in ("samples", "batch_size"):
            object.__setattr__(self, name, whole(name, getattr(self, name)))
        memory = plain(self.memory)
        if memory is not None and (not is_number(memory) or not memory > 0):
            raise ValueError(f"memory must be a number of bytes, such as 2_000_000_000, got {memory!r}")

    def bounded(self, found: SiteList, method: Method, objective: Objective | None) -> Calibration:
        """The same with a bound of memory where layers are fitted and their moments would not fit without one.
        ``ValueError`` where a method needs all moments together, and they take more than the bound."""
        if fits_layers(method):
            return replace(self, memory=affordable(found, self.memory))
        if method.needs_data and self.statistics is None:
            tokens = objective is not None and objective.by_token
            check_affordable(found.reducible, self.memory, partial(bytes_together, tokens=tokens))
        return self

    def of(self, data: Any) -> Samples:
        return Samples(data, self.samples, self.batch_size, self.memory)

    def team(self, weights: Iterable[Tensor]) -> AbstractContextManager[Team]:
        """Of the processes that share the data, and send from where the weights are; of this one alone, by default."""
        if not self.distributed:
            return nullcontext(Team())
        return joined(next((weight.device for weight in weights if not weight.is_meta), torch.device("cpu")))


@dataclass(frozen=True, eq=False)
class Profile:
    """What plans are made of. Made by ``rankfold.profile``; ``plan`` decides ranks and decomposes nothing.

    Attributes:
        sites: of the model.
        method: that factored them.
        candidates: for each site, each form with its decomposition and forecast.
        counter: prices any form at any rank.
        cost: of the whole model.
        flops: of the whole model, for one sample.
        fingerprint: of the weights, so that a plan is not applied to others.
        calibration: which part of the data was used.
        objective: what the outputs were taken to mean.
        samples: how many were used.
        unsolved: sites that could not be decomposed, with the reason.
        unreached: sites that the data never reach.
        notes: sentences on what is odd.
        statistics: second moments that the method needs to factor again.
        metrics: of the model's outputs, where a method needs them later.
        absorbers: the BatchNorm that takes the shift of a site.
        decomposed: how many decompositions were made, those included that only served to weigh candidates.
        weighed: the latter alone.
        model: that was measured; None after reading from a file, until it is given.
        data: that was used; None after reading from a file, until it is given.
        example: one input.
        directory: where methods that fit layer after layer keep what is finished.
        tell: progress.
        probed: whether sites were compared by trial.
        prices: what each rank costs in the outputs, and in which unit, by rule.
        others: profiles by other methods, made on demand.
        tokens: whether metrics are of tokens, in nats, where there are no statistics to say it.
        made: what many plans share, such as their options, and the candidates that it was made of.

    Example:
        >>> known = rf.profile(nn.Sequential(nn.Linear(16, 16)), torch.randn(64, 16))
        >>> known.plan("params=0.7").asked(), known.samples
        ('params ≤ 0.7 of dense', 64)
    """

    sites: SiteList
    method: Method
    candidates: Mapping[str, list[Candidate]]
    counter: Counter
    cost: Cost
    flops: int  # of the whole model on all samples of the example, so that only their sum is rounded
    fingerprint: str
    calibration: Calibration
    objective: Objective | None
    samples: int
    unsolved: Mapping[str, str] = field(default_factory=dict)
    unreached: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    statistics: Statistics | None = None
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    absorbers: Mapping[str, str | None] = field(default_factory=dict)
    decomposed: int = 0
    weighed: int = 0
    model: nn.Module | None = field(default=None, repr=False)
    data: Any = field(default=None, repr=False)
    example: Example | None = field(default=None, repr=False)
    directory: Path | None = None
    tell: Progress = field(default=lambda what, done, total: None, repr=False)
    probed: bool = False  # read from a file, and made with data: layers are priced by probes on them
    prices: dict[Any, tuple[Mapping[tuple[str, Form], Tensor], str]] = field(default_factory=dict, repr=False)
    others: dict[str, Profile] = field(default_factory=dict, repr=False)
    tokens: bool = False  # without statistics: metrics are of tokens, in nats
    made: dict[Hashable, tuple[Any, Any]] = field(default_factory=dict, repr=False)

    __repr__ = brief

    def plan(self, budget: Any, rule: Any = "optimal", *, progress: Progress | None = None) -> Plan:
        """Decide what becomes of every site within ``budget``, by ``rule``; see ``rankfold.plan``.

        Decomposes nothing (but see ``coarser``) and runs the model only where the rule, a budget in latency or a method
        that fits layer after layer needs it. Raises ``BudgetError`` when nothing fits.
        """
        from rankfold.compress.planning.decide import decide

        with as_found(self.model), undrawn(self.data):
            return decide(self if progress is None else replace(self, tell=progress), budget, rule)

    def once(self, what: Hashable, make: Callable[[], T]) -> T:
        """What ``make`` gives, made once for these candidates."""
        held = self.made.get(what)
        if held is None or held[0] is not self.candidates:
            held = self.made[what] = self.candidates, make()
        found: T = held[1]
        return found

    @property
    def nats(self) -> bool:
        """Whether squared errors in the metric are nats of KL divergence per token."""
        return self.tokens or (self.statistics is not None and self.statistics.nats)

    @property
    def by_token(self) -> bool:
        """Whether layers are priced by the token: then none gets a bias that it had not."""
        if self.statistics is None:
            return self.tokens
        return any(known.tokens for known in self.statistics.sites.values())

    @property
    def coarser(self) -> Profile | None:
        """The same in the metric of all outputs, for a language model where much is lost; None where there is none.
        Decomposes every site again, once, when it is first asked for."""
        statistics = None if self.statistics is None else self.statistics.coarser
        if statistics is None:
            return None
        if "coarser" not in self.others:
            root = self.needed_model()
            with opened(root):
                made = decompose(root, self.sites, self.method, statistics, self.tell)
            self.others["coarser"] = replace(
                self, candidates=made.candidates, unsolved=made.unsolved, statistics=statistics, others={},
                metrics=metrics_of(statistics),
            )  # fmt: skip
        return replace(self.others["coarser"], tell=self.tell)

    def of(self, plan: Plan) -> Profile:
        """The one of these two that a plan was made from."""
        other = self.coarser if plan.calibration.get("metric") == "outputs" else None
        return self if other is None else other

    def candidate(self, site: str, form: Form) -> Candidate | None:
        return next((each for each in self.candidates.get(site, ()) if each.form is form), None)

    def candidate_like(self, site: str, form: Form) -> Candidate | None:
        """One whose factors ``form`` could store too, where it was not asked for itself."""
        if form.over_base:
            return None
        group = self.candidates.get(site, ())
        return next((c for c in group if c.form.decomposed is form.decomposed and not c.form.over_base), None)

    def needed_model(self) -> nn.Module:
        if self.model is None:
            raise ValueError(
                "this profile was read from a file without its model, which is needed here: give model= when reading it"
            )
        return self.model

    def needed_data(self) -> Any:
        if self.data is None:
            raise ValueError("this needs data: give data= when the profile is made or read")
        return self.data

    def needed_example(self) -> Example:
        if self.example is None:
            return Example.of(first_inputs(self.needed_model(), self.data))
        return self.example

    def save(self, path: str | Path) -> None:
        """Write the profile to one file; ``load`` reads it."""
        from rankfold.compress.planning.stored import save_profile

        save_profile(self, path)

    @classmethod
    def load(
        cls,
        path: str | Path,
        model: nn.Module,
        data: Any = None,
        *,
        method: Method | None = None,
        objective: Objective | None = None,
    ) -> Profile:
        """Read what ``save`` wrote, for the same model; ``ValueError`` in one line for another model or file.

        Plans follow without a decomposition; the sites that a plan changes are decomposed again when it is applied.
        ``data``: needed by rules and budgets that run the model on them. ``method``: the one it was made with, where it
        is your own.
        """
        from rankfold.compress.planning.stored import load_profile

        return load_profile(path, model, data, method=method, objective=objective)


def metrics_of(statistics: Statistics) -> dict[str, Tensor]:
    return {name: known.metric for name, known in statistics.sites.items() if known.metric is not None}
