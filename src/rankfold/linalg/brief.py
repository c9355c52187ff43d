"""A value that holds tensors or long tables, shown in one line: numbers and names as they are, of the rest how much."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import fields, is_dataclass
from pathlib import PurePath
from typing import Any

_LONGEST = 200  # characters of a whole line
_PART = 40  # of one of its values


def brief(value: Any) -> str:
    """The ``__repr__`` of such a dataclass: its fields without those that are None or empty, in at most 200 characters.

    Example:
        >>> brief(spectrum(torch.eye(3)))
        'Spectrum(values=Tensor(3,), shape=(3, 3), unseen_energy=0)'
    """
    known = {field.name: getattr(value, field.name, None) for field in fields(value) if field.repr}
    told = [f"{name}={_shown(held)}" for name, held in known.items() if not (held is None or _length(held) == 0)]
    room = _LONGEST - len(type(value).__name__) - len("(, …)")
    while len(", ".join(told)) > room:
        told = [*told[:-2], "…"] if told[-1] == "…" else [*told[:-1], "…"]
    return f"{type(value).__name__}({', '.join(told)})"


def _length(held: Any) -> int | None:
    """Of a table or text; None for any other value."""
    return len(held) if isinstance(held, str | Sequence | Mapping | Set) else None


def _shown(held: Any) -> str:
    if hasattr(held, "shape") and hasattr(held, "dtype"):  # a tensor, an array
        return f"{type(held).__name__}{tuple(held.shape)}"
    if isinstance(held, bool | int):
        return str(held)
    if isinstance(held, float):
        return f"{held:.4g}" if math.isfinite(held) else str(held)
    if isinstance(held, str):
        text = " ".join(str(held).split())
        return repr(text if len(text) <= _PART else f"{text[: _PART - 1]}…")
    if isinstance(held, PurePath):
        return str(held)
    if isinstance(held, tuple) and len(held) <= 3 and all(isinstance(each, bool | int | float | str) for each in held):
        return f"({', '.join(map(_shown, held))}{',' if len(held) == 1 else ''})"
    if isinstance(held, Sequence):
        return f"[{len(held)} × {type(held[0]).__name__}]"
    if isinstance(held, Mapping | Set):
        return f"{{{len(held)} {'item' if len(held) == 1 else 'items'}}}"
    if is_dataclass(held) and len(line := repr(held)) <= _PART and "\n" not in line:
        return line
    return type(held).__name__
