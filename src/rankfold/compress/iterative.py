"""Performance-preserving truncation (ISVT; LoRITa, appendix A): parameters leave where the loss minds least."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rankfold.batches import batches_of, forward, labels_of, logits_of
from rankfold.compress.allocate import BudgetError, Option, within
from rankfold.compress.candidates import Candidate
from rankfold.compress.rules import Iterative
from rankfold.costs import evaluating
from rankfold.sites import Form

Progress = Callable[[str, int, int], None]


def iterate(
    root: nn.Module,
    candidates: Mapping[str, list[Candidate]],
    choices: Mapping[str, Sequence[Option]],
    limits: tuple[float, ...],
    data: Any,
    rule: Iterative,
    tell: Progress,
) -> dict[str, Option]:
    """Step by step the parameters leave the site where that raises the loss least, until the limits hold."""
    batches = list(batches_of(data, rule.samples, rule.samples))
    picked = {site: group[0] for site, group in choices.items()}
    with evaluating(root):
        start = sum(o.costs[0] for o in picked.values())
        while not within(picked, limits):
            best: tuple[float, str, Option] | None = None
            for site, group in choices.items():
                option = _next(candidates.get(site, ()), group, picked[site], rule.step)
                if option is None:
                    continue
                with _placed(root, candidates, {**picked, site: option}):
                    loss = sum(float(_loss(root, batch)) for batch in batches)
                if best is None or loss < best[0]:
                    best = (loss, site, option)
            if best is None:
                raise BudgetError("the budget cannot be met by the iterative rule")
            picked[best[1]] = best[2]
            now = sum(o.costs[0] for o in picked.values())
            tell("truncating", int(start - now), int(start - limits[0]))
    return picked


def _next(found: Sequence[Candidate], group: Sequence[Option], now: Option, step: int) -> Option | None:
    if not found:
        return None
    candidate, layer = found[0], found[0].site.layer
    here = layer.params(now.form, now.rank, layer.has_bias if now.form is Form.KEEP else candidate.bias)
    fitting = [
        o for o in group
        if o.form is candidate.form and layer.params(o.form, o.rank, candidate.bias) <= here - step
    ]  # fmt: skip
    return max(fitting, key=lambda o: o.rank, default=None)


class _placed:
    def __init__(self, root: nn.Module, candidates: Mapping[str, list[Candidate]], picked: Mapping[str, Option]):
        self.root, self.candidates, self.picked = root, candidates, picked
        self.kept: dict[str, Tensor] = {}

    @torch.no_grad()
    def __enter__(self) -> None:
        for site, option in self.picked.items():
            if option.form is Form.KEEP:
                continue
            candidate = self.candidates[site][0]
            weight = self.root.get_submodule(site).weight
            right, left = candidate.decomposition.factors(option.rank).parts
            self.kept[site] = weight.detach().clone()
            weight.copy_(candidate.site.layer.geometry(option.form).put(weight, (left @ right).to(weight)))

    @torch.no_grad()
    def __exit__(self, *_: object) -> None:
        for site, weight in self.kept.items():
            self.root.get_submodule(site).weight.copy_(weight)


def _loss(root: nn.Module, batch: Any) -> Tensor:
    logits, labels = logits_of(forward(root, batch)), labels_of(batch)
    if labels is None:
        raise ValueError("the iterative rule needs labels")
    return F.cross_entropy(logits, labels, reduction="sum")
