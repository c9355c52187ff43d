"""Implicit feedback ranked: candidates compared on what was held out, baselines beside, the best one fitted to all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rankfold.pipeline.recovery.advice import other_settings, same_lists
from rankfold.pipeline.recovery.writing import TOP, save_report, table
from rankfold.recover import Candidate, ImplicitFeedback, Triplets, choose
from rankfold.recover.implicit.search import Progress, Ranked, best_unseen
from rankfold.recover.implicit.splits import Split
from rankfold.run.disk.files import write_atomically


def rank_unseen(
    entries: Triplets,
    tried: Sequence[Candidate],
    out: Path,
    *,
    split: Split,
    k: int = 10,
    top: int = 10,
    seed: int = 0,
    jobs: int = 1,
    source: str = "",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Choose among ``tried`` by NDCG@k, judge the best one and the baselines on what came last, fit it to all entries
    and write the ``top`` best unseen columns of every row into ``out``. Returns what ``recover.json`` holds."""
    found = choose(entries, tried, split=split, k=k, seed=seed, jobs=jobs, progress=progress)
    best = found.best
    model = ImplicitFeedback(
        best.method,
        rank=best.rank,
        alpha=best.alpha,
        regularization=best.regularization,
        iterations=best.iterations,
        count=best.count,
        half_life=best.half_life,
        random_state=seed,
    ).fit(entries)
    report: dict[str, Any] = {
        "file": source,
        "entries": len(entries),
        "shape": list(entries.shape),
        "remarks": list(entries.remarks),
        "implicit": True,
        "split": split,
        "k": k,
        "chosen": str(best),
        "method": best.method,
        "tried": [_told(one) for one in found.tried],
        "tested": [_told(one) for one in found.tested],
        "ahead": [
            {"of": str(one.candidate), "ndcg": mean, "standard_error": error}
            for one, (mean, error) in zip(found.tested[1:], found.differences, strict=True)
        ],
        "seed": seed,
    }
    advice = other_settings([one.candidate for one in found.tried]), same_lists(found.tried)
    if any(advice):
        report["advice"] = "\n".join(filter(None, advice))
    if top:
        write_atomically(out / TOP, _top(model, top, entries.called))
    save_report(report, out, (TOP,) if top else ())
    return report


def _told(one: Ranked) -> dict[str, Any]:
    return {"choice": str(one.candidate), "rows": len(one.ranking.users), **one.ranking.figures()}


def _top(model: ImplicitFeedback, count: int, called: tuple[str, str]) -> bytes:
    best = best_unseen(model.model_, model.history_, np.arange(len(model.row_names_)), count)
    return table(
        (*called, "place"),
        (
            (name, model.column_names_[column], place)
            for name, columns in zip(model.row_names_, best, strict=True)
            for place, column in enumerate(columns, 1)
            if column >= 0
        ),
    )
