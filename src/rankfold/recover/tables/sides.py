"""Side tables: what is known of rows and columns, as sparse features in their order."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse
from scipy.sparse import csr_array as Csr

from rankfold.linalg.brief import brief
from rankfold.recover.tables.layout import UNKNOWN
from rankfold.recover.tables.names import name_of

MANY = 50  # different texts of a column beyond which it says who somebody is, not what
BINS = 5  # of numbers


@dataclass(frozen=True, eq=False)
class Sides:
    """Features of ``rows`` (m, any number) and of ``columns`` (n, any number), sparse; None: no table."""

    rows: Csr | None = None
    columns: Csr | None = None

    __repr__ = brief


def read_side(file: str | Path, names: tuple[str, ...], what: str = "row") -> tuple[Csr, tuple[str, ...]]:
    """Features of ``names`` from a table with a header: names in its first column, properties in the others; and
    remarks.

    Texts become one feature for each of their values (columns with more than ``MANY`` values are left out), numbers one
    for each fifth of them, 0 and 1 themselves. Names without a line have no features, lines with other names and
    lines without one are left out: they are counted in the remarks. Raises ``ValueError`` for a name that comes twice,
    for lines longer than the header, and where nothing matches.
    """
    path = Path(file)
    try:
        if path.suffix.lower() in (".parquet", ".pq"):
            table = pd.read_parquet(path)
            table = pd.concat(
                [table.iloc[:, 0].map(name_of, na_action="ignore").astype(object).fillna(""), table.iloc[:, 1:]], axis=1
            )
        else:
            with path.open(encoding="utf-8-sig") as opened:
                first = opened.readline()
            delimiter = max((",", ";", "\t", "|"), key=first.count)
            # a name is text, also where pandas would read it as missing
            table = pd.read_csv(path, sep=delimiter, dtype=str, keep_default_na=False, encoding="utf-8-sig")
            rest = table.iloc[:, 1:].apply(lambda column: column.mask(column.str.strip().str.lower().isin(UNKNOWN)))
            table = pd.concat([table.iloc[:, 0], rest], axis=1)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, ImportError) as error:
        raise ValueError(f"{path} cannot be read as a table with a header ({str(error).splitlines()[0]})") from None
    if not isinstance(table.index, pd.RangeIndex) and path.suffix.lower() not in (".parquet", ".pq"):
        # pandas takes the first fields of lines that are longer than the header for an index
        raise ValueError(
            f"{path}, line 2: there are more fields than in the header: is there a {delimiter!r} within a field?"
        )
    if table.shape[1] < 2:
        raise ValueError(
            f"{path}: a side table needs the names of {what}s in its first column, and properties in others"
        )
    if not len(table):
        raise ValueError(f"{path}: there are no lines below its header")
    keys = table.iloc[:, 0].str.strip()
    nameless = keys == ""
    table, keys = table[~nameless], keys[~nameless]
    twice = keys[keys.duplicated()]
    if len(twice):
        raise ValueError(f"{path}, line {twice.index[0] + 2}: the {what} {twice.iloc[0]} comes twice")
    at = {name: number for number, name in enumerate(keys)}
    place = np.array([at.get(name, -1) for name in names], dtype=np.int64)
    if (place < 0).all():
        raise ValueError(
            f"{path}: none of its {len(keys)} names is the name of a {what} among the entries, such as {names[0]}"
        )
    parts: list[np.ndarray] = []
    used: list[str] = []
    left_out: list[str] = []
    for name in table.columns[1:]:
        feature = _feature(table[name])
        (left_out if feature is None else used).append(str(name))
        if feature is not None:
            parts.append(feature)
    if not parts:
        raise ValueError(
            f"{path}: none of its columns can be used: each of {', '.join(left_out)} has a single value throughout, or "
            "too many different texts"
        )
    whole = np.vstack([np.concatenate(parts, 1), np.zeros((1, sum(part.shape[1] for part in parts)))])
    remarks = [
        f"{path.name}, of each {what}: {', '.join(used)}" + (f"; {', '.join(left_out)} left out" if left_out else "")
    ]
    if (missing := int((place < 0).sum())) > 0:
        first = names[int(np.argmax(place < 0))]
        remarks.append(f"{missing} of {len(names)} {what}s have no line in {path.name}, the first is {first}")
    if nameless.any():
        many = (
            f"{nameless.sum()} lines of {path.name} have no" if nameless.sum() > 1 else f"1 line of {path.name} has no"
        )
        remarks.append(
            f"{many} {what} in the first column (the first is line {int(np.argmax(nameless)) + 2}): left out"
        )
    return Csr(scipy.sparse.csr_array(whole[place])), tuple(remarks)


def _feature(column: pd.Series) -> np.ndarray | None:
    numbers = pd.to_numeric(column, errors="coerce")
    if numbers.notna().any() and (numbers.notna() | column.isna()).all():
        values = numbers.to_numpy(dtype=np.float64)
        kinds = np.unique(values[~np.isnan(values)])
        if len(kinds) < 2:
            return None
        if set(kinds.tolist()) == {0.0, 1.0}:
            return np.nan_to_num(values)[:, None]
        edges = np.unique(np.nanquantile(values, np.linspace(0, 1, BINS + 1)[1:-1]))
        binned = np.searchsorted(edges, values, side="right")
        return np.where(np.isnan(values)[:, None], 0.0, np.eye(len(edges) + 1)[binned])
    codes, kinds_of = pd.factorize(column)
    if not 2 <= len(kinds_of) <= MANY:
        return None
    return np.vstack([np.eye(len(kinds_of)), np.zeros((1, len(kinds_of)))])[codes]
