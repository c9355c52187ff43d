"""Times: seconds since 1970, or dates that say so themselves."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import pandas as pd


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
    if not abs(number) < 1e17:
        return None
    return number / 1000 if abs(number) >= 1e11 else number


def as_seconds(times: Any, count: int) -> np.ndarray:
    """(count,) seconds since 1970: of numbers, which are seconds, or of dates of NumPy, pandas, datetime, or ISO texts.
    NaN where there is none. Raises ``ValueError`` for another number of them, and for what is no time."""
    found = np.asarray(times)
    if found.dtype.kind in "OUS":
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


def when(times: Any, count: int) -> np.ndarray | None:
    """`as_seconds`, of which a single one counts for all; None for None."""
    if times is None:
        return None
    one = isinstance(times, str) or np.ndim(times) == 0
    return as_seconds([times] * count if one else times, count)


def _moment(value: Any) -> float:
    if value is None or value is pd.NA or value is pd.NaT:
        return float("nan")
    if isinstance(value, date):  # pandas' and datetime's moments are dates
        value = value.isoformat()
    elif isinstance(value, np.datetime64):
        value = str(value)
    found = seconds(value.decode() if isinstance(value, bytes) else value)
    if found is None:
        raise ValueError(f"{str(value)!r} is not a time: give seconds since 1970, or a date such as 2001-02-28")
    return found
