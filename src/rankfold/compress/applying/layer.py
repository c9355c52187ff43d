"""One new layer: empty, with its factors, in its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.compress.applying.check import ApplyError
from rankfold.compress.applying.promised import check_alike, check_counted, written_
from rankfold.compress.planning.fitted import Fitted
from rankfold.compress.planning.plan import Entry
from rankfold.layers.shared import join_
from rankfold.sites import Factors, Site, carry_hooks_, replace_


def build(old: Any, site: Site, entry: Entry, made: Mapping[str, nn.Module] = MappingProxyType({})) -> nn.Module:
    """The empty new layer for ``entry``, with the old one's mode, hooks and ``requires_grad``."""
    new = site.layer.skeleton(old, entry.form, entry.rank, entry.bias)
    check_counted(new, site, entry.form, entry.rank, entry.bias)
    if entry.members:
        join_(new, made.get(entry.members[0], new), entry.members.index(entry.site), len(entry.members))
    new.train(old.training)
    carry_hooks_(old, new)
    new.requires_grad_(bool(site.layer.weight(old).requires_grad))
    bias, before = _bias(new), _bias(old)
    if bias is not None and before is not None:
        bias.requires_grad_(bool(before.requires_grad))
    return new


def filled(
    root: nn.Module, site: Site, entry: Entry, fitted: Fitted, made: Mapping[str, nn.Module] | None = None
) -> nn.Module:
    """The new layer of a site with its factors; nothing in ``root`` changes; the model must be ``opened``. ``made``:
    new layers by site, among them the one whose factor this one shares.

    ``ApplyError`` if they overflow half precision.
    """
    old: Any = root.get_submodule(site.name)
    new = build(old, site, entry, made or {})
    written_(site, entry.form, entry.rank, new, fitted.factors)
    _fill_bias_(old, new, fitted.factors)
    if not all(bool(x.double().isfinite().all()) for x in (*new.parameters(), *new.buffers())):
        kind = site.layer.weight(old).dtype
        raise ApplyError(f"{site.title}: the factors overflow {kind}: convert the model to float32 or bfloat16 first")
    check_alike(old, new, site, entry.form, entry.rank, fitted.factors)
    return new


def place_(root: nn.Module, ready: Sequence[tuple[str, nn.Module, Fitted]]) -> None:
    """Put filled layers into their places; where one has no bias, a BatchNorm right behind takes up the shift.

    That BatchNorm subtracts its running mean: moving the mean is the bias, for free.
    """
    for _, new, fitted in ready:
        shift = fitted.factors.shift
        if _bias(new) is None and fitted.absorber is not None and shift is not None:
            with torch.no_grad():
                mean = root.get_submodule(fitted.absorber).get_buffer("running_mean")
                mean.sub_(shift.to(mean))
    replace_(root, {root.get_submodule(name): new for name, new, _ in ready})


def _bias(layer: nn.Module) -> Any:
    return getattr(layer, "bias", None)


@torch.no_grad()
def _fill_bias_(old: Any, new: Any, factors: Factors) -> None:
    bias: Tensor | None = _bias(new)
    if bias is not None:
        # in float64: float8 cannot be added
        before: Tensor | None = _bias(old)
        start = torch.zeros_like(bias, dtype=torch.float64) if before is None else before.double()
        bias.copy_(start if factors.shift is None else start + factors.shift.to(start))
