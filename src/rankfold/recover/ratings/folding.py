"""Rows that come after a fit: each is met by the factors of the columns, which stay."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from rankfold.recover.model import FactorModel
from rankfold.recover.tables.triplets import Triplets


def with_rows(model: FactorModel, entries: Triplets, noise: float) -> FactorModel:
    """``model`` with the rows of ``entries``, none of which it knows; entries in columns that it does not know are left
    out.

    A row x is drawn to the known ones: its prior is their mean μ and covariance C, and x = μ + C^½ z with the z that
    minimises Σ (r − x·v)² / noise² + ‖z‖². What does not vary among known rows (the column of ones beside the biases of
    columns) so stays as it is. Their uncertainty is that of a row of which nothing is known. Cost O(entries k² + k³) a
    row.
    """
    known = model.left[:-1].astype(np.float64)
    mean = model.left[-1].astype(np.float64)  # of a row of which nothing is known
    values, vectors = np.linalg.eigh(np.cov(known.T, bias=True).reshape(known.shape[1], -1))
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    _, columns = entries.numbered(model.row_names, model.column_names)
    new = np.tile(mean, (entries.shape[0], 1))
    order = np.argsort(entries.rows, kind="stable")
    for row, some in enumerate(np.split(order, np.cumsum(np.bincount(entries.rows, minlength=len(new)))[:-1])):
        at = some[columns[some] >= 0]
        if len(at):
            v = model.right[:, columns[at]].T
            rest = entries.values[at] - model.offset - v @ mean
            images = v @ root / noise
            gram = images.T @ images + np.eye(root.shape[1])
            new[row] += root @ np.linalg.solve(gram, images.T @ rest / noise)
    spread = None if model.spread is None else model.spread.with_strangers(len(new), noise)
    left = np.concatenate([model.left[:-1], new.astype(model.left.dtype), model.left[-1:]])
    return replace(model, left=left, row_names=(*model.row_names, *entries.row_names), spread=spread)
