"""In which norm an update is cut: that of its entries, or of what it does to the outputs on data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.batches import forward, size_of, two_halves
from rankfold.compress.gradients import FULL, Sums
from rankfold.compress.metric import GRAPH, Gathering, Spreading
from rankfold.compress.spread import measure_spread
from rankfold.compress.tokens import NUMBERS, Drawn
from rankfold.costs import evaluating
from rankfold.linalg import Moments
from rankfold.linalg.leading import Leading, leading
from rankfold.linalg.on_data.bottleneck import root_of
from rankfold.objectives import Objective
from rankfold.objectives.answer import unpadded
from rankfold.observe import Samples, after, first_of
from rankfold.observe.halves import WHOLE, halves
from rankfold.observe.passes import laid_out, layout_for
from rankfold.run.processes.memory import amount, available
from rankfold.run.progress import Progress
from rankfold.sites import Site, SiteList, unwrap

RIDGE = 1e-3  # of the mean eigenvalue: inputs that the data never show count a little


@dataclass(frozen=True)
class Metric:
    """‖Lᵀ E R‖_F of an error E (m, n): ``outputs`` L (m, m) or its diagonal (m,), ``inputs`` R (n, n), lower ones.

    With L Lᵀ = E[g gᵀ], g the gradient at the layer's outputs, and R Rᵀ = E[x xᵀ], its square is the change of the
    model's outputs to second order, as if inputs and gradients were independent (K-FAC).
    """

    outputs: Tensor
    inputs: Tensor

    def leading(self, update: Tensor, rank: int) -> Leading:
        """The best approximations of ``update`` (m, n) in this norm, all ranks up to ``rank``; float64."""
        left = self.outputs.unsqueeze(1) if self.outputs.dim() == 1 else self.outputs
        wide = update.double() @ self.inputs
        found = leading(left * wide if self.outputs.dim() == 1 else left.T @ wide, rank)
        if self.outputs.dim() == 1:
            back = found.left / left
        else:
            back = torch.linalg.solve_triangular(left.T, found.left, upper=True)
        right = torch.linalg.solve_triangular(self.inputs.T, found.right.T, upper=True).T
        return Leading(back, found.values, right, found.rest, found.full)


def metrics(
    model: nn.Module,
    data: Any,
    chosen: tuple[Site, ...],
    objective: Objective,
    *,
    samples: int = 512,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> dict[str, Metric]:
    """The metric of each site of ``model`` on the first ``samples`` of ``data``; sites that are not reached have none.

    Of a language model in nats per token, otherwise in squared change of the answers (see ``rankfold.compress.tokens``
    and ``rankfold.compress.metric``). Cost: two forward passes and one backward pass, n² and m² doubles for each site.
    Raises ``ValueError`` for moments that would not fit into the memory that is free.
    """
    root = unwrap(model)
    _check_affordable(chosen)
    seen, found = Samples(data, samples, batch_size), SiteList(chosen)
    with evaluating(root):
        inputs = _inputs(root, seen, chosen, progress)
        outputs = _outputs(root, seen, found, objective, progress)
    return {name: Metric(_root(outputs[name]), _root(inputs[name])) for name in inputs if name in outputs}


def _root(moment: Tensor) -> Tensor:
    if moment.dim() == 1:
        return (moment + RIDGE * moment.mean()).clamp_min(torch.finfo(moment.dtype).tiny).sqrt()
    level = RIDGE * moment.diagonal().mean().clamp_min(torch.finfo(moment.dtype).tiny)
    return root_of(moment + level * torch.eye(len(moment), dtype=moment.dtype))


def _check_affordable(chosen: tuple[Site, ...]) -> None:
    need = sum(8 * 3 * (n * n + (m * m if m <= FULL else m)) for m, n in (site.shape for site in chosen))
    free = available()
    if free is not None and need > 0.9 * free:
        raise ValueError(
            f"the second moments of {len(chosen)} layers would take {amount(need)}, and {amount(free)} are "
            "free: choose fewer layers (where=, --only), or leave the data out"
        )


def _inputs(root: nn.Module, seen: Samples, chosen: tuple[Site, ...], progress: Progress | None) -> dict[str, Tensor]:
    """E[x xᵀ] of one row at the inputs of each site, about zero: an update has no bias to take the mean."""
    moments: dict[str, Moments] = {}
    batch: Any = None
    layout, done = layout_for(root, seen.data), 0
    first = next((laid_out(given, layout) for _, given in seen.mine()), None)
    names = [site.name for site in chosen]
    fed = halves(root, first, names) if first is not None and two_halves(first, root) else WHOLE

    def watch(site: Site) -> Any:
        def hook(module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> None:
            pair = site.layer.paired_rows(module, first_of(args, kwargs), output)
            if pair is None:
                return
            mask = unpadded(output, batch, fed.decodes(site.name))
            rows = pair[0] if mask is None else pair[0][mask.flatten().bool().to(pair[0].device)]
            moments.setdefault(site.name, Moments(rows.shape[-1])).update(rows)

        return hook

    with after(root, {site.name: watch(site) for site in chosen}):
        for _, batch in seen.mine():
            forward(root, laid_out(batch, layout))
            done += size_of(batch)
            if progress is not None:
                progress("calibrating", done, seen.samples or done)
    if not done:
        raise ValueError("the data are empty: give at least one batch")
    return {name: known.gram / known.count for name, known in moments.items()}


def _outputs(
    root: nn.Module, seen: Samples, found: SiteList, objective: Objective, progress: Progress | None
) -> dict[str, Tensor]:
    """E[g gᵀ] at the outputs of each site, (m, m), or (m,) above ``FULL`` outputs."""
    spread = measure_spread(root, seen, objective)
    if not spread.names:
        return {}
    sums = Sums(moment=_moment(0.5 if objective.by_token else 1.0))
    if objective.by_token:
        rows, entries = spread.row_shape
        size = max(1, min(GRAPH, NUMBERS // max(rows * entries, 1)))
        Gathering(root, seen, objective, (Drawn(sums),), progress).run(found, size, size)
    else:
        Gathering(root, seen, objective, (Spreading(objective, spread, sums),), progress).run(
            found, spread.chunk, GRAPH
        )
    return sums.metrics(seen.team)


def _moment(scale: float) -> Callable[[Site, Tensor], Tensor]:
    """Σ g gᵀ over the rows of gradients, or its diagonal above ``FULL`` outputs, in float64."""

    def moment(site: Site, gradient: Tensor) -> Tensor:
        rows = site.layer.output_rows(gradient).double()
        return scale * (rows.mT @ rows if rows.shape[-1] <= FULL else rows.square().sum(-2))

    return moment
