"""Names of rows and columns: text, kept as written. Numbers serve for sorting only."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import date
from numbers import Integral, Real
from typing import Any

import numpy as np
import pandas as pd

_WHOLE = re.compile(r"-?[0-9]{1,300}")


def name_of(value: Any) -> str:
    """The name that a value stands for: text as written, 7 and 7.0 both "7", and a date one text whichever library it
    is of: "2020-01-31", or "2020-01-31 12:30:00" where it has a time."""
    if isinstance(value, str):
        return str(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    if isinstance(value, bool | np.bool_):
        return str(bool(value))
    if isinstance(value, date | np.datetime64):
        return _date(value)
    if isinstance(value, Integral):
        return str(int(value))
    if isinstance(value, Real):
        number = float(value)
        return str(int(number)) if number.is_integer() else repr(number)
    return str(value)


def _date(value: date | np.datetime64) -> str:
    """As ``str`` of datetime and of pandas, a table written by pandas and Parquet have it. NumPy's own says how precise
    an array is, not when: its elements and those of a series of pandas would be different names."""
    if isinstance(value, np.datetime64):
        try:
            value = pd.Timestamp(value)
        except ValueError:  # before the year 1 and after 9999
            return str(value)
    return str(value).removesuffix(" 00:00:00")


def _is_missing(value: Any) -> bool:
    return not isinstance(value, str | int) and pd.isna(value) is True


def names_of(given: Any) -> list[str]:
    """The names that are ``given``, of which a text or a number is one, and not its letters. Raises ``ValueError`` for
    what lies deeper than a list, and for one that is missing (None, NaN, NaT)."""
    if isinstance(given, str | bytes) or not hasattr(given, "__iter__"):
        found = [given]
    else:
        size = getattr(given, "ndim", 1)
        found = [given[()]] if size == 0 else list(given) if size == 1 else [()]
    if any(isinstance(value, list | tuple | np.ndarray) for value in found):
        raise ValueError(
            "give one name of a row or column, or a list of them: what was given lies deeper, as pairs do (rows and "
            "columns are two arguments)"
        )
    missing = next((at for at, value in enumerate(found) if _is_missing(value)), None)
    if missing is not None:
        raise ValueError(f"name {missing} is missing ({found[missing]}): leave it out, or give a name")
    return [name_of(value) for value in found]


def paired(rows: Any, columns: Any) -> tuple[np.ndarray, np.ndarray]:
    """(count,) both: the numbers of rows and of columns, a single one beside each of the others. Raises ``ValueError``
    for names, and where there are not as many."""
    found = np.atleast_1d(rows), np.atleast_1d(columns)
    sizes = found[0].size, found[1].size
    if any(index.dtype.kind not in "iu" for index in found if index.size) or any(index.ndim > 1 for index in found):
        raise ValueError(
            "rows and columns are whole numbers here, from 0, one or a list of them: names go into predict of a model "
            "that was loaded, or of Ratings"
        )
    if sizes[0] != sizes[1] and 1 not in sizes:
        raise ValueError(
            f"rows and columns are taken in pairs, and {sizes[0]} rows were given for {sizes[1]} columns: give as "
            "many, or a single one beside all of the others"
        )
    row, column = np.broadcast_arrays(*(index.astype(np.int64) for index in found))
    return row, column


def named(values: Any, what: str = "row") -> tuple[tuple[str, ...], np.ndarray]:
    """The distinct names among ``values`` (count,), sorted, and the index of each value among them.

    Values are texts, numbers or a mixture, also of pandas. Raises ``ValueError`` that names the first missing one.
    """
    masked = np.ma.getmaskarray(values) if isinstance(values, np.ma.MaskedArray) else None
    array = np.asarray(values)
    if array.dtype.kind in "OUS":
        at, kinds = pd.factorize(np.asarray(array, dtype=object))
    else:
        kinds, at = np.unique(array, return_inverse=True)
        if array.dtype.kind == "f":
            at = np.where(np.isfinite(array), at, -1)
        elif array.dtype.kind in "mM":
            at = np.where(np.isnat(array), -1, at)
    at = np.asarray(at, dtype=np.int64)
    missing = np.flatnonzero((at < 0) if masked is None else (at < 0) | masked)
    if len(missing):
        raise ValueError(f"entry {missing[0]}: the {what} is missing ({array[missing[0]]}): leave the entry out")
    return distinct([name_of(kind) for kind in kinds], at)


def distinct(names: Sequence[str], at: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    """``names`` sorted, each once, and the indices ``at`` into them renumbered; names that do not occur stay."""
    once = list(dict.fromkeys(names))
    if len(once) < len(names):
        place = {name: number for number, name in enumerate(once)}
        at = np.array([place[name] for name in names], dtype=np.int64)[at]
    order = in_order(once)
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    return tuple(once[number] for number in order), rank[at]


def in_order(names: Iterable[str]) -> np.ndarray:
    """How to sort ``names``: by number where all are whole numbers ("007" before "7"), else as texts."""
    found = list(names)
    if all(_WHOLE.fullmatch(name) for name in found):
        keys: list[Any] = [(int(name), name) for name in found]
    else:
        keys = found
    return np.array(sorted(range(len(found)), key=keys.__getitem__), dtype=np.int64)
