"""Standard output: tables that are never cut, and JSON."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from shlex import quote
from typing import Any


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON object; numbers that are not finite, which JSON has not, are null."""
    print(json.dumps(_finite(value), indent=1, ensure_ascii=False, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: Sequence[int] = (0,)) -> None:
    """Columns aligned by spaces, the ones in ``left`` to the left; bold header on a terminal."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        aligned = (
            cell.ljust(width) if index in left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join(aligned).rstrip()

    bold, plain = ("\033[1m", "\033[0m") if sys.stdout.isatty() else ("", "")
    print(f"{bold}{line(header)}{plain}")
    for row in rows:
        print(line(row))


def by_reason(left_out: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Names of parameters, of many the first, with the reason that they share."""
    groups: dict[str, list[str]] = {}
    for name, reason in left_out:
        groups.setdefault(reason, []).append(name)
    return [(named(group), reason) for reason, group in groups.items()]


def named(names: Sequence[str]) -> str:
    """All of at most three names, or two and how many more."""
    return ", ".join(names) if len(names) < 4 else f"{names[0]}, {names[1]} and {len(names) - 2} more"


def typed(options: Iterable[tuple[str, object]]) -> str:
    """Options as a shell takes them."""
    return " ".join(f"{name} {quote(str(value))}" for name, value in options if value is not None)


def tensors(number: int) -> str:
    return f"{number} tensor{'' if number == 1 else 's'}"


def count(value: float) -> str:
    """1234567 → 1,234,567."""
    return f"{value:,.0f}"


def short(value: float) -> str:
    """40551040 → 40.6 M."""
    for size, letter in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def percent(fraction: float, digits: int = 1) -> str:
    """0.4957 → 49.6 %."""
    return f"{round(100 * fraction, digits) + 0.0:.{digits}f} %"  # −0 is 0


def loss_text(value: float) -> str:
    """Four decimals, and of small ones two figures more: 0.2764, 4.1e-05."""
    return f"{value:.4f}" if not 0 < abs(value) < 1e-3 else f"{value:.1e}"
