"""How well a ranking of unseen columns meets what was held out: recall, NDCG and mean average precision at k."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse


@dataclass(frozen=True, eq=False)
class Ranking:
    """Of each of ``users`` (count,): recall@k, NDCG@k, average precision@k (count,); their means are the figures."""

    k: int
    users: np.ndarray
    recall: np.ndarray
    ndcg: np.ndarray
    precision: np.ndarray

    def figures(self) -> dict[str, float | None]:
        """Means over users, and the standard error of that of NDCG, None for one user."""
        error = float(self.ndcg.std(ddof=1) / len(self.ndcg) ** 0.5) if len(self.ndcg) > 1 else None
        return {
            "ndcg": float(self.ndcg.mean()),
            "recall": float(self.recall.mean()),
            "map": float(self.precision.mean()),
            "ndcg_error": error,
        }


def judge(top: np.ndarray, held: scipy.sparse.csr_array, users: np.ndarray, k: int) -> Ranking:
    """``top`` (count, ≤ k): the columns put first for ``users`` (count,), −1 for none; ``held`` (all rows, n): what was
    held out, at least one column of each of them.

    Recall: hits over the number held out. NDCG: Σ hit_i / log₂(i + 1) over the most that can be had. Average precision:
    Σ hit_i · precision_i over the most hits that can be had (MAP is its mean).
    """
    wanted = np.diff(held.indptr)[users]
    hits = np.zeros(top.shape)
    for number, (user, columns) in enumerate(zip(users, top, strict=True)):
        hits[number] = np.isin(columns, held.indices[held.indptr[user] : held.indptr[user + 1]])
    places = np.arange(1, top.shape[1] + 1)
    discounts = 1.0 / np.log2(places + 1)
    most = np.minimum(wanted, k)
    ideal = np.cumsum(1.0 / np.log2(np.arange(1, k + 1) + 1))[most - 1]
    precision = np.cumsum(hits, 1) / places
    return Ranking(k, users, hits.sum(1) / wanted, (hits * discounts).sum(1) / ideal, (hits * precision).sum(1) / most)


def paired(one: Ranking, other: Ranking) -> tuple[float, float | None]:
    """Mean difference of NDCG of the same users, and its standard error, None for one user."""
    difference = one.ndcg - other.ndcg
    error = float(difference.std(ddof=1) / len(difference) ** 0.5) if len(difference) > 1 else None
    return float(difference.mean()), error
