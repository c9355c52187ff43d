"""Numbers as a reader wants them: four figures, a unit, a dash where nothing was measured."""

import math
import re

from rankfold.report.values import FigureKind

NBSP = "\u00a0"
ABSENT = "–"
_SIZE = re.compile(r"(?P<number>(\d+\.?\d*|\.\d+)(E[+-]?\d+)?)\s*((?P<letter>[KMGT])(?P<binary>I)?)?B?")
_THOUSANDS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def known(value: object) -> bool:
    """Whether `value` is a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)


def count(value: float | None, unit: str = "") -> str:
    """40551040 → 40.55 M; below a thousand, and with no fraction, as it is."""
    if not known(value) or value is None:
        return ABSENT
    for size, letter in _THOUSANDS:
        if abs(value) >= size * (1 - 5e-5):
            return f"{_figures(value / size)}{NBSP}{letter}{unit}"
    return f"{value:g}{NBSP}{unit}".rstrip(NBSP)


def bytes_of(text: str) -> int:
    """ "2GB", "500 mb", "1.5g", "2GiB", "1.5e9" → bytes: KB, MB, GB, TB are powers of 1000, KiB, MiB, … of 1024.

    ``ValueError`` for anything else."""
    found = _SIZE.fullmatch(text.strip().upper())
    value = 0.0
    if found is not None:
        power = " KMGT".index(found["letter"] or " ")
        value = float(found["number"]) * (1024 if found["binary"] else 1000) ** power
    if not 1 <= value < math.inf:
        raise ValueError(f"{text!r} is not an amount of memory: write 500MB, 2GB, 2GiB, or a number of bytes")
    return int(value)


def integer(value: int | None) -> str:
    """40551040 → 40,551,040."""
    return ABSENT if value is None else f"{value:,}"


def percent(fraction: float | None, decimals: int = 1) -> str:
    """0.4957 → 49.6 %."""
    if not known(fraction) or fraction is None:
        return ABSENT
    return f"{round(100 * fraction, decimals) + 0.0:.{decimals}f}{NBSP}%"  # −0 is 0


def kept(after: float | None, before: float | None) -> float | None:
    """The fraction that is left; None if either is unknown or there was nothing."""
    if not known(after) or not known(before) or after is None or not before:
        return None
    return after / before


def milliseconds(value: float | None) -> str:
    """18.234 → 18.23 ms; with the quartiles, where they are known: 18.23 ms (17.90–19.02)."""
    if not known(value) or value is None:
        return ABSENT
    spread = getattr(value, "shown", None)
    return f"{_figures(value)}{NBSP}ms" if spread is None else str(spread(_figures, f"{NBSP}ms"))


def decimal(value: float | None) -> str:
    """Three significant figures, without exponent where it can be read: 0.0123, 1.2e-7."""
    if not known(value) or value is None:
        return ABSENT
    if value == 0:
        return "0"
    if 0.99 < abs(value) < 1:  # a cosine or an r2: what is lacking counts
        return f"{value:.{min(1 - math.floor(math.log10(1 - abs(value))), 9)}f}"
    if 1e-4 <= abs(value) < 1e4:
        return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"
    return f"{value:.1e}"


def times(ratio: float | None) -> str:
    """1.3247 → 1.32×."""
    return f"{ratio:.2f}×" if known(ratio) and ratio is not None else ABSENT


def apart(before: float, after: float) -> bool:
    """Whether two times are clearly different, as far as they know; a ratio of others is chance."""
    tell = getattr(before, "apart", None)
    return True if tell is None else bool(tell(after))


def speed(before: float, after: float) -> str:
    """1.27× as fast: of two times that are clearly different; of others no ratio."""
    if apart(before, after):
        return f"{times(before / after)} as fast"
    return f"no clear difference in time ({_figures(before)} and {_figures(after)}{NBSP}ms)"


def of_figure(value: float | None, kind: FigureKind) -> str:
    """The value of such a figure: 0.915 → 91.50 % of a fraction, otherwise three significant figures and the unit."""
    if kind.unit == "fraction":
        return percent(value, 2)
    return f"{decimal(value)}{NBSP}{kind.unit}".rstrip(NBSP)


def moved(difference: float, kind: FigureKind) -> str:
    """A difference of two figures with its sign, of fractions in percentage points."""
    if kind.unit == "fraction":
        return points(difference)
    return f"{'−' if difference < 0 else '+'}{of_figure(abs(difference), kind)}"


_WRITTEN = {"kl": "KL", "iou": "IoU", "rmse": "RMSE", "mae": "MAE", "mse": "MSE", "r2": "R²", "map": "MAP"}


def title(kind: FigureKind) -> str:
    """The name of a figure as a heading: mean_iou → Mean IoU."""
    text = " ".join(_WRITTEN.get(word, word) for word in kind.name.split("_"))
    return text[:1].upper() + text[1:]


def points(difference: float) -> str:
    """A difference of accuracies in percentage points, with its sign: −0.61 points."""
    sign = "−" if difference < 0 else "+"
    return f"{sign}{abs(100 * difference):.2f}{NBSP}points"


def _figures(value: float) -> str:
    digits = 0 if value == 0 else max(0, 3 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(digits, 3)}f}"
