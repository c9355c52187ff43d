"""Layers whose rows have no place of their own, as those of an expert that takes the tokens it likes best.

Rows of two networks are paired by their places. Where a place depends on what earlier layers give, there is another row
in the other network. It is tried on the original: with noise behind the layers that will change a row stays nearer to
what it was than to what the others were, however large the noise, unless it has taken the place of one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.observe import after, first_of
from rankfold.sites import Site

FEW = 64  # samples on which it is tried
_NOISE = 0.02, 0.2  # of every number: little, which many layers make larger, and what makes tokens of few change places
_ROWS, _COLUMNS = 128, 4096  # of a layer that are compared, at most
_NEARER = 0.25  # of the distance to what it was: a row so near to another one has taken its place
_MANY = 0.1  # of the rows: where they have places of their own next to none does, but in two or three dimensions
_OWN = RuntimeError, ValueError, TypeError, IndexError  # of a model that cannot be run so


def astray(run: Callable[[], Any], sites: Mapping[nn.Module, Site]) -> frozenset[str]:
    """Names of those ``sites``, by their modules, whose rows, or how many these are, data decide on. ``run``, a pass of
    a few samples in eval mode, is called three times."""
    with suppress(*_OWN):
        plain, *noisy = (_rows(run, sites, noise) for noise in (0.0, *_NOISE))
        return frozenset(name for name in plain for each in noisy if _displaced(plain[name], each[name]))
    return frozenset()


def _rows(run: Callable[[], Any], sites: Mapping[nn.Module, Site], noise: float) -> dict[str, list[Tensor]]:
    """What enters each site, call by call, with that much noise behind it."""
    found: dict[str, list[Tensor]] = {site.name: [] for site in sites.values()}
    generator = torch.Generator().manual_seed(0)

    def watch(site: Site) -> Callable[..., Tensor]:
        def hook(module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> Tensor:
            x = first_of(args, kwargs)
            if x.is_floating_point():
                rows = x.flatten(0, -2) if site.layer.convolution is None else x.flatten(1)
                found[site.name].append(rows[:_ROWS, :: -(-rows.shape[1] // _COLUMNS)].float())
            drawn = torch.randn(output.shape, generator=generator) if noise else torch.zeros(())
            return output * (1 + noise * drawn).to(output)

        return hook

    with after(None, {module: watch(site) for module, site in sites.items()}), torch.no_grad():
        run()
    return found


def _displaced(before: Sequence[Tensor], now: Sequence[Tensor]) -> bool:
    if [x.shape for x in before] != [x.shape for x in now]:
        return True
    return any(map(_swapped, before, now))


def _swapped(before: Tensor, now: Tensor) -> bool:
    """Whether many rows are much nearer to what another one was than to what they were themselves."""
    distances = torch.cdist(now, before, compute_mode="donot_use_mm_for_euclid_dist")
    own = distances.diagonal().clone()
    distances.fill_diagonal_(torch.inf)
    return len(own) > 1 and float((distances.amin(1) < _NEARER * own).float().mean()) > _MANY
