"""Names of rows and columns: text, kept as written. Numbers serve for sorting only."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import pandas as pd

_WHOLE = re.compile(r"-?[0-9]{1,300}")


def name_of(value: Any) -> str:
    """The name that a value stands for: text as written, 7 and 7.0 both "7"."""
    if isinstance(value, str):
        return str(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    if isinstance(value, bool | np.bool_):
        return str(bool(value))
    if isinstance(value, Integral):
        return str(int(value))
    if isinstance(value, Real):
        number = float(value)
        return str(int(number)) if number.is_integer() else repr(number)
    return str(value)


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
