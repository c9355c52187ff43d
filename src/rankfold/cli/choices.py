"""What options ask for, as objects that compute: device, objective, budgets, layers. Imports torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from shlex import quote
from typing import cast

import torch
from torch import nn

from rankfold.cli.failure import one_line
from rankfold.compress.ranks.asked import parsed
from rankfold.compress.ranks.budget import Budget, Multiples
from rankfold.objectives import Objective, objective_named
from rankfold.sites import Names, NoLayer, sites
from rankfold.train.step.precision import Arithmetic, arithmetic
from rankfold.zoo import ZooError
from rankfold.zoo.resolve import imported


@contextmanager
def computing(device: str, precision: str) -> Iterator[torch.device]:
    """Where the commands inside compute, and in which arithmetic; ``ZooError`` for what this machine has not."""
    name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    try:
        place = torch.device(name)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = one_line(error)
        raise ZooError(f"--device {device}: torch cannot compute there ({reason}): give cpu, cuda or auto") from None
    with arithmetic(cast(Arithmetic, precision), place):
        yield place


def objective_of(spec: str | None) -> Objective | None:
    """The objective of a name, or the one at ``package.module:attribute``, an object or a factory of it."""
    if spec is None:
        return None
    if ":" not in spec:
        return objective_named(spec)
    found = imported(spec)
    return objective_named(found() if not isinstance(found, Objective) and callable(found) else found)


def budgets_of(texts: Sequence[str], multiple: int, of: str = "model") -> tuple[Budget, ...]:
    """The budgets that were typed, what they are fractions of, and the ranks that they may have."""
    budgets = parsed([*texts, *(["of=sites"] if of == "sites" else [])]) if texts else ()
    return (*budgets, Multiples(multiple)) if multiple > 1 else budgets


def chosen_layers(model: nn.Module, only: Sequence[str], exclude: Sequence[str]) -> Names | None:
    """Which layers may be factored; None for all. ``ZooError`` for a pattern that fits no layer of the model."""
    if not only and not exclude:
        return None
    chosen = Names(only, exclude)
    with patterns_as_typed():
        found = sites(model, chosen)
    if not len(found):
        typed = [f"{option} {' '.join(map(quote, p))}" for option, p in (("--only", only), ("--exclude", exclude)) if p]
        names = ", ".join(site.name for site in list(sites(model))[:5])
        raise ZooError(f"{' and '.join(typed)}: this leaves no layer to be factored; those of this model are {names}")
    return chosen


@contextmanager
def patterns_as_typed() -> Iterator[None]:
    """What is wrong with a pattern, told by the option that it was given with."""
    try:
        yield
    except NoLayer as error:
        raise ZooError(f"--{error.option} {quote(error.pattern)}: {error.why}") from None


def set_threads(threads: int | None) -> None:
    if threads is not None:
        torch.set_num_threads(threads)
