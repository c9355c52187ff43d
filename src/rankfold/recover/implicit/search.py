"""Which candidate ranks best what was held out, and how far it is ahead of the baselines on what is seen last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse
from scipy.sparse import csr_array as Csr

from rankfold.recover.implicit.candidates import BASELINES, Candidate, trained, weights
from rankfold.recover.implicit.history import History
from rankfold.recover.implicit.models import Model
from rankfold.recover.implicit.ranking import Ranking, judge, paired
from rankfold.recover.implicit.splits import Split, held_out
from rankfold.recover.model import largest
from rankfold.recover.several import Progress, each
from rankfold.recover.tables.triplets import Triplets, counted


@dataclass(frozen=True)
class Ranked:
    """A candidate and how it ranked."""

    candidate: Candidate
    ranking: Ranking


@dataclass(frozen=True)
class Chosen:
    """``tried``: on the validation part, best first; ``tested``: on the test part, once, the chosen one first and then
    the best of each baseline; ``differences``: (mean, standard error) of NDCG by which it is ahead of each of those."""

    tried: tuple[Ranked, ...]
    tested: tuple[Ranked, ...]
    differences: tuple[tuple[float, float | None], ...]
    split: Split

    @property
    def best(self) -> Candidate:
        return self.tried[0].candidate


def choose(
    entries: Triplets,
    tried: Sequence[Candidate],
    *,
    split: Split,
    k: int = 10,
    seed: int = 0,
    jobs: int = 1,
    progress: Progress | None = None,
) -> Chosen:
    """Part ``entries`` twice by ``split``: candidates are compared by NDCG@k on the middle part, then the best one and
    the best of each other baseline are fitted to all but the last part and judged on it. Only rows that are known are
    judged, only columns that they have not taken are ranked; columns that nobody took count as missed. ``jobs``:
    candidates at a time, in processes of one thread each (-1: one for each core). Counts of 0 are left out."""
    entries = counted(entries)
    rest, test = held_out(entries, split, seed=seed)
    learn, validation = held_out(rest, split, seed=seed + 1)
    given = [(learn, candidate, seed, validation, k) for candidate in tried]
    found = each(_tried, given, jobs, progress, lambda number: f"trying {tried[number]}", "trying")
    found.sort(key=lambda one: -one.ranking.ndcg.mean())
    last = [found[0].candidate]
    for method in BASELINES:
        if method != last[0].method:
            last += [one.candidate for one in found if one.candidate.method == method][:1]
    tested = [Ranked(one, ranked(trained(rest, one, seed), rest, test, k)) for one in last]
    differences = tuple(paired(tested[0].ranking, one.ranking) for one in tested[1:])
    return Chosen(tuple(found), tuple(tested), differences, split)


def _tried(learn: Triplets, candidate: Candidate, seed: int, validation: Triplets, k: int) -> Ranked:
    return Ranked(candidate, ranked(trained(learn, candidate, seed), learn, validation, k))


def ranked(model: Model, known: Triplets, held: Triplets, k: int) -> Ranking:
    """How the model ranks ``held`` for rows of which ``known`` knows something."""
    history = weights(known)
    wanted = scipy.sparse.csr_array((np.ones(len(held), bool), (held.rows, held.columns)), shape=held.shape)
    users = np.flatnonzero((np.diff(history.indptr) > 0) & (np.diff(wanted.indptr) > 0))
    return judge(best_unseen(model, history, users, k), Csr(wanted), users, k)


def scored(model: Model, history: Csr | History, block: Csr) -> np.ndarray:
    """The scores (b, n) of some rows; of one without any entry, of which no model knows a taste, how many rows of the
    ``history`` took each column."""
    told = np.array(model.scores(block))
    empty = np.flatnonzero(np.diff(block.indptr) == 0)
    if len(empty):
        if isinstance(history, History):
            told[empty] = history.taken
        else:
            told[empty] = np.bincount(history.indices, minlength=history.shape[1])
    return told


def best_unseen(model: Model, history: Csr | History, rows: np.ndarray, k: int, *, seen: bool = False) -> np.ndarray:
    """(rows, ≤ k): the columns with the largest scores, those of their history left out unless ``seen``; −1: none."""
    step = max(1, (1 << 22) // history.shape[1])
    parts = []
    for start in range(0, len(rows), step):
        block = Csr(history[rows[start : start + step]])
        told = scored(model, history, block)
        if not seen:
            told[np.repeat(np.arange(block.shape[0]), np.diff(block.indptr)), block.indices] = -np.inf
        top = largest(told, k)
        parts.append(np.where(np.isfinite(np.take_along_axis(told, top, 1)), top, -1))
    return np.concatenate(parts) if parts else np.empty((0, k), dtype=np.int64)
