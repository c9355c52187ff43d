"""Times: seconds since 1970, or dates that say so themselves."""

from __future__ import annotations

from datetime import UTC, datetime


def seconds(text: str) -> float | None:
    """Seconds since 1970 of a number (of seconds, or of milliseconds from 10^11 on) or an ISO date; None: neither."""
    try:
        number = float(text)
    except ValueError:
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            return None
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    if not abs(number) < 1e17:
        return None
    return number / 1000 if abs(number) >= 1e11 else number
