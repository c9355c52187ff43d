"""Which layers someone wants: patterns of names, or a function of name and module."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import nn

NOT_SELECTED = "not selected"


@dataclass(frozen=True)
class Names:
    """A choice of layers by their names: those that a pattern of ``only`` fits (all, without any), and none of
    ``exclude``. A layer that hangs in several places is known by all its names."""

    only: Sequence[str] = ()
    exclude: Sequence[str] = ()

    def __post_init__(self) -> None:
        for side in ("only", "exclude"):
            given = getattr(self, side)
            object.__setattr__(self, side, (given,) if isinstance(given, str) else tuple(given))

    def __call__(self, name: str, module: nn.Module) -> bool:
        return self.among((name,))

    def among(self, names: Sequence[str]) -> bool:
        """Whether the layer of these names is chosen."""
        chosen = not self.only or any(fits(name, pattern) for pattern in self.only for name in names)
        return chosen and not any(fits(name, pattern) for pattern in self.exclude for name in names)


Where = str | Callable[[str, nn.Module], bool]


class NoLayer(ValueError):
    """A pattern that fits no layer: which one (``where``, ``only``, ``exclude``), its text, and what there is."""

    def __init__(self, option: str, pattern: str, why: str) -> None:
        self.option, self.pattern, self.why = option, pattern, why
        super().__init__(f"{'' if option == 'where' else 'where: '}{option}={pattern!r}: {why}")


def fits(name: str, pattern: str) -> bool:
    """Whether a glob fits the path of a module or of a block that it lies in."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def wanted(where: Where, names: Sequence[str], module: nn.Module) -> bool:
    """Whether ``module``, which has these names, is chosen."""
    if isinstance(where, str):
        return any(fits(name, where) for name in names)
    if not callable(where):
        raise TypeError(
            f"where={where!r} is neither a pattern nor a function of a layer's name and module: give several patterns "
            "as rankfold.sites.Names(only=(…), exclude=(…))"
        )
    return where.among(names) if isinstance(where, Names) else where(names[0], module)


def check_patterns(where: Where, layers: Iterable[str], left_out: Sequence[tuple[str, str]]) -> None:
    """``NoLayer`` for a pattern that fits none of ``layers``, by all the names that each has; ``left_out``: every
    other parameter, with its reason."""
    names = list(layers)
    for option, pattern in _patterns(where):
        if not any(fits(name, pattern) for name in names):
            raise NoLayer(option, pattern, _what_there_is(pattern, names, left_out))


def _patterns(where: Where) -> Iterator[tuple[str, str]]:
    if isinstance(where, str):
        yield "where", where
    elif isinstance(where, Names):
        yield from (("only", pattern) for pattern in where.only)
        yield from (("exclude", pattern) for pattern in where.exclude)


def _what_there_is(pattern: str, names: list[str], left_out: Sequence[tuple[str, str]]) -> str:
    for parameter, why in left_out:
        if fits(parameter, pattern) and why != NOT_SELECTED:
            return f"no layer that can be factored matches; {parameter} is left out anyway: {why}"
    layer, _, _ = pattern.rpartition(".")
    near = [layer] if layer in names else get_close_matches(pattern, names, 3, 0.3) or names[:3]
    each = "; give each pattern by itself" if "," in pattern else ""
    return f"no layer of this model matches; its layers are {', '.join(near)}{', …' * (len(near) < len(names))}{each}"
