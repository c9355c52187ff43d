"""What is kept of a recovery: two factors with the names of their rows and columns, to predict from and to save."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from typing_extensions import TypedDict

from rankfold.run.container import Kind, checked, parsed


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
            np.array([row_at.get(str(name), -1) for name in rows], dtype=np.int64),
            np.array([column_at.get(str(name), -1) for name in columns], dtype=np.int64),
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

    def to_bytes(self) -> bytes:
        """A safetensors file; the names and the range are in its header."""
        about = _About(
            kind="rankfold factors",
            offset=repr(self.offset),
            low=repr(self.low),
            high=repr(self.high),
            rows=json.dumps(self.row_names, ensure_ascii=False),
            columns=json.dumps(self.column_names, ensure_ascii=False),
        )
        return _FILE.write({"left": torch.tensor(self.left), "right": torch.tensor(self.right)}, about)

    @staticmethod
    def from_bytes(data: bytes, name: str = "") -> FactorModel:
        """The model of `to_bytes`. Raises ``ValueError``, which names the file if ``name`` does, for anything else."""
        return _FILE.read(data, _built, name)


class _About(TypedDict):
    kind: str
    offset: str
    low: str
    high: str
    rows: str
    columns: str


_FILE = Kind[_About]("", _About, "factors saved by rankfold recover", "recover them again")


def _built(tensors: Mapping[str, Tensor], about: _About) -> FactorModel:
    names = [checked(tuple[str, ...], parsed(about[axis])) for axis in ("rows", "columns")]
    left, right = (tensors[side].numpy() for side in ("left", "right"))
    if left.ndim != 2 or right.ndim != 2 or left.shape[1] != right.shape[0]:
        raise ValueError(f"left {left.shape} and right {right.shape} are no factors of one matrix")
    if (left.shape[0], right.shape[1]) != (len(names[0]) + 1, len(names[1]) + 1):
        raise ValueError(f"factors of {left.shape[0]} × {right.shape[1]} for {len(names[0])} and {len(names[1])} names")
    return FactorModel(left, right, float(about["offset"]), float(about["low"]), float(about["high"]), *names)


def narrowed(left: np.ndarray, right: np.ndarray, keep: float = 1e-5) -> tuple[np.ndarray, np.ndarray]:
    """Factors of the same product with as few columns as lose at most ``keep`` of its energy. O((m + n) k²)."""
    q, a = np.linalg.qr(left)
    p, b = np.linalg.qr(right.T)
    u, s, vt = np.linalg.svd(a @ b.T)
    lost = np.cumsum((s**2)[::-1])[::-1]
    k = max(1, int((lost > keep * lost[0]).sum()))
    root = np.sqrt(s[:k])
    return q @ u[:, :k] * root, (p @ vt[:k].T * root).T
