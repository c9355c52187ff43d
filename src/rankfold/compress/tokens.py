"""The token metric: what an error in the outputs of one layer costs a language model, in nats per token.

At every position that counts a token is drawn from the model's own distribution p; with ℓ = −Σ log p(token), the sum
over the positions, and g = ∂ℓ/∂y at one token of a layer's outputs, D = E[Σ g gᵀ] / (2 · positions) is half the Fisher
information for one token. As the draws are independent, what different positions contribute to one another vanishes in
expectation, so that one backward pass of the sum will do. An error E of a layer with inputs x then costs
tr(D E H Eᵀ) nats of KL(original ‖ compressed) per token to second order, H = E[x xᵀ] of one token.

Beside it, from the same forward pass, the metric of all outputs (``rankfold.compress.metric``), which ranks layers
better where the damage is large and the quadratic is no forecast any more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.batches import forward, size_of
from rankfold.compress.gradients import Sums
from rankfold.compress.metric import GRAPH, Gathering, Spreading, Taps, differentiate, inside, read_inside, tapping
from rankfold.compress.spread import Spread, generator_of, measure_spread
from rankfold.costs import evaluating
from rankfold.objectives import Answer, Objective, ObjectiveError
from rankfold.objectives.compare import in_parts
from rankfold.observe import Samples
from rankfold.observe.passes import laid_out, layout_for
from rankfold.run.progress import Progress
from rankfold.sites import Site, SiteList, opened

NUMBERS = 1 << 25  # of the answers whose graph is in memory at once
WIDE = 4096  # outputs above which only the diagonal of D is gathered, where all of it would be needed
ENOUGH = 32  # rows of gradients for each output, of which a metric is well known
ROWS = 4096  # that are summed in float32 before they are added in float64


@dataclass(frozen=True)
class TokenMetrics:
    """For each site D in nats per token (``fisher``) and of all outputs (``outputs``); see ``moment_for``."""

    fisher: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]


def token_metrics(
    root: nn.Module,
    seen: Samples,
    sites: SiteList,
    objective: Objective,
    spread: Spread | None = None,
    progress: Progress | None = None,
) -> TokenMetrics:
    """Both metrics of every reducible site that gradients reach: one forward and two backward passes in eval mode, or
    one where half of the tokens are ``ENOUGH``: of each metric every other samples.

    As many samples at a time as keep the answers below ``NUMBERS`` numbers. Empty for a model that cannot be
    differentiated. Leaves everything as found.
    """
    with evaluating(root), opened(root):
        spread = measure_spread(root, seen, objective) if spread is None else spread
        if not spread.names:
            return TokenMetrics({}, {})
        rows, entries = spread.row_shape
        graph = max(1, min(GRAPH, NUMBERS // max(rows * entries, 1)))
        inner = {site.name: site.matrix(root).float() for site in sites.reducible if inside(site)}
        sums = tuple(Sums(moment=moment_for(inner, scale)) for scale in (0.5, 1.0))
        estimates = (Drawn(sums[0]), Spreading(objective, spread, sums[1]))
        sizes = [size_of(batch) for _, batch in seen.batches()]
        tokens = spread.rows[0] * sum(sizes) // max(spread.samples, 1)
        turns = _take_turns(sites, tokens, sum(max(1, size // graph) for size in sizes))
        if not Gathering(root, seen, objective, estimates, progress, turns).run(sites, graph, graph):
            return TokenMetrics({}, {})
        return _together(root, seen, sites, sums)


def _together(root: nn.Module, seen: Samples, sites: SiteList, sums: tuple[Sums, ...]) -> TokenMetrics:
    inner = {site.name: site.matrix(root) for site in sites.reducible if inside(site)}
    fisher, outputs = (each.metrics(seen.team, read_inside(root, sites) | inner) for each in sums)
    return TokenMetrics(fisher, outputs)


def _take_turns(sites: SiteList, tokens: int, parts: int) -> bool:
    """Whether half of so many tokens are ``ENOUGH`` for every metric, and have two halves to compare."""
    widest = max((min(site.shape) if inside(site) else site.shape[0] for site in sites.reducible), default=0)
    return tokens >= 2 * ENOUGH * widest and parts >= 4


@dataclass
class InPassing:
    """Both metrics from a forward pass that is made anyway, batch by batch (``run``), where each of these is small
    enough to be differentiated at once. ``sizes``: of the batches, in samples; ``able``: whether it went well so far;
    ``turns``: known from the first batch on."""

    root: nn.Module
    seen: Samples
    sites: SiteList
    objective: Objective
    sizes: Sequence[int]
    taps: Taps
    able: bool = True
    turns: bool | None = None

    @classmethod
    @contextmanager
    def over(
        cls, root: nn.Module, seen: Samples, sites: SiteList, objective: Objective, samples: int
    ) -> Iterator[InPassing | None]:
        """Within the block such passes can be run; None where the batches are too large, or hold more than the
        ``samples`` that are wanted. The model must be ``opened`` and in eval mode."""
        sizes = [size_of(batch) for _, batch in seen.batches()]
        if not sizes or max(sizes) > GRAPH or sum(sizes) > samples:
            yield None
            return
        with tapping(root, sites) as taps:
            yield cls(root, seen, sites, objective, sizes, taps)

    def __post_init__(self) -> None:
        inner = {site.name: site.matrix(self.root).float() for site in self.sites.reducible if inside(site)}
        self.layout = layout_for(self.root, self.seen.data)
        self.sums = tuple(Sums(moment=moment_for(inner, scale)) for scale in (0.5, 1.0))
        self.estimates: tuple[Drawn | Spreading, ...] = (
            Drawn(self.sums[0]),
            Spreading(self.objective, _Unscaled(), self.sums[1]),
        )

    def run(self, index: int, batch: Any) -> Any:
        """What the model gives for the batch of number ``index``."""
        self.taps.clear()
        with torch.set_grad_enabled(self.able):
            output = forward(self.root, laid_out(batch, self.layout))
            if self.able:
                try:
                    self._differentiate(self.objective.answers(output, batch), index)
                except torch.OutOfMemoryError:
                    raise
                except (RuntimeError, ObjectiveError):  # ``token_metrics`` says why
                    self.able = False
        return output

    def _differentiate(self, answers: Sequence[Answer], index: int) -> None:
        values = answers[0].values
        few = len(answers) == 1 and values.numel() <= NUMBERS
        if not few or not self.taps or not values.requires_grad:
            self.able = False
            return
        if self.turns is None:
            tokens = values.shape[1:-1].numel() * sum(self.sizes)
            self.turns = _take_turns(self.sites, tokens, len(self.sizes))
        differentiate(self.estimates, answers, sum(self.sizes[:index]), index, self.taps, self.turns)

    def metrics(self, spread: Spread) -> TokenMetrics:
        """``spread`` of the answers on all samples."""
        (scale,) = spread.scales
        for half in self.sums[1].halves:
            half.update({name: scale**2 * total for name, total in half.items()})
        return _together(self.root, self.seen, self.sites, self.sums)


class _Unscaled(Spread):
    """One answer, whose deviation is not known yet."""

    @property
    def scales(self) -> list[float]:
        return [1.0]

    def ordered(self, answers: Sequence[Answer]) -> list[Answer]:
        return list(answers)


def moment_for(inner: Mapping[str, Tensor], scale: float = 1.0) -> Callable[[Site, Tensor], Tensor]:
    """Σ g gᵀ (m, m), or Σ (g W)ᵀ(g W) (n, n) where the weight is in ``inner``; float64 sums of float32 products."""

    def moment(site: Site, gradient: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float64, device=gradient.device)
        rows = site.layer.output_rows(gradient)
        if site.layer.whole and rows.shape[-1] > WIDE:
            return scale * rows.double().square().sum(-2)
        for part in rows.to(torch.promote_types(rows.dtype, torch.float32)).split(ROWS, -2):
            part = part @ inner[site.name].to(part) if site.name in inner else part
            total = total + (part.mT @ part).double()
        return scale * total

    return moment


@dataclass
class Drawn:
    """∂ℓ/∂y for tokens drawn from the model; counted by positions."""

    sums: Sums

    def of(self, answers: Sequence[Answer], first: int) -> tuple[Tensor, float]:
        answer = next(each for each in answers if each.classes)
        scores = answer.values
        slope = slope_of(scores.detach(), generator_of(-1, first))
        if answer.counted is not None:
            slope.mul_(answer.counted.unsqueeze(-1))
        counted = scores.shape[:-1].numel() if answer.counted is None else int(answer.counted.sum())
        return (scores * slope).sum(), counted

    def add(self, gradients: Sequence[tuple[Site, Tensor]], counted: float, half: int) -> None:
        self.sums.add(gradients, counted, half)


def slope_of(scores: Tensor, generator: torch.Generator) -> Tensor:
    """∂(−log p(k))/∂scores = p − e_k at every position, k drawn from p = softmax(scores); (…, C), in the type of the
    scores."""
    drawn = torch.rand((*scores.shape[:-1], 1), generator=generator)
    slope = torch.empty(scores.shape, dtype=scores.dtype, device=scores.device)
    rows = (table.reshape(-1, table.shape[-1]) for table in (scores, drawn, slope))
    for own, chance, out in in_parts(*rows):
        p = own.to(torch.promote_types(own.dtype, torch.float32)).softmax(-1)
        upto = p.cumsum(-1)
        chosen = torch.searchsorted(upto, chance.to(upto) * upto[..., -1:], right=True).clamp_max(scores.shape[-1] - 1)
        out.copy_(p.scatter_add_(-1, chosen, -torch.ones_like(upto[..., -1:])))
    return slope
