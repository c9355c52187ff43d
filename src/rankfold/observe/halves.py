"""Which layers of an encoder and a decoder see whose tokens: what sees the decoder's grows longer where it is fed one
more, in two passes of one sample. Keys and values of cross-attention lie in the decoder and read the encoder's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.batches import FED, arguments, divisible, evaluating, forward, samples_of, size_of, tensors_in
from rankfold.observe.pages import PAGES
from rankfold.observe.watch import after

_OWN = RuntimeError, ValueError, TypeError, IndexError  # of a model of a fixed length


@dataclass(frozen=True)
class Halves:
    """``decoding``: of the calls of some modules in one pass, whether they see the decoder's tokens."""

    decoding: Mapping[str, tuple[bool, ...]] = field(default_factory=dict)

    def decodes(self, name: str, call: int = 0) -> bool | None:
        """Whether this call of a module sees the decoder's tokens; None where that is not known."""
        known = self.decoding.get(name, ())
        return known[call] if call < len(known) else None


WHOLE = Halves()  # of models of one half


def halves(root: nn.Module, batch: Any, names: Iterable[str]) -> Halves:
    """Those of the modules with these ``names``, of a model that is fed a decoder (``two_halves``). Weights that are
    read block by block are not read for this."""
    _, given = arguments(batch, root)
    size, fed = size_of(batch), next(given[name] for name in FED if isinstance(given.get(name), Tensor))
    if fed.dim() < 2 or hasattr(root, PAGES) or not divisible(((), given), size):
        return WHOLE
    one, length, chosen = samples_of(given, size, slice(1)), fed.shape[1], list(names)
    with suppress(*_OWN), evaluating(root):
        short, long = (_lengths(root, _fed(one, length, tokens), chosen) for tokens in (1, 2))
        return Halves({name: tuple(a != b for a, b in zip(short[name], long[name], strict=False)) for name in chosen})
    return WHOLE


def _fed(given: Mapping[str, Any], length: int, tokens: int) -> dict[str, Any]:
    """The same with so many tokens for the decoder, the first one again and again."""
    return {
        name: value[:, :1].repeat_interleave(tokens, 1)
        if name.startswith("decoder_") and isinstance(value, Tensor) and value.shape[1:2] == (length,)
        else value
        for name, value in given.items()
    }


@torch.no_grad()
def _lengths(root: nn.Module, batch: Any, names: Iterable[str]) -> dict[str, list[torch.Size]]:
    found: dict[str, list[torch.Size]] = {name: [] for name in names}

    def watch(name: str) -> Any:
        return lambda module, args, kwargs, output: found[name].extend(x.shape for x in list(tensors_in(output))[:1])

    with after(root, {name: watch(name) for name in found}):
        forward(root, batch)
    return found
