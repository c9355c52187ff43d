"""What a network does at some sites in one pass: what they are given and give, and what stands behind them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from rankfold.compress.layerwise.preactivations import Followed, Following
from rankfold.objectives.answer import unpadded
from rankfold.observe import after, first_of
from rankfold.observe.halves import Halves
from rankfold.sites import Site


@dataclass
class Seen:
    """The calls of one site in one pass."""

    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    followed: Followed | None = None
    decodes: bool | None = None  # whether its rows are tokens of a decoder beside an encoder


class Looking(Following):
    """Watches a pass of ``network`` at some sites within a ``with`` block: what they are given and give, and what
    stands behind them. ``taken`` after each pass. ``calls``: see ``Following``."""

    def __init__(self, network: nn.Module, sites: Sequence[Site], calls: int | None, halves: Halves) -> None:
        self.sites, self.halves = sites, halves
        super().__init__(calls)
        self._watched = {network.get_submodule(site.name): self._watch(site.name) for site in sites}

    def begin(self) -> None:
        super().begin()
        self.seen = {site.name: Seen(decodes=self.halves.decodes(site.name)) for site in self.sites}

    def taken(self) -> dict[str, Seen]:
        """What was seen since the last time."""
        seen = self.seen
        for name, known in self.found.items():
            seen[name].followed = known
        self.begin()
        return seen

    def _watch(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> None:
            seen = self.seen[name]
            seen.inputs.append(first_of(args, kwargs).detach().clone())
            seen.outputs.append(output.detach().clone())
            self.produced(name, output)

        return hook

    def __enter__(self) -> Self:
        self._hooks = after(None, self._watched)
        self._hooks.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._hooks.__exit__(*error)


@dataclass
class There:
    """What the original has at one site for one batch, as rows in float32 or float64: ``outputs`` of each call and,
    where it was called once, its pre-activation ``pre``, of which ``followed`` tells the rest."""

    outputs: list[Tensor]
    pre: Tensor | None
    followed: Followed | None

    def tensors(self) -> dict[str, Tensor]:
        found = {f"y{number}": y for number, y in enumerate(self.outputs)}
        if self.pre is not None:
            found["pre"] = self.pre
        return found

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], followed: Followed | None) -> There:
        outputs = [tensors[f"y{number}"] for number in range(sum(key.startswith("y") for key in tensors))]
        return cls(outputs, tensors.get("pre"), followed)


def recorded(site: Site, module: nn.Module, seen: Seen) -> tuple[There, list[Tensor]] | None:
    """What is kept of the original's passes at one site, and its inputs as rows; None where rows cannot be paired."""
    known = seen.followed
    if len(seen.inputs) == 1 and known is not None:
        alike = known.pre is seen.outputs[0] or torch.equal(known.pre, seen.outputs[0])
        wanted = (seen.outputs[0],) if alike else (seen.outputs[0], known.pre)
        rows = site.layer.paired_rows(module, seen.inputs[0], *wanted)
        if rows is None:
            return None
        x, y, *rest = (wide(part) for part in rows)
        return There([y], rest[0] if rest else None, replace(known, pre=known.pre[:0])), [x]
    parts = [site.layer.paired_rows(module, x, y) for x, y in zip(seen.inputs, seen.outputs, strict=True)]
    if not parts or any(part is None for part in parts):
        return None
    both = [(wide(part[0]), wide(part[1])) for part in parts if part is not None]
    return There([y for _, y in both], None, None), [x for x, _ in both]


def wide(rows: Tensor) -> Tensor:
    return rows.to(torch.promote_types(rows.dtype, torch.float32))


def counted(rows: Tensor, seen: Seen, batch: Any) -> Tensor | None:
    """(N,) which rows of a batch of padded sequences are tokens; None where all of them count."""
    single = len(seen.outputs) == 1 and rows.dim() == 2
    mask = unpadded(seen.outputs[0], batch, seen.decodes) if single else None
    return None if mask is None or mask.numel() != len(rows) else mask.flatten().to(rows.device)
