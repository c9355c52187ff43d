"""Times: seconds since 1970, or dates that say so themselves."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import pandas as pd

_MILLISECONDS = 1e11  # from here on: as seconds they would be after the year 5000
_BEYOND = 1e17  # no time: nanoseconds, such as NumPy makes of dates


def seconds(text: Any) -> float | None:
    """Seconds since 1970 of a number (of seconds, or of milliseconds from 10^11 on) or an ISO date; None: neither."""
    try:
        number = float(text)
    except (TypeError, ValueError):
        try:
            moment = datetime.fromisoformat(text)
        except (TypeError, ValueError):
            return None
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    if not abs(number) < _BEYOND:
        return None
    return number / 1000 if abs(number) >= _MILLISECONDS else number


def of_numbers(numbers: Any) -> np.ndarray:
    """The same of many numbers at once; NaN for one that is no time."""
    found = np.asarray(numbers, dtype=np.float64)
    found = np.where(np.abs(found) < _BEYOND, found, np.nan)
    return np.where(np.abs(found) >= _MILLISECONDS, found / 1000, found)


def as_seconds(times: Any, count: int) -> np.ndarray:
    """(count,) seconds since 1970: of numbers (`of_numbers`), or of dates of NumPy, pandas, datetime, or ISO texts. NaN
    where there is none. Raises ``ValueError`` for another number of them, and for what is no time."""
    found = np.asarray(times)
    if isinstance(times, np.ma.MaskedArray):
        found = found.astype(object)
        found[np.ma.getmaskarray(times)] = None
    if found.dtype.kind in "fiu":
        numbers, found = found, of_numbers(found)
        wrong = numbers[np.isnan(found) & ~np.isnan(numbers)]
        if wrong.size:
            raise _no_time(wrong.flat[0])
    elif found.dtype.kind in "OUS":
        found = np.array([_moment(each) for each in found.ravel()]).reshape(found.shape)
    elif found.dtype.kind == "M":
        whole = found.astype("datetime64[us]").astype(np.int64) / 1e6
        found = np.where(np.isnat(found), np.nan, whole)
    if found.shape != (count,) or found.dtype.kind not in "fiu":
        raise ValueError(
            f"times must be {count} numbers of seconds since 1970, or dates, one for each entry, got shape "
            f"{found.shape} of {np.asarray(times).dtype}"
        )
    return found.astype(np.float64)


def complete(times: Any, count: int) -> np.ndarray:
    """`as_seconds`, of which none may be missing: what is learnt from them would not be known of that entry."""
    found = as_seconds(times, count)
    if np.isnan(found).any():
        raise ValueError(
            f"entry {int(np.argmax(np.isnan(found)))}: its time is missing: give it, or leave out the entry, or the "
            "times of all"
        )
    return found


def when(times: Any, count: int) -> np.ndarray | None:
    """`as_seconds`, of which a single one counts for all; None for None."""
    if times is None:
        return None
    one = isinstance(times, str) or np.ndim(times) == 0
    return as_seconds([times] * count if one else times, count)


def _moment(value: Any) -> float:
    if pd.isna(value) is True:
        return float("nan")
    if isinstance(value, date):  # pandas' and datetime's moments are dates
        value = value.isoformat()
    elif isinstance(value, np.datetime64):
        value = str(value)
    found = seconds(value.decode() if isinstance(value, bytes) else value)
    if found is None:
        raise _no_time(value)
    return found


def _no_time(value: Any) -> ValueError:
    return ValueError(f"{str(value)!r} is not a time: give seconds since 1970, or a date such as 2001-02-28")
