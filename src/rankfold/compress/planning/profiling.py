"""Making a profile: one pass over the data, and every matrix decomposed once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from rankfold.batches import (
    as_found,
    batches_of,
    check_rereadable,
    divisible,
    first_inputs,
    forward,
    labels_of,
    size_of,
)
from rankfold.batches.written import unwritten
from rankfold.compress.coherence import coherences
from rankfold.compress.layerwise.in_blocks import measure_in_blocks
from rankfold.compress.layerwise.in_parts import measure_in_parts
from rankfold.compress.methods.method import Method, fits_layers
from rankfold.compress.planning.candidates import Candidate, Counter, Decomposed, decompose
from rankfold.compress.planning.choice import Forms, asked_forms, check_fitting, chosen, named_forms
from rankfold.compress.planning.profile import Calibration, Profile, metrics_of
from rankfold.compress.statistics import Statistics, calibrate
from rankfold.costs import Cost, Example, Traced, evaluating, measure, storage, with_batch
from rankfold.objectives import Inferred, Objective, ObjectiveError, Teacher, infer, objective_named
from rankfold.observe import PAGES, Pages, Samples, unheard
from rankfold.run.disk.files import write_atomically
from rankfold.run.ordinary import ordinarily
from rankfold.run.processes.memory import give_back, steady
from rankfold.run.progress import Progress, showing
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
from rankfold.train.feed import undrawn
from rankfold.train.targets import known_targets

UNHEARD = "it is called, and what it returns never reaches the outputs of the model: left as it is"


@showing
@ordinarily
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
    return profiled(
        model, data, method=method, objective=objective, example=example, where=where, forms=forms,
        calibration=calibration, directory=directory, progress=progress,
    )  # fmt: skip


def profiled(
    model: nn.Module,
    data: Any,
    *,
    method: str | Method,
    objective: Objective | str | None = None,
    example: Any = None,
    where: Any = None,
    forms: Forms | None = None,
    calibration: Calibration | None = None,
    directory: str | Path | None = None,
    progress: Progress | None = None,
    check: Callable[[Profile], None] = lambda known: None,
) -> Profile:
    """As ``profile``; ``check`` may refuse what is counted, before anything is measured."""
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
    with undrawn(data):
        first = Example.of(first_inputs(root, data)) if example is None else Example.of(example)
    params, size = storage(root)
    with as_found(root), undrawn(data):
        mark = fingerprint(root)
        with unwritten(root.named_modules):
            objective = getattr(meant(root, data, objective), "objective", None)
            counted, traced = _counted(root, first, drawn=example is None, found=found)
            found = _heard(root, first, traced.kept(found))
        found, apart = _grouped(root, found, traced, method, forms)
        with opened(root):
            sizes = {site.name: site.weight(root).element_size() for site in found}
        calls = {**traced.calls, **{each.name: traced.calls[each.names[0]] for each in found.joint}}
        sizes |= {each.name: sizes[each.names[0]] for each in found.joint}
        about: dict[str, Any] = {
            "counter": Counter(calls, counted, sizes), "cost": Cost(params, traced.flops // counted, size),
            "flops": traced.flops, "notes": (*traced.notes, *apart), "fingerprint": mark, "example": first,
            "data": data, "directory": None if directory is None else Path(directory),
        }  # fmt: skip
        about |= {"objective": objective, "model": root, "tell": tell}
        check(Profile(found, method, {}, calibration=calibration, samples=0, **about))
        calibration = calibration.bounded(found, method, objective)
        statistics = _earlier(method, calibration, mark)
        with opened(root), steady(calibration.memory), calibration.team(root.parameters()) as team:
            seen = replace(calibration.of(data), team=team)
            known = _measured(root, found, method, seen, statistics, objective, directory, tell)
    give_back()
    return replace(known, calibration=calibration, **about)


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


def _counted(root: nn.Module, first: Example, drawn: bool, found: SiteList) -> tuple[int, Traced]:
    """How many samples were counted at once, and what they told together.

    Of data it is one sample: what a network computes once for all of a batch, as the tables of relative positions,
    costs one sample all of it. A network that takes no single one is counted with two.
    """
    if drawn and first.samples > 1 and divisible((first.args, first.kwargs), first.samples):
        with suppress(Exception):  # the user's own forward
            return 1, measure(root, with_batch(first, 1), found)
    return first.samples, measure(root, replace(first, samples=1), found)


def _heard(root: nn.Module, example: Example, found: SiteList) -> SiteList:
    """The sites, of which those can only be kept whose outputs never reach what the model gives."""
    if any(p.is_meta for p in root.parameters()):
        return found
    given = example.fitting(root.modules())
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
    if statistics is not None and not fits and not statistics.nats and not isinstance(seen.data, Iterator):
        made = replace(made, candidates=cohering(root, seen, made.candidates, statistics, objective, tell))
    return Profile(
        found, method, made.candidates, unsolved=made.unsolved,
        unreached=() if statistics is None else statistics.unreached,
        statistics=None if statistics is None else statistics.kept, decomposed=made.count, weighed=made.weighed,
        samples=0 if statistics is None else statistics.samples,
        metrics={} if statistics is None or not fits else metrics_of(statistics),
        absorbers={} if statistics is None else {name: known.absorber for name, known in statistics.sites.items()},
        **blank,
    )  # fmt: skip


def cohering(
    root: nn.Module,
    seen: Samples,
    candidates: Mapping[str, list[Candidate]],
    statistics: Statistics,
    objective: Objective | None,
    tell: Progress,
) -> dict[str, list[Candidate]]:
    """The candidates with their coherence, where errors are in a metric of the outputs. Tokens are judged one by one:
    with those it would take as long as all else, and win next to nothing (docs/projection.md)."""
    flat = [each for group in candidates.values() for each in group if each.decomposition.comparable]
    prices = {(each.site.name, each.form): each.decomposition.errors.square() for each in flat}
    known = coherences(
        root, seen, flat, prices, objective or Teacher(), spread=statistics.spread, progress=tell,
    )  # fmt: skip
    return {
        name: [replace(each, coherence=known.get((name, each.form))) for each in group]
        for name, group in candidates.items()
    }


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


def check_folded(found: SiteList) -> None:
    """``ValueError`` for a model whose weights are products."""
    composed = [site.name for site in found if site.note == FOLD_FIRST]
    if composed:
        raise ValueError(
            f"{len(composed)} weights are products of factors (the first is {composed[0]}): fold them before "
            "planning, with rankfold.fold_(model)"
        )


def meant(root: nn.Module, data: Any, asked: Objective | str | None) -> Inferred | None:
    """The objective that was asked for, or the one that the first samples and the model's answers tell, and why.

    ``Teacher`` where they tell none: labels are not needed here. Without data, or values, None. Raises
    ``ObjectiveError`` where the first targets are none of the objective that was asked for.
    """
    objective = None if asked is None else Inferred(objective_named(asked), "as asked")
    if data is None or any(p.is_meta for p in root.parameters()):
        return objective
    for batch in batches_of(data, 64, 64):
        if labels_of(batch) is None:
            if objective is not None:
                return objective
            batch = next(batches_of([batch], 2, 2))  # all that tells anything is what kind of answer there is
        elif objective is not None and not objective.objective.labelled:
            return objective
        with evaluating(root), opened(root):
            if objective is not None:
                objective.objective.losses(forward(root, batch), batch)
                return objective
            try:
                return infer(forward(root, batch), batch, known_targets(data))
            except (ObjectiveError, TypeError):  # labels that are something else
                return Inferred(Teacher(), "the data tell none: outputs are compared with those of the original")
    return objective
