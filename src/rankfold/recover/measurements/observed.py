"""What a user may hand to ``fit``: an array with NaN where nothing is known, a sparse matrix, or an operator with its
measurements."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse
import torch

from rankfold.recover.measurements.arrays import Array, like, norm, numpy
from rankfold.recover.measurements.lazy import Lazy
from rankfold.recover.measurements.operators import Operator, entries

UNSURE = {"bsr": "fills its blocks with zeros", "dia": "leaves out zeros that were stored"}  # formats, and why


def observed(x: np.ndarray | scipy.sparse.spmatrix, kind: Array | None = None) -> tuple[Operator, Array]:
    """The operator and the measurements of the known entries of ``x``: those that are stored, and are not NaN.

    Raises ``ValueError`` where nothing is known, and for infinite entries, with the place of the first.
    """
    if scipy.sparse.issparse(x):
        known = by_rows(x)
        rows = np.repeat(np.arange(x.shape[0], dtype=np.int32), np.diff(known.indptr))
        columns, values = known.indices, known.data
        there = ~np.isnan(values)
        if not there.all():
            rows, columns, values = rows[there], columns[there], values[there]
    else:
        rows, columns = (index.astype(np.int32) for index in np.nonzero(~np.isnan(x)))
        values = x[rows, columns]
    if not len(values):
        raise ValueError(f"nothing is known of this matrix of shape {x.shape}: every entry is missing")
    wrong = np.flatnonzero(~np.isfinite(values))
    if len(wrong):
        at = wrong[0]
        raise ValueError(
            f"the entry at row {rows[at]}, column {columns[at]} is {values[at]}: leave it out, or write NaN if "
            "it is unknown"
        )
    return entries(x.shape, rows, columns, values, kind)


def by_rows(x: scipy.sparse.spmatrix) -> scipy.sparse.csr_array:
    """The same as an array, in order; repeated coordinates are summed, as scipy means them."""
    known = scipy.sparse.csr_array(x)
    if not known.has_canonical_format:
        known = known.copy()
        known.sum_duplicates()
    return known


def plain(x: Any) -> Any:
    """``x`` with NaN for what NumPy masks and pandas calls NA, and what torch and pandas store sparsely as scipy does;
    anything else as it is. ``ValueError`` for what holds no real numbers, and for entries that are no matrix."""
    check_real(getattr(x, "dtypes", getattr(x, "dtype", None)))
    if isinstance(x, torch.Tensor):
        return numpy(x) if x.layout == torch.strided else _stored(x)
    if scipy.sparse.issparse(x) and x.format in UNSURE:
        raise ValueError(
            f"a sparse matrix of the format {x.format!r} does not say which zeros are known, as it {UNSURE[x.format]}: "
            "give it as the coo, csr or csc array that it was made from"
        )
    if isinstance(x, np.ma.MaskedArray):
        return np.ma.filled(x.astype(np.result_type(x.dtype, np.float32)), np.nan)
    if hasattr(x, "isna") and hasattr(x, "to_numpy") and hasattr(x, "dtypes"):
        if getattr(x.index, "nlevels", 1) == 2 and x.ndim == 1:
            raise ValueError("a Series with two levels of index is a list of entries: its matrix is series.unstack()")
        kinds = list(np.atleast_1d(x.dtypes))
        if all(getattr(kind, "fill_value", None) == 0 for kind in kinds):  # what is not stored is not known
            return x.sparse.to_coo().tocsr()
        if any(not isinstance(kind, np.dtype) or kind.kind == "O" for kind in kinds):
            return x.astype(object).where(x.notna(), np.nan).astype(np.float64)
    return x


def _stored(x: torch.Tensor) -> scipy.sparse.coo_array:
    """What a sparse tensor stores; repeated coordinates are summed."""
    if x.layout in (torch.sparse_bsr, torch.sparse_bsc):
        raise ValueError(
            f"a tensor of the layout {x.layout} does not say which zeros are known, as it {UNSURE['bsr']}: give it as "
            "the sparse_coo or sparse_csr tensor that it was made from"
        )
    known = x.detach().cpu().to_sparse_coo().coalesce()
    return scipy.sparse.coo_array((numpy(known.values()), tuple(numpy(known.indices()))), tuple(known.shape))


def check_real(dtypes: Any) -> None:
    """``ValueError`` for columns or an array of dates, of durations, or of what is no real number."""
    kinds = {getattr(each, "kind", "") for each in np.atleast_1d(np.asarray(dtypes, dtype=object))}
    if kinds & {"m", "M"}:
        raise ValueError("values must be numbers, and these are dates or durations: give them as numbers of a unit")
    if "c" in kinds:  # the beginning is what scikit-learn asks of its estimators
        raise ValueError("Complex data not supported: values must be real numbers: give an array of float64")
    if "V" in kinds:
        raise ValueError(
            "values must be real numbers, and these are records with named fields: give an array of float64"
        )


def measured(operator: Operator, y: Any, kind: Array) -> Array:
    """Measurements ``y`` as ``operator`` takes them. ``ValueError`` for another number of them, or values not
    finite."""
    if isinstance(y, Lazy):
        return y
    y = like(y, kind)
    vector = operator.push(kind_of((operator.shape[0], 1), kind), kind_of((1, operator.shape[1]), kind))
    if tuple(y.shape) != tuple(vector.shape):
        raise ValueError(f"{tuple(y.shape)} measurements were given for an operator that makes {tuple(vector.shape)}")
    wrong = np.argwhere(~np.isfinite(numpy(y)))
    if len(wrong):
        raise ValueError(
            f"measurement {', '.join(map(str, wrong[0]))} is NaN or infinite: leave it out, and its matrix too"
        )
    return y


def kind_of(shape: tuple[int, int], kind: Array) -> Array:
    """Zeros of the kind of ``kind``."""
    return like(np.zeros(shape), kind)


def kind_for(dtype: np.dtype | type, device: str | None) -> Array:
    """An empty array that says which dtype and device the work is to use: NumPy without ``device``, torch with one."""
    dtype = np.dtype(dtype)
    if device is None:
        return np.empty(0, dtype)
    try:
        one = torch.ones(1, dtype=torch.float32 if dtype == np.float32 else torch.float64, device=device)
        one.item()
    except (RuntimeError, AssertionError, NotImplementedError, TypeError):  # torch's words fill a page
        raise ValueError(
            f"device: torch cannot compute in {dtype} on {device!r} here: give 'cpu', 'cuda' where there is one, or "
            "None for NumPy"
        ) from None
    return one[:0]


def held_apart(
    operator: Operator, y: Array, fraction: float, seed: int
) -> tuple[Operator, Array, tuple[Operator, Array] | None]:
    """The measurements in two: those to learn from, and a random ``fraction`` of at least one to judge by."""
    if fraction <= 0:
        return operator, y, None
    count = max(1, round(fraction * operator.count))
    if count >= operator.count:
        raise ValueError(
            f"validation_fraction {fraction:g} leaves none of the {operator.count} measurements to learn from: make "
            "it smaller"
        )
    return operator.apart(y, count, np.random.default_rng(seed))


def zero(y: Array) -> bool:
    """Whether every measurement is zero: the matrix is then taken to be zero."""
    return norm(y) == 0.0
