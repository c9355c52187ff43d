"""What a setting of a recipe may be, by type and by range; a text that stands for a number or for no is neither."""

from math import isfinite
from numbers import Real
from typing import Any


def require(holds: bool, name: str, value: object, wanted: str) -> None:
    """ValueError unless it holds, in a sentence that names the setting and what it must be."""
    if not holds:
        raise ValueError(f"recipe: {name} must be {wanted}, got {value!r}")


def one_of(name: str, value: object, choices: Any) -> None:
    """`choices`: a Literal."""
    allowed = choices.__args__
    require(isinstance(value, str) and value in allowed, name, value, "one of " + ", ".join(allowed))


def flag(name: str, value: object) -> None:
    require(isinstance(value, bool), name, value, "True or False")


def real(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def positive(value: Any) -> bool:
    return real(value) and isfinite(value) and value > 0


def whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
