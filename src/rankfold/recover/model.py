"""What is kept of a recovery: two factors with the names of their rows and columns, to predict from and to save."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse
from safetensors import SafetensorError
from safetensors.numpy import load, save

from rankfold.recover.tables.names import name_of


@dataclass(frozen=True, eq=False)
class FactorModel:
    """value ≈ clip(offset + left_i · right_j, low, high): left (m + 1, k), right (k, n + 1).

    The last row and the last column stand for those that have no entry: an average one.
    """

    left: np.ndarray
    right: np.ndarray
    offset: float
    low: float
    high: float
    row_names: tuple[str, ...]
    column_names: tuple[str, ...]

    @property
    def rank(self) -> int:
        return int(self.left.shape[1])

    def at(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Predictions (count,) at pairs of indices; −1 is one that is not known."""
        rows = np.where(np.asarray(rows) < 0, len(self.row_names), rows)
        columns = np.where(np.asarray(columns) < 0, len(self.column_names), columns)
        told = np.einsum("ij,ij->i", self.left[rows], self.right.T[columns])
        return np.clip(self.offset + told, self.low, self.high)

    def predict(self, rows: Sequence[str], columns: Sequence[str]) -> np.ndarray:
        """Predictions (count,) for pairs of names; unknown ones get the prediction for an average row or column."""
        row_at = {name: index for index, name in enumerate(self.row_names)}
        column_at = {name: index for index, name in enumerate(self.column_names)}
        return self.at(
            np.array([row_at.get(name_of(name), -1) for name in rows], dtype=np.int64),
            np.array([column_at.get(name_of(name), -1) for name in columns], dtype=np.int64),
        )

    def top(self, row: str, count: int, without: Sequence[int] = ()) -> list[tuple[str, float]]:
        """The ``count`` columns with the largest predictions for ``row``, except those numbered ``without``."""
        at = self.row_names.index(row) if row in self.row_names else -1
        columns = np.arange(len(self.column_names))
        # unclipped: many predictions may lie at the upper end
        told = self.offset + self.left[at] @ self.right[:, :-1]
        told[list(without)] = -np.inf
        best = columns[np.argsort(-told, kind="stable")[:count]]
        return [(self.column_names[j], float(np.clip(told[j], self.low, self.high))) for j in best if told[j] > -np.inf]

    def best(self, count: int, rows: np.ndarray, columns: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """(row, its ``count`` best columns, predictions) for every row, without its entries at ``rows``, ``columns``.

        Cost O(m n k) in blocks of 16 MB.
        """
        seen = scipy.sparse.csr_array(
            (np.ones(len(rows), bool), (rows, columns)), shape=(len(self.row_names), len(self.column_names))
        )
        step = max(1, (1 << 21) // len(self.column_names))
        for start in range(0, len(self.row_names), step):
            block = seen[start : start + step]
            # unclipped: many predictions may lie at the upper end
            told = self.offset + self.left[start : start + block.shape[0]] @ self.right[:, :-1]
            told[np.repeat(np.arange(block.shape[0]), np.diff(block.indptr)), block.indices] = -np.inf
            for number, at in enumerate(largest(told, count)):
                at = at[np.isfinite(told[number, at])]
                yield start + number, at, np.clip(told[number, at], self.low, self.high)

    def to_bytes(self) -> bytes:
        """A safetensors file; the names and the range are in its header."""
        about = {
            "kind": "rankfold factors",
            "offset": repr(self.offset),
            "low": repr(self.low),
            "high": repr(self.high),
            "rows": json.dumps(self.row_names, ensure_ascii=False),
            "columns": json.dumps(self.column_names, ensure_ascii=False),
        }
        tensors = {"left": np.ascontiguousarray(self.left), "right": np.ascontiguousarray(self.right)}
        return save(tensors, metadata=about)

    @staticmethod
    def from_bytes(data: bytes) -> FactorModel:
        """The model of `to_bytes`. Raises ``ValueError`` for anything else."""
        try:
            tensors = load(data)
            size = int.from_bytes(data[:8], "little")
            about = json.loads(data[8 : 8 + size])["__metadata__"]
            return FactorModel(
                tensors["left"],
                tensors["right"],
                float(about["offset"]),
                float(about["low"]),
                float(about["high"]),
                tuple(json.loads(about["rows"])),
                tuple(json.loads(about["columns"])),
            )
        except (SafetensorError, KeyError, ValueError) as error:
            raise ValueError(f"these are not factors saved by rankfold recover ({error})") from None


def narrowed(left: np.ndarray, right: np.ndarray, keep: float = 1e-5) -> tuple[np.ndarray, np.ndarray]:
    """Factors of the same product with as few columns as lose at most ``keep`` of its energy. O((m + n) k²)."""
    q, a = np.linalg.qr(left)
    p, b = np.linalg.qr(right.T)
    u, s, vt = np.linalg.svd(a @ b.T)
    lost = np.cumsum((s**2)[::-1])[::-1]
    k = max(1, int((lost > keep * lost[0]).sum()))
    root = np.sqrt(s[:k])
    return q @ u[:, :k] * root, (p @ vt[:k].T * root).T


def largest(scores: np.ndarray, count: int) -> np.ndarray:
    """(rows, ≤ count): where the largest numbers of each row stand, the largest first, of equal ones the leftmost."""
    size = scores.shape[1]
    count = min(count, size)
    if count < size // 4:
        # of equal ones at the border any may be among the candidates: a few more, then sorted
        some = np.sort(np.argpartition(-scores, min(2 * count, size - 1), axis=1)[:, : 2 * count], axis=1)
    else:
        some = np.broadcast_to(np.arange(size), scores.shape)
    order = np.argsort(-np.take_along_axis(scores, some, 1), axis=1, kind="stable")[:, :count]
    return np.take_along_axis(some, order, 1)
