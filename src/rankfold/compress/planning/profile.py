"""A profile: a model's matrices, measured and decomposed once. It is asked for plans as often as one likes.

model, data ── profile ──▶ Profile ── budget, rule ──▶ Plan ── apply_(model, plan, profile) ──▶ smaller model
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.batches import arguments, batches_of, check_rereadable, forward, labels_of, moved, size_of
from rankfold.compress.layerwise.in_blocks import measure_in_blocks
from rankfold.compress.layerwise.in_parts import affordable, measure_in_parts
from rankfold.compress.methods.method import Method, fits_layers
from rankfold.compress.planning.candidates import Candidate, Counter, Decomposed, decompose
from rankfold.compress.planning.choice import Forms, asked_forms, check_fitting, chosen, named_forms
from rankfold.compress.planning.plan import Plan
from rankfold.compress.statistics import Statistics, calibrate
from rankfold.costs import Cost, Example, Traced, evaluating, measure, storage
from rankfold.linalg.brief import brief
from rankfold.objectives import Objective, ObjectiveError, Teacher, infer, objective_named
from rankfold.observe import PAGES, Pages, Samples, unheard
from rankfold.run.files import write_atomically
from rankfold.run.memory import give_back
from rankfold.run.progress import Progress, showing
from rankfold.run.team import Team, joined
from rankfold.sites import (
    FOLD_FIRST,
    Form,
    SiteList,
    check_ordinary,
    fingerprint,
    opened,
    sites,
    unwrap,
    with_joint,
)
from rankfold.sites.find import missed

UNHEARD = "it is called, and what it returns never reaches the outputs of the model: left as it is"


@dataclass(frozen=True)
class Calibration:
    """Which part of the data is used: its first ``samples`` samples.

    Args:
        samples: how many.
        batch_size: of the passes.
        name: of the data, written into the plan for whoever reads it.
        statistics: of an earlier plan for the same model (``plan.statistics``); they save taking them again.
        memory: for methods that fit layer after layer, the bytes that second moments and their decompositions may take.
            None: as many as needed, or half of what is free where they would not fit.
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
        if self.memory is not None and (isinstance(self.memory, str) or not self.memory > 0):
            raise ValueError(f"memory must be a number of bytes, such as 2_000_000_000, got {self.memory!r}")

    def bounded(self, found: SiteList, method: Method) -> Calibration:
        """The same with a bound of memory where layers are fitted and their moments would not fit without one."""
        return replace(self, memory=affordable(found, self.memory)) if fits_layers(method) else self

    def of(self, data: Any) -> Samples:
        return Samples(data, self.samples, self.batch_size, self.memory)

    def team(self, root: nn.Module) -> AbstractContextManager[Team]:
        if not self.distributed:
            return nullcontext(Team())
        return joined(next((p.device for p in root.parameters() if not p.is_meta), torch.device("cpu")))


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
        prices: what each rank costs in the outputs, by rule.
        others: profiles by other methods, made on demand.
        tokens: whether metrics are of tokens, in nats, where there are no statistics to say it.

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
    prices: dict[Any, Mapping[tuple[str, Form], Tensor]] = field(default_factory=dict, repr=False)
    others: dict[str, Profile] = field(default_factory=dict, repr=False)
    tokens: bool = False  # without statistics: metrics are of tokens, in nats

    __repr__ = brief

    def plan(self, budget: Any, rule: Any = "optimal", *, progress: Progress | None = None) -> Plan:
        """Decide what becomes of every site within ``budget``, by ``rule``; see ``rankfold.plan``.

        Decomposes nothing (but see ``coarser``) and runs the model only where the rule, a budget in latency or a method
        that fits layer after layer needs it. Raises ``BudgetError`` when nothing fits.
        """
        from rankfold.compress.planning.decide import decide

        return decide(self if progress is None else replace(self, tell=progress), budget, rule)

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
                metrics=_metrics(statistics),
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
        return example_of(self.needed_model(), self.data) if self.example is None else self.example

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


@showing
def profile(
    model: nn.Module,
    data: Any = None,
    *,
    method: str | Method = "project",
    objective: Objective | str | None = None,
    example: Any = None,
    where: Any = None,
    forms: Forms | None = None,
    calibration: Calibration | None = None,
    directory: str | Path | None = None,
    progress: Progress | None = None,
) -> Profile:
    """Measure and decompose every site of ``model`` once; plans for any budget then follow at little cost.

    Args:
        model: any module, left as it is.
        data: a loader, data set or batches (see ``rankfold.batches.batches_of``), needed by methods that use data;
            labels are not needed. One sample in eight is held back, and every forecast is made on those.
        method: how matrices are factored, by name or as an object.
        objective: what the outputs mean, as an object or by name; told from the first samples by default.
        example: one input, for counting; taken from the data by default.
        where: narrows the sites, as in ``rankfold.sites``.
        forms: those that are weighed, by name, or "all"; by default all but the quantised ones (docs/quantised.md) and
            factors that linear layers share (docs/shared.md).
        calibration: which part of the data is used.
        directory: where methods that fit layer after layer keep what is finished.
        progress: called as ``progress(what, done, total)`` as the work goes on.

    Returns:
        A ``Profile``; ask it for plans.

    Raises:
        ValueError: unknown forms, or such that the method cannot fit; data that are missing, empty or not finite;
            weights that are not finite, naming the site, in pieces (FSDP) or under observation (quantization); over-
            parametrised models, which are folded first.

    Cost: one pass over the calibration data with one backward pass, and two decompositions for each site and form, one
    of them for the forecast.

    Example:
        >>> net, x = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)), torch.randn(64, 16)
        >>> known = rf.profile(net, x)
        >>> [known.plan(f"params={share}").after.params <= share * 676 for share in (0.8, 0.5)]
        [True, True]
    """
    from rankfold.compress.methods import method_named

    root, tell = unwrap(model), progress or (lambda what, done, total: None)
    calibration, method = calibration or Calibration(), method_named(method)
    found = sites(root, where)
    if not len(found) and (none := missed(root, where)):
        raise ValueError(none)
    check_ordinary(found)
    check_folded(found)
    found = chosen(found, forms)
    check_fitting(method, forms)
    if data is None and method.needs_data:
        raise ValueError(
            f"method {method.name!r} needs data: give data=, or use method='truncate', which needs only an example= "
            "of one input"
        )
    check_rereadable(data)
    first = example_of(root, data) if example is None else Example.of(example)
    params, size = storage(root)
    objective = meant(root, data, objective)
    traced = measure(root, replace(first, samples=1), found)  # FLOPs of the example with all its samples
    found = _heard(root, first, traced.kept(found))
    found, apart = _grouped(root, found, traced, method, forms)
    calibration = calibration.bounded(found, method)
    mark = fingerprint(root)
    statistics = _earlier(method, calibration, mark)
    with opened(root), calibration.team(root) as team:
        sizes = {site.name: site.weight(root).element_size() for site in found}
        sizes |= {each.name: sizes[each.names[0]] for each in found.joint}
        seen = replace(calibration.of(data), team=team)
        known = _measured(root, found, method, seen, statistics, objective, directory, tell)
    return replace(
        known,
        counter=Counter(
            {**traced.calls, **{each.name: traced.calls[each.names[0]] for each in found.joint}}, first.samples, sizes
        ),
        cost=Cost(params, traced.flops // first.samples, size),
        flops=traced.flops,
        notes=(*traced.notes, *apart),
        fingerprint=mark,
        calibration=calibration,
        example=first,
        data=data,
        directory=None if directory is None else Path(directory),
    )


def _grouped(
    root: nn.Module, found: SiteList, traced: Traced, method: Method, forms: Forms | None
) -> tuple[SiteList, tuple[str, ...]]:
    """The sites with the groups that may share a factor, where that was asked for; and why some are in none."""
    if Form.SHARED not in (asked_forms(forms) or ()):
        return found, ()
    if fits_layers(method) or not method.needs_data:
        why = "fits one layer after another" if fits_layers(method) else "takes each layer by itself"
        said = f"method {method.name!r} {why} and makes no factor that several layers share"
        asked = named_forms(forms)
        if asked == {Form.SHARED} and not any(Form.SHARED in site.forms for site in found):  # as experts do alone
            raise ValueError(
                f"{said}: use method='project' (--method project), or ask for other forms (forms=, --forms)"
            )
        return found, (f"{said}: method 'project' does",) if asked else ()
    with opened(root):
        return with_joint(root, found, {n: r for n, r in traced.read.items() if len(r) == len(traced.calls.get(n, r))})


def _heard(root: nn.Module, example: Example, found: SiteList) -> SiteList:
    """The sites, of which those can only be kept whose outputs never reach what the model gives."""
    if any(p.is_meta for p in root.parameters()):
        return found
    given = example.fitting(root.parameters())
    with evaluating(root), opened(root):
        modules = {site.name: root.get_submodule(site.name) for site in found.reducible}
        silent = set(unheard(lambda: root(*given.args, **given.kwargs), modules))
    kept = [replace(s, forms=frozenset({Form.KEEP}), note=UNHEARD) if s.name in silent else s for s in found]
    return replace(found, items=tuple(kept))


def _earlier(method: Method, calibration: Calibration, mark: str) -> Statistics | None:
    """The statistics that were given, for methods that use some; ``ValueError`` for those of another model."""
    statistics = None if fits_layers(method) or not method.needs_data else calibration.statistics
    if statistics is not None and statistics.model not in ("", mark):
        raise ValueError(
            "the statistics were taken of another model, or of other weights: leave statistics= out of "
            "Calibration, so that they are taken again"
        )
    return statistics


def _measured(
    root: nn.Module,
    found: SiteList,
    method: Method,
    seen: Samples,
    statistics: Statistics | None,
    objective: Objective | None,
    directory: str | Path | None,
    tell: Progress,
) -> Profile:
    """Everything that data and decompositions say; the model must be ``opened``."""
    blank: dict[str, Any] = {"counter": Counter({}, 1, {}), "cost": Cost(0, 0, 0), "flops": 0, "fingerprint": ""}
    blank |= {"calibration": Calibration(), "objective": objective, "model": root, "tell": tell}
    fits, place, pages = fits_layers(method), None if directory is None else Path(directory), getattr(root, PAGES, None)
    if pages is not None:
        return _in_blocks(root, pages, found, method, seen, objective, place, tell, blank)
    if fits and seen.memory is not None:
        part = measure_in_parts(root, found, method, seen, objective, directory=place, progress=tell)
        samples = sum(size_of(batch) for _, batch in seen.batches())
        return Profile(
            found, method, part.candidates, unsolved=part.unsolved, unreached=part.unreached, metrics=part.metrics,
            absorbers=part.absorbers, samples=samples, decomposed=part.count, weighed=part.weighed,
            tokens=objective is not None and objective.by_token, **blank,
        )  # fmt: skip
    if method.needs_data and statistics is None:
        kept = None if place is None or not fits else place / "statistics.safetensors"
        statistics = None if kept is None else _kept(kept)
        if statistics is None:
            statistics = calibrate(
                root, seen.data, found, samples=seen.samples, batch_size=seen.batch_size, objective=objective,
                progress=tell, team=seen.team,
            )  # fmt: skip
            if kept is not None and seen.team.first:
                write_atomically(kept, statistics.to_bytes(parts=True))
    made: Decomposed = decompose(root, found, method, statistics, tell)
    give_back()
    return Profile(
        found, method, made.candidates, unsolved=made.unsolved,
        unreached=() if statistics is None else statistics.unreached,
        statistics=None if statistics is None else statistics.kept, decomposed=made.count, weighed=made.weighed,
        samples=0 if statistics is None else statistics.samples,
        metrics={} if statistics is None or not fits else _metrics(statistics),
        absorbers={} if statistics is None else {name: known.absorber for name, known in statistics.sites.items()},
        **blank,
    )  # fmt: skip


def _in_blocks(
    root: nn.Module,
    pages: Pages,
    found: SiteList,
    method: Method,
    seen: Samples,
    objective: Objective | None,
    place: Path | None,
    tell: Progress,
    blank: dict[str, Any],
) -> Profile:
    """Of a network whose weights stay on the disk, which must be cut: factors come from fitting layer after layer."""
    if not fits_layers(method) or objective is None or place is None:
        raise ValueError(
            "the weights of this network stay on the disk, so that it is fitted block after block: give "
            f"method='sequential' (not {method.name!r}), objective= and directory="
        )
    if not pages.parts:
        pages.cut(next(batches_of(seen.data, 2, 2)), [site.name for site in found.reducible])
    with evaluating(root):
        part = measure_in_blocks(root, pages, found, method, seen, objective, place, progress=tell)
    samples = sum(size_of(batch) for _, batch in seen.batches())
    return Profile(
        found, method, part.candidates, unsolved=part.unsolved, unreached=part.unreached, metrics=part.metrics,
        absorbers=dict.fromkeys(part.absorbers), samples=samples, decomposed=part.count, weighed=part.weighed,
        tokens=objective.by_token, **blank,
    )  # fmt: skip


def _kept(file: Path) -> Statistics | None:
    """What an interrupted call has left; None for a file that is not there or not whole: they are taken again."""
    try:
        return Statistics.load(file) if file.exists() else None
    except ValueError:
        return None


def _metrics(statistics: Statistics) -> dict[str, Tensor]:
    return {name: known.metric for name, known in statistics.sites.items() if known.metric is not None}


def check_folded(found: SiteList) -> None:
    """``ValueError`` for a model whose weights are products."""
    composed = [site.name for site in found if site.note == FOLD_FIRST]
    if composed:
        raise ValueError(
            f"{len(composed)} weights are products of factors (the first is {composed[0]}): fold them before "
            "planning, with rankfold.fold_(model)"
        )


def meant(root: nn.Module, data: Any, asked: Objective | str | None) -> Objective | None:
    """The objective that was asked for, or the one that the first samples and the model's answers to them tell.

    ``Teacher`` where they tell none: labels are not needed here. Without data, or values, None. Raises
    ``ObjectiveError`` where the first targets are none of the objective that was asked for.
    """
    objective = None if asked is None else objective_named(asked)
    if data is None or any(p.is_meta for p in root.parameters()):
        return objective
    for batch in batches_of(data, 64, 64):
        if labels_of(batch) is None:
            if objective is not None:
                return objective
            batch = next(batches_of([batch], 2, 2))  # all that tells anything is what kind of answer there is
        elif objective is not None and not objective.labelled:
            return objective
        with evaluating(root), opened(root):
            if objective is not None:
                objective.losses(forward(root, batch), batch)
                return objective
            try:
                return infer(forward(root, batch), batch).objective
            except (ObjectiveError, TypeError):  # labels that are something else
                return Teacher()
    return objective


def example_of(root: nn.Module, data: Any) -> Example:
    """One input of the model, from its data."""
    if data is None:
        raise ValueError("an input of the model is needed to count its cost: give example=, or data=")
    for batch in batches_of(data, 2, 2):
        return example_from(root, batch)
    raise ValueError("the data is empty: give at least one batch")


def example_from(root: nn.Module, batch: Any) -> Example:
    """A batch as the model is called with it, on its device and in its precision."""
    args, kwargs = arguments(batch, root)
    place = next((p for p in root.parameters() if p.is_floating_point()), None)
    if place is not None and not place.is_meta:
        args, kwargs = moved(args, place.device, place.dtype), moved(kwargs, place.device, place.dtype)
    return Example.of(kwargs if kwargs else args)
