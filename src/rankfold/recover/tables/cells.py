"""Cells of a column of Parquet as names, numbers and times; a cell that cannot be read is told with its row in the file
and in the matrix, as in a text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from rankfold.recover.tables.layout import UNKNOWN, instead_of_a_number, number_of
from rankfold.recover.tables.names import name_of
from rankfold.recover.tables.times import of_numbers, seconds

Fault = Callable[[int, str, str], ValueError]  # of a position, what is wrong there, and the remedy
LEAVE_OUT = ": leave the row out"
WRITE_TIMES = ": write seconds since 1970, or a date such as 2001-02-28"


def names(column: Any, what: str, before: int) -> tuple[np.ndarray, list[str]]:
    """Indices, and the distinct names. Raises ``ValueError`` for one that is missing, or an empty text."""
    coded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    chunk = coded.unify_dictionaries().combine_chunks()
    if isinstance(chunk, pa.ChunkedArray):
        chunk = chunk.chunk(0)
    told = [name_of(value) for value in chunk.dictionary.to_pylist()]
    at = chunk.indices.fill_null(-1).to_numpy().astype(np.int64)
    lacking = (at < 0) | (at == told.index("") if "" in told else False)
    if lacking.any():
        raise ValueError(f"row {before + int(np.argmax(lacking)) + 1} of the file: the {what} is missing{LEAVE_OUT}")
    return at, told


def numbers(column: Any, name: str, fault: Fault) -> np.ndarray:
    """The numbers of a column, NaN where there is none, as in an empty text, NA, ? or -."""
    try:
        values = np.asarray(column.cast(pa.float64()).to_numpy())
    except pa.ArrowException as error:
        texts = _texts(column)
        if texts is None:
            told = (str(error).splitlines() or [""])[0]
            raise ValueError(f"the values in column {name} are not numbers ({told})") from None
        values = np.array([_number(at, text, fault) for at, text in enumerate(texts)])
    wrong = np.flatnonzero(np.isinf(values))
    if len(wrong):
        raise fault(int(wrong[0]), f"the value is {values[wrong[0]]}", LEAVE_OUT)
    return values


def times(column: Any, name: str, fault: Fault) -> np.ndarray:
    """Seconds since 1970, of dates, of texts that are dates, and of numbers."""
    if column.null_count:
        raise fault(
            int(np.argmax(pyarrow.compute.is_null(column).to_numpy())), f"the time ({name}) is missing", LEAVE_OUT
        )
    kind, texts = column.type, _texts(column)
    if texts is None and (pa.types.is_timestamp(kind) or pa.types.is_date(kind)):
        return np.asarray(column.cast(pa.timestamp("us"), safe=False).cast(pa.int64()).to_numpy()) / 1e6
    if texts is None and not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        raise ValueError(f"the column {name} holds values of type {kind}, which are no times{WRITE_TIMES}")
    if texts is not None:
        found = np.array([np.nan if (when := seconds(text)) is None else when for text in texts])
    else:
        found = of_numbers(column.cast(pa.float64()).to_numpy())
    wrong = np.isnan(found)
    if wrong.any():
        at = int(np.argmax(wrong))
        raise fault(at, f"{str(column[at].as_py())!r} is not a time", WRITE_TIMES)
    return found


def _texts(column: Any) -> list[str | None] | None:
    """The texts of a column of texts; None for one of another kind."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        return None
    texts: list[str | None] = column.to_pylist()
    return texts


def _number(at: int, text: str | None, fault: Fault) -> float:
    if text is None or text.strip().lower() in UNKNOWN:
        return np.nan
    number = number_of(text)
    if number is None:
        raise fault(at, f"{text!r} is not a number", instead_of_a_number(text))
    return number
