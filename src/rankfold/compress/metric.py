"""Output metrics: how much the model's outputs move when the outputs of one layer do.

For a layer with outputs y, D = E[Σ_positions g gᵀ] with g = ∂(vᵀz)/∂y, where z are the model's outputs less their mean
over the last axis (a single output as it is) and v is standard normal: the Gauss–Newton matrix of the squared change
of z. A layer error E then costs about tr(D E H Eᵀ), the expected squared change of the model's outputs for one sample:
the same unit in every layer. (The Fisher metric of the softmax vanishes where a network is sure of its training
samples, as it usually is.)
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rankfold.batches import batches_of, forward, size_of
from rankfold.costs import evaluating
from rankfold.objectives import main_tensor
from rankfold.sites import Site, SiteList, split_attention
from rankfold.train.parallel import Team

Progress = Callable[[str, int, int], None]

FULL = 1024  # outputs up to which the whole matrix is kept; above, its diagonal
SEED = 0


def output_metrics(
    root: nn.Module,
    data: Any,
    sites: SiteList,
    samples: int,
    batch_size: int,
    progress: Progress | None = None,
    team: Team | None = None,
) -> dict[str, Tensor]:
    """D for every reducible site that gradients reach, float64: (m, m), or (m,) above ``FULL`` outputs; or grouped.

    One forward and one backward pass over ``samples`` samples in eval mode. Parameters get no gradients. A model that
    cannot be differentiated gives no metrics. Leaves everything as found. With a ``team`` each process takes its share
    of the batches.
    """
    team = team or Team()
    sums: dict[str, Tensor] = {}
    taps: list[tuple[Site, Tensor]] = []

    def tap(site: Site) -> Callable[..., Tensor]:
        def hook(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
            zero = torch.zeros_like(output, requires_grad=True)
            taps.append((site, zero))
            return output + zero

        return hook

    seen = 0
    with ExitStack() as stack:
        stack.enter_context(evaluating(root))
        stack.enter_context(split_attention(root))
        for site in sites.reducible:
            stack.callback(root.get_submodule(site.name).register_forward_hook(tap(site)).remove)
        for index, batch in enumerate(batches_of(data, batch_size, samples)):
            seen += size_of(batch)
            if index % team.size != team.rank:
                continue
            generator = torch.Generator().manual_seed(SEED + index)  # the same for a batch in whatever process
            taps.clear()
            with torch.enable_grad():
                outputs = main_tensor(forward(root, batch))
                if not taps or not outputs.requires_grad or not outputs.is_floating_point():
                    return {}
                rows = outputs.float() if outputs.dim() > 1 else outputs.float().reshape(-1, 1)
                centred = rows - rows.mean(-1, keepdim=True) if rows.shape[-1] > 1 else rows
                direction = torch.randn(centred.shape, generator=generator).to(centred)
                zeros = [zero for _, zero in taps]
                gradients = torch.autograd.grad((centred * direction).sum(), zeros, allow_unused=True)
            for (site, _), gradient in zip(taps, gradients, strict=True):
                if gradient is not None:
                    _add(sums, site, gradient)
            if progress is not None:
                progress("weighing", seen, samples)
    if team.size > 1:
        sums = _together(sums, team)
    return {name: total / seen for name, total in sums.items() if bool(total.isfinite().all())}


def _add(sums: dict[str, Tensor], site: Site, gradient: Tensor) -> None:
    rows = site.layer.output_rows(gradient).double()
    moment = rows.mT @ rows if rows.shape[-1] <= FULL else rows.square().sum(-2)
    sums[site.name] = sums[site.name] + moment if site.name in sums else moment


def _together(sums: dict[str, Tensor], team: Team) -> dict[str, Tensor]:
    parts: list[Any] = [None] * team.size
    dist.all_gather_object(parts, sums)
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: sum(part[name] for part in parts if name in part) for name in names}
