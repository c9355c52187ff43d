"""Layer after layer is fitted to the original network, given what comes before it by then.

Only the moments of one group of layers that read the same tensor are in memory at a time. What is finished is kept on
disk where there is a directory, so that an interrupted fit goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from rankfold.batches import batches_of, copied, forward, size_of
from rankfold.compress.applying.apply import prepare_
from rankfold.compress.applying.layer import filled, place_
from rankfold.compress.layerwise.astray import FEW, astray
from rankfold.compress.layerwise.kept import keeping
from rankfold.compress.layerwise.pairs import FOLDS, Pairs, bytes_beside, bytes_needed
from rankfold.compress.layerwise.shelf import Shelf
from rankfold.compress.layerwise.solved import read_solved, write_solved
from rankfold.compress.layerwise.sweep import Passes, Sweep
from rankfold.compress.layerwise.task import Task, alone, told, unchanged
from rankfold.compress.methods.method import Solution
from rankfold.compress.planning.fitted import Fitted
from rankfold.compress.planning.plan import Entry
from rankfold.costs import evaluating
from rankfold.layers import SplitAttention, SplitCell, SplitRecurrent
from rankfold.linalg import NotConvergedError
from rankfold.observe import PAGES, AnotherWay, Chain, Pages, Span, find_chain, intercepting
from rankfold.observe.chain import MANY
from rankfold.observe.pages import spans_of
from rankfold.run.processes.memory import give_back
from rankfold.sites import Form, Site, opened

NO_CHAIN = (
    "no chain of blocks was found in this network or in a part of it: each of {groups} groups of layers was "
    "fitted with a run from the beginning, so that the cost grows with the square of their number"
)


@dataclass(frozen=True)
class FittedNetwork:
    """``network``: the compressed copy. ``entries``: with their measured errors. ``losses``: prices at every rank.

    ``loss``: divergence of the outputs on held-out samples; ``alone``: that of the network with the factors of one
    shot, made from the same samples, where the method weighs them. ``passes``: what it took.
    """

    network: nn.Module
    entries: tuple[Entry, ...]
    fitted: Mapping[str, Fitted]
    losses: Mapping[tuple[str, Form], Tensor]
    passes: Passes = field(default_factory=Passes)
    loss: float = 0.0
    alone: float | None = None
    notes: tuple[str, ...] = ()


def fit_layers(task: Task, entries: Sequence[Entry]) -> FittedNetwork:
    """Fit every entry that is not kept, in the order in which the sites are called; the original is left as it is.

    Cost: for each block of the network as many passes of that block as it has groups of sites that read the same
    tensor, and two; its fits. A network that is no chain of blocks is one block. Raises ``OSError`` in one line, before
    anything is fitted, where there is no room for the activations at the borders.
    """
    original = task.original
    changed = [task.found[entry.site] for entry in entries if entry.form is not Form.KEEP]
    with ExitStack() as stack:
        stack.enter_context(evaluating(original))
        stack.enter_context(opened(original))
        few = next(batches_of(task.seen.data, 2, 2))
        names = [site.name for site in changed]
        pages = getattr(original, PAGES, None)
        if pages is not None:
            chain = replace(pages.chain, spans=spans_of(pages.chain, names))
            return _Fit(task, entries, chain, pages=pages).run(few)
        chain = find_chain(original, few, names)
        tried = next(batches_of(task.seen.data, FEW, FEW))
        lost = astray(partial(forward, original, tried), {original.get_submodule(site.name): site for site in changed})
        try:
            return _Fit(task, entries, chain, lost).run(few)
        except AnotherWay:  # the calls depend on the data
            groups = tuple(group for span in chain.spans for group in span.groups)
            whole = Chain(chain.calls, (Span(None, None, groups),), steady=False)
            return _Fit(task, entries, whole, lost).run(few)


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


class _Fit:
    """One fit of all layers; those ``astray`` have no rows that can be paired."""

    def __init__(
        self, task: Task, entries: Sequence[Entry], chain: Chain, astray: frozenset[str] = frozenset(),
        pages: Pages | None = None,
    ) -> None:  # fmt: skip
        self.astray = astray
        self.task, self.order, self.chain = task, [entry.site for entry in entries], chain
        self.shelf = None if pages is None else Shelf(pages, task.found)
        self.known = {entry.site: entry for entry in entries}
        self.changed = tuple(entry for entry in entries if entry.form is not Form.KEEP)
        self.current = copied(task.original)
        prepare_(self.current, self.changed)
        self.fitted: dict[str, Fitted] = {}
        self.alone: dict[str, Fitted] = {}
        self.losses: dict[tuple[str, Form], Tensor] = {}
        self.files = self.done = 0
        self.verdict: tuple[float, float | None] = 0.0, None
        self.memory = task.seen.memory  # for the pairs of a group of sites, and fitting them
        self.weighs = bool(getattr(task.method, "one_shot", False)) and bool(task.judges)

    def run(self, few: Any) -> FittedNetwork:
        task, spans = self.task, self.chain.spans
        sites = {entry.site: task.found[entry.site] for entry in self.changed}
        reached = {name for span in spans for group in span.groups for name in group}
        with ExitStack() as stack:
            stack.enter_context(evaluating(self.current))
            stack.enter_context(opened(self.current))
            stack.enter_context(intercepting())
            limit = task.seen.memory if self.shelf is None else 0
            kept = stack.enter_context(keeping(self._needed(few), limit, task.directory))
            beyond = self._beyond(sites)
            if self.memory is not None:
                inside = [[[sites[name] for name in group if name in sites] for group in s.groups] for s in spans]
                self.memory -= max((bytes_beside(groups, beyond) for groups in inside), default=0)
                beyond = self._beyond(sites)
            sweep = self.sweep = Sweep(
                task.original, self.current, self.chain, sites, task.seen, task.judges, kept, task.method.rows,
                self.weighs, beyond, () if self.shelf is None else self.shelf.pages.watched,
            )  # fmt: skip
            for number, span in enumerate(spans):
                self._block(sweep, number, span)
            for name in sites.keys() - reached:
                self._placed(self._solved([sites[name]], dict))
            loss, alone = self._judged(sweep) if self.shelf is None else self.verdict
        task.progress(str(sweep.passes), len(self.changed), len(self.changed))
        order = tuple(self.known[name] for name in self.order)
        many = [len(span.groups) for span in spans if len(span.groups) > MANY and not self.chain.steady]
        notes = (NO_CHAIN.format(groups=max(many)),) if many else ()
        return FittedNetwork(self.current, order, self.fitted, self.losses, sweep.passes, loss, alone, notes)

    def _beyond(self, sites: Mapping[str, Site]) -> frozenset[str]:
        """Those of which no pairs are gathered: the original's moments are instead."""
        return self.astray | {name for name, site in sites.items() if not self._fits([site])}

    def _block(self, sweep: Sweep, number: int, span: Span) -> None:
        """Fit the groups of one block and go on to the next. Of one whose weights come from the disk what has become
        of them goes there; where it is there already, only what comes behind the block is made again."""
        if self.shelf is None:
            self._groups(sweep, span)
            sweep.run_current(span)
            return
        names = [name for group in span.groups for name in group]
        self.shelf.pages.turn(number, self.current)
        first, ready = self.files, self.shelf.ready(number, self.current, [self.known[name] for name in names])
        if ready is None:
            self._groups(sweep, span)
        else:
            self.known |= ready
            self.files, self.done = self.files + len(self._parts(span)), self.done + len(names)
            sweep.run_original(span, [])
        sweep.run_current(span)
        if ready is None and self.task.seen.team.first:
            self.shelf.put(number, self.current, [self.known[name] for name in names])
            for index in range(first, self.files):
                self._unlink(index)
        if span.end is None:
            self.verdict = self._judged(sweep)
            self.shelf.pages.scores = sweep.scores(self.task.objective)
        self.shelf.clear(self.current, names)
        give_back()

    def _parts(self, span: Span) -> list[list[Site]]:
        groups = [[self.task.found[name] for name in group] for group in span.groups]
        return [part for group in groups for part in partition(group, bytes_needed, self.memory)]

    def _groups(self, sweep: Sweep, span: Span) -> None:
        """Of a block with many groups what the original gives is kept for one at a time; what is fitted already is not
        gathered again."""
        many, first, parts = len(span.groups) > MANY, True, self._parts(span)
        if not parts:
            sweep.run_original(span, [])
        for part in parts:
            names = [site.name for site in part]
            ready = self._stored(part)
            if ready is None or first:
                if many or first:
                    sweep.run_original(span, [names] if many else span.groups)
                first = False
            folds = self._folds(part)
            self._placed(self._solved(part, partial(sweep.pairs, span, names, folds)) if ready is None else ready)
            sweep.let_go(names)
            if self.shelf is not None:  # the next part needs the room
                give_back()

    def _folds(self, part: Sequence[Site]) -> int:
        return FOLDS if self.memory is None or sum(map(bytes_needed, part)) <= self.memory else 1

    def _needed(self, few: Any) -> int:
        """Bytes of what is kept at two borders and of one block's sites, at most."""
        task, calls = self.task, self.chain.calls
        watched = () if self.shelf is None else self.shelf.pages.watched
        samples = sum(map(size_of, (*(batch for _, batch in task.seen.batches()), *task.judges, *watched)))
        by_name = {call.name: call.size for call in calls}
        borders = [sum(calls[n].size for n in span.end.state) for span in self.chain.spans if span.end is not None]
        inside = [
            max(sum(2 * by_name[name] for name in group) for group in span.groups)
            if len(span.groups) > MANY
            else sum(2 * by_name[name] for group in span.groups for name in group)
            for span in self.chain.spans
        ]
        cut = max((call.alive for call in calls), default=0) if self.chain.steady else 0
        cut *= 2 if any(len(span.groups) > MANY for span in self.chain.spans) else 1  # of the original, too
        return (2 * max(borders, default=0) + max(inside, default=0) + cut) * samples // max(size_of(few), 1)

    def _solved(self, group: Sequence[Site], gather: Callable[[], Mapping[str, Pairs]]) -> dict[str, Solution]:
        task = self.task
        fits = self._fits(group)
        pairs = dict(gather()) if fits else {}
        solved = {}
        for site in group:
            entry, weight, bias = self.known[site.name], site.weight(task.original), site.bias(task.original)
            free = entry.bias or task.absorbers.get(site.name) is not None
            try:
                if site.name in pairs:
                    known = replace(pairs.pop(site.name), free=free, tokens=task.tokens)
                    made = task.method.solve(
                        site, entry.form.decomposed, entry.rank, weight, bias, known, task.metrics.get(site.name)
                    )
                else:
                    why = self._unpaired(site) if fits else "its moments take more than the bound of memory"
                    made = alone(task, site, entry, why, self.sweep.aside_of(site.name))
                solved[site.name] = made.held(free)
            except (NotConvergedError, ValueError) as error:
                raise ValueError(
                    f"{site.title}: {error}: leave the layer out with where= (--exclude), or use "
                    "method='project' (--method project)"
                ) from error
        file = self._file()
        if file is not None and task.seen.team.first:
            write_solved(file, solved)
        return solved

    def _unpaired(self, site: Site) -> str:
        if site.name in self.astray:
            return "data decide which rows it is given, so that its inputs and outputs cannot be paired"
        return f"inputs and outputs of {site.layer.kind} are not paired"

    def _fits(self, group: Sequence[Site]) -> bool:
        return self.memory is None or sum(bytes_needed(site, 1) for site in group) <= self.memory

    def _file(self, number: int | None = None) -> Path | None:
        number = self.files if number is None else number
        return None if self.task.directory is None else self.task.directory / f"{number:04d}.safetensors"

    def _unlink(self, number: int) -> None:
        file = self._file(number)
        if file is not None:
            file.unlink(missing_ok=True)

    def _stored(self, group: Sequence[Site]) -> dict[str, Solution] | None:
        file = self._file()
        return None if file is None else read_solved(file, self.current, [(s, self.known[s.name]) for s in group])

    def _placed(self, solved: Mapping[str, Solution]) -> None:
        """The fitted layers of a group take their places in the compressed network."""
        self.files += 1
        ready = []
        for name, solution in solved.items():
            site, entry = self.task.found[name], self.known[name]
            self.done += 1
            absorber = None if entry.bias else self.task.absorbers.get(name)
            if solution.alone is not None and self.shelf is None:
                self.alone[name] = Fitted(solution.alone, absorber)
            if entry.form is Form.DENSE and unchanged(site, site.matrix(self.task.original), solution):
                self.known[name] = replace(entry, form=Form.KEEP, note="")
                continue
            made = Fitted(solution.factors, absorber)
            if self.shelf is None:  # else it is on the disk
                self.fitted[name] = made
            ready.append((name, filled(self.current, site, entry, made), made))
            offered = (form for form in site.forms if form.decomposed in solution.losses)
            self.losses |= {(name, form): solution.losses[form.decomposed] for form in offered}
            self.known[name] = told(entry, solution, priced=not self.task.tokens)
        place_(self.current, ready)
        self.task.progress("fitting", self.done, len(self.changed))

    def _judged(self, sweep: Sweep) -> tuple[float, float | None]:
        """Divergence on held-out samples, also of the network with the factors of one shot."""
        if not (self.task.judges and self.chain.spans):  # where no layer was called there is nothing to run
            return 0.0, None
        shot = self._in_one_shot() if self.weighs and self.shelf is None else None
        loss, *others = sweep.losses(self.task.objective, [] if shot is None else [shot])
        return loss, others[0] if others else None

    def _in_one_shot(self) -> nn.Module | None:
        """The network with the factors that are not fitted layer after layer."""
        entries = [entry for entry in self.changed if entry.form is not Form.DENSE]
        if any(entry.site not in self.alone for entry in entries):
            return None
        network = copied(self.task.original)
        prepare_(network, tuple(entries))
        ready = []
        for entry in entries:
            made = self.alone[entry.site]
            ready.append((entry.site, filled(network, self.task.found[entry.site], entry, made), made))
        place_(network, ready)
        return network.eval()
