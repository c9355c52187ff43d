"""Numbers as they are given, from numpy and torch too, as Python's own: what a plan keeps must go into its file."""

from __future__ import annotations

from numbers import Real
from typing import Any


def plain(value: Any) -> Any:
    """A single number of numpy or torch as Python's; anything else as it is."""
    try:
        return value.item()
    except (AttributeError, ValueError, RuntimeError):
        return value


def is_number(value: Any) -> bool:
    """Whether a plain value is a real number: true and false are none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def whole(name: str, value: Any, least: int = 1) -> int:
    """The number as an ``int``; ``ValueError`` that says what ``name`` must be for one below ``least``, a fraction, or
    no number."""
    found = plain(value)
    if isinstance(found, bool) or not isinstance(found, int) or found < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {found!r}")
    return found
