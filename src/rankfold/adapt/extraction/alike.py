"""Whether adapters belong to one network, as far as the names of their layers tell."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations

from rankfold.adapt.peft_format import Adapter

_SHOWN = 3


def check_one_network(adapters: Sequence[Adapter]) -> None:
    """``ValueError`` for two adapters whose layers are called as those of different networks.

    Layers that both have, or blocks (``layers.3`` and ``layers.5`` are alike), make them one, unless they have no layer
    in common and name different bases. One word in front of all names, as a model has with its head and not without,
    makes two: PEFT loads names as they are.
    """
    for one, other in combinations(adapters, 2):
        if not one.pairs or not other.pairs or one.pairs.keys() & other.pairs.keys():
            continue
        here, there = _blocks(one.pairs), _blocks(other.pairs)
        longer = _beyond(one.pairs, there) or _beyond(other.pairs, here)
        names = f"{next(iter(one.pairs))} and {next(iter(other.pairs))}"
        if longer and not here & there:
            raise ValueError(
                f"the layers of two adapters differ by {longer!r} in front of their names ({names}), as those of a "
                "model with its head and without, and PEFT would load one of the two: train both on one class of model"
            )
        known = {adapter.base_model for adapter in (one, other)}
        same = len(known) == 1 and "" not in known
        if not same and (len(known - {""}) > 1 or not here & there):
            raise ValueError(
                f"two adapters have no layer in common ({names}), so they do not belong to the same network: give "
                "adapters of one base"
            )


def other_bases(adapters: Sequence[Adapter]) -> tuple[str, ...]:
    """A note where adapters name different bases."""
    bases = list(dict.fromkeys(adapter.base_model for adapter in adapters if adapter.base_model))
    if len(bases) < 2:
        return ()
    more = f" and {len(bases) - _SHOWN} more" if len(bases) > _SHOWN else ""
    return (
        f"the adapters were trained on different bases, {', '.join(bases[:_SHOWN])}{more}: their sum is what they say "
        "only where these have the same weights",
    )


def _blocks(names: Iterable[str]) -> set[str]:
    """The beginnings of names that hold a number, any number, and so are of a block or of a layer in one."""
    found = set()
    for name in names:
        parts = _numbered(name)
        found |= {".".join(parts[:end]) for end in range(1, len(parts) + 1) if "*" in parts[:end]}
    return found


def _beyond(names: Iterable[str], others: set[str]) -> str:
    """What stands in front of names that the others have without it; nothing where they have none."""
    for name in names:
        parts = _numbered(name)
        for start in range(1, len(parts)):
            rest = parts[start:]
            if rest[0] != "*" and any(".".join(rest[:end]) in others for end in range(2, len(rest) + 1)):
                return ".".join(name.split(".")[:start]) + "."
    return ""


def _numbered(name: str) -> list[str]:
    return ["*" if part.isdigit() else part for part in name.split(".")]
