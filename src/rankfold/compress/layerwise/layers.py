"""Layer after layer is fitted to the original network, given what comes before it by then.

Only the moments of one layer (of several that read the same tensor) are in memory at a time. What is finished is kept
on disk where there is a directory, so that an interrupted fit goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import TypedDict

from rankfold.batches import batches_of, copied, forward, tensors_in
from rankfold.compress.layerwise.pairs import FOLDS, Pairs, bytes_needed, gather
from rankfold.compress.methods.method import LayerwiseMethod, Solution
from rankfold.compress.planning.apply import filled, place_, prepare_
from rankfold.compress.planning.fitted import Fitted, read, to_bytes
from rankfold.compress.planning.plan import Entry
from rankfold.compress.statistics import calibrate, moments_bytes
from rankfold.costs import evaluating
from rankfold.layers import SplitAttention, SplitCell, SplitRecurrent
from rankfold.linalg import NotConvergedError
from rankfold.observe import Samples, before
from rankfold.run.container import FAULTS, checked
from rankfold.run.files import write_atomically
from rankfold.run.progress import Progress
from rankfold.sites import Factors, Form, Site, SiteList, opened

_ROUNDING = 1e-5


@dataclass(frozen=True)
class FittedNetwork:
    """``network``: the compressed copy. ``entries``: with their measured errors. ``losses``: prices at every rank."""

    network: nn.Module
    entries: tuple[Entry, ...]
    fitted: Mapping[str, Fitted]
    losses: Mapping[tuple[str, Form], Tensor]


def fit_layers(
    original: nn.Module,
    entries: Sequence[Entry],
    found: SiteList,
    method: LayerwiseMethod,
    seen: Samples,
    metrics: Mapping[str, Tensor],
    absorbers: Mapping[str, str | None],
    *,
    directory: Path | None = None,
    progress: Progress | None = None,
) -> FittedNetwork:
    """Fit every entry that is not kept, in the order in which the sites are called; ``original`` is left as it is.

    ``directory``: of this fit alone; what is in it already was fitted for the same request. Cost: for each group of
    sites that read the same tensor, both networks up to there over all samples, and its fits.
    """
    tell = progress or (lambda what, done, total: None)
    known = {entry.site: entry for entry in entries}
    with opened(original):
        groups = _groups(original, [found[e.site] for e in entries if e.form is not Form.KEEP], seen)
    current = copied(original)
    changed = tuple(known[site.name] for group in groups for site in group)
    prepare_(current, changed)
    fitted: dict[str, Fitted] = {}
    losses: dict[tuple[str, Form], Tensor] = {}
    done = 0
    with ExitStack() as stack:
        for network in (original, current):
            stack.enter_context(evaluating(network))
            stack.enter_context(opened(network))
        for number, group in enumerate(groups):
            file = None if directory is None else directory / f"{number:04d}.safetensors"
            solved = None if file is None else _stored(file, current, [(site, known[site.name]) for site in group])
            if solved is None:
                solved = _solve(original, current, group, known, method, seen, metrics)
                if file is not None and seen.team.first:
                    _store(file, solved)
            for site in group:
                solution, entry = solved[site.name], known[site.name]
                done += 1
                if entry.form is Form.DENSE and _unchanged(site, site.matrix(original), solution):
                    known[site.name] = replace(entry, form=Form.KEEP, note="")
                    continue
                fitted[site.name] = Fitted(solution.factors, None if entry.bias else absorbers.get(site.name))
                place_(current, site.name, filled(current, site, entry, fitted[site.name]), fitted[site.name])
                offered = (form for form in site.forms if form.decomposed in solution.losses)
                losses |= {(site.name, form): solution.losses[form.decomposed] for form in offered}
                known[site.name] = _told(entry, solution)
            tell("fitting", done, len(changed))
    return FittedNetwork(current, tuple(known[entry.site] for entry in entries), fitted, losses)


def refittable(original: nn.Module, site: Site) -> bool:
    """Whether a kept layer may be replaced by one of its own size; the original must be opened.

    Not inside attention or a recurrent layer that is otherwise left alone: taken apart it would lose its fused kernel.
    """
    parent = original.get_submodule(site.name.rpartition(".")[0])
    return Form.DENSE in site.forms and not isinstance(parent, SplitAttention | SplitRecurrent | SplitCell)


def partition(sites: Sequence[Site], needs: Callable[[Site], int], memory: int | None) -> list[list[Site]]:
    """``sites`` in runs whose needs together stay within ``memory`` bytes; one that needs more stands alone."""
    runs: list[list[Site]] = []
    taken = 0
    for site in sites:
        need = needs(site)
        if not runs or (memory is not None and taken + need > memory):
            runs.append([])
            taken = 0
        runs[-1].append(site)
        taken += need
    return runs


def _groups(original: nn.Module, changed: Sequence[Site], seen: Samples) -> list[list[Site]]:
    """Sites by the tensor that they read, in the order of their first calls; those never called come last."""
    calls: list[tuple[Site, tuple[int, int]]] = []
    alive: list[Tensor] = []  # an id is that of one tensor only while it lives

    def watch(site: Site) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
            x = next(tensors_in((args, kwargs)))
            alive.append(x)
            if all(site is not other for other, _ in calls):
                calls.append((site, (id(x), -1 if x.is_inference() else x._version)))

        return hook

    coming = {original.get_submodule(site.name): watch(site) for site in changed}
    with evaluating(original), before(None, coming):
        for batch in batches_of(seen.data, 2, 2):
            forward(original, batch)
    runs: list[list[Site]] = []
    last = None
    for site, read_from in calls:
        if read_from != last:
            runs.append([])
        runs[-1].append(site)
        last = read_from
    called = {site.name for site, _ in calls}
    runs += [[site] for site in changed if site.name not in called]
    return [part for run in runs for part in partition(run, bytes_needed, seen.memory)]


def _solve(
    original: nn.Module,
    current: nn.Module,
    group: Sequence[Site],
    entries: Mapping[str, Entry],
    method: LayerwiseMethod,
    seen: Samples,
    metrics: Mapping[str, Tensor],
) -> dict[str, Solution]:
    folds = FOLDS
    if seen.memory is not None and sum(map(bytes_needed, group)) > seen.memory:
        folds = 1
    fits = seen.memory is None or sum(bytes_needed(site, folds) for site in group) <= seen.memory
    pairs: dict[str, Pairs] = {}
    if fits:
        pairs = gather(
            original, current, group, seen.data, samples=seen.samples, batch_size=seen.batch_size,
            rows=method.rows, folds=folds, team=seen.team,
        )  # fmt: skip
    solved = {}
    for site in group:
        entry, weight, bias = entries[site.name], site.weight(original), site.bias(original)
        try:
            if site.name in pairs:
                solved[site.name] = method.solve(
                    site,
                    entry.form.decomposed,
                    entry.rank,
                    weight,
                    bias,
                    pairs.pop(site.name),
                    metrics.get(site.name),
                )
            else:
                why = "its inputs and outputs cannot be paired" if fits else "its moments exceed the memory limit"
                solved[site.name] = _alone(original, site, entry, method, seen, metrics, why)
        except (NotConvergedError, ValueError) as error:
            raise ValueError(
                f"{site.title}: {error}; leave the site out with where=, or use method='project'"
            ) from error
    return solved


def _alone(
    original: nn.Module,
    site: Site,
    entry: Entry,
    method: LayerwiseMethod,
    seen: Samples,
    metrics: Mapping[str, Tensor],
    why: str,
) -> Solution:
    """Fitted to the original alone, from moments of its smaller side; without data where it was never called."""
    small = seen.memory is None or moments_bytes(site) <= seen.memory
    statistics = None
    if (small and site.layer.side == "output") or seen.memory is None:
        known = calibrate(
            original, seen.data, SiteList((site,)), samples=seen.samples, batch_size=seen.batch_size, metric_samples=0
        )
        statistics = known.sites.get(site.name)
    note = f"fitted to the original's own inputs: {why}"
    if statistics is None:
        note = f"truncated without data: {why if seen.memory is not None else 'never called on the calibration data'}"
    weight, bias = site.weight(original), site.bias(original)
    if entry.form is Form.DENSE:
        return Solution(Factors((site.matrix(original),)), 0.0, {}, note=note)
    decomposition = method.decompose(site, entry.form.decomposed, weight, statistics, bias)
    if decomposition is None:
        raise ValueError(f"method {method.name!r} does not offer form {entry.form} here")
    return Solution(decomposition.factors(entry.rank), decomposition.relative_error(entry.rank), {}, note=note)


def _unchanged(site: Site, matrix: Tensor, solution: Solution) -> bool:
    """Whether a layer fitted anew is what it was: nothing before it has changed."""
    shift = solution.factors.shift
    moved = float((solution.factors.parts[0].reshape(matrix.shape) - matrix.double()).norm())
    return moved <= _ROUNDING * float(matrix.double().norm()) and (
        shift is None or float(shift.norm()) <= _ROUNDING * float(matrix.double().norm())
    )


def _told(entry: Entry, solution: Solution) -> Entry:
    values: dict[str, Any] = {"predicted_error": solution.error, "certificate": solution.certificate}
    if solution.note:
        values["note"] = "; ".join(filter(None, (entry.note, solution.note)))
    if entry.form.decomposed in solution.losses:
        values["predicted_loss"] = float(solution.losses[entry.form.decomposed][entry.rank])
    return replace(entry, **values)


def _store(file: Path, solved: Mapping[str, Solution]) -> None:
    note = {
        name: {
            "error": solution.error,
            "certificate": solution.certificate,
            "note": solution.note,
            "losses": {form: values.tolist() for form, values in solution.losses.items()},
        }
        for name, solution in solved.items()
    }
    write_atomically(file, to_bytes({name: Fitted(solution.factors) for name, solution in solved.items()}, note))


class _Solved(TypedDict):
    error: float
    certificate: str
    note: str
    losses: dict[str, list[float]]


def _stored(file: Path, current: nn.Module, group: Sequence[tuple[Site, Entry]]) -> dict[str, Solution] | None:
    """What an interrupted fit has left; None for no file, and for one that is not whole: it is fitted again."""
    if not file.exists():
        return None
    try:
        fitted, note = read(file)
        known, solved = checked(dict[str, _Solved], note), {}
        for site, entry in group:
            told = known[site.name]
            losses = {Form(form): torch.tensor(values).double() for form, values in told["losses"].items()}
            if any(values.dim() != 1 or len(values) <= site.max_rank(form) for form, values in losses.items()):
                raise ValueError(f"{site.name}: prices of fewer ranks than there are")
            filled(current, site, entry, fitted[site.name])  # refuses factors of other shapes
            solved[site.name] = Solution(
                fitted[site.name].factors, told["error"], losses, told["certificate"], told["note"]
            )
    except (OSError, *FAULTS):
        return None
    return solved
