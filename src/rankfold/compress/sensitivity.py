"""What a layer's error does to the loss: the price that makes layers comparable.

Methods that see data know it. For the others it follows from the statistics of the layers in closed form
(``rankfold.compress.effect``); where these do not tell, a few truncations of each candidate are tried alone in the
network, and the divergence of its predictions from the original's is measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.batches import batches_of, forward
from rankfold.compress.coherence import layer_of
from rankfold.compress.effect import between, spread_ranks
from rankfold.compress.planning.candidates import Candidate
from rankfold.compress.ranks.rules import Optimal
from rankfold.costs import evaluating
from rankfold.objectives import Objective, ObjectiveError, Teacher
from rankfold.run.progress import Progress
from rankfold.sites import Form, carry_hooks_, replace_

Prices = dict[tuple[str, Form], Tensor]

_AGREE = 1.2  # how much more than on all samples may be lost on those held back
_TAIL = 1e-4  # shares of the energy below which nobody asks
_SAMPLES = 1 << 16  # that go through the network in all probes together, about
_FEWEST = 32  # samples of one probe
_HOPELESS = 1e6  # nats: outputs that are not finite


def relative_energy(candidates: Sequence[Candidate]) -> Prices:
    """Without data: the price is the share of the energy that is lost."""
    return {(c.site.name, c.form): c.relative_errors.square() for c in candidates}


def output_changes(candidates: Sequence[Candidate]) -> Prices:
    """From errors in the metric of the model's outputs: the expected squared change of these outputs for one sample, as
    a fraction of their variance.

    A site that the data never reached has none; it is priced as an average site of its relative energy.
    """
    known = [float(c.decomposition.errors[0]) ** 2 for c in candidates if c.decomposition.comparable and c.share == 1]
    average = sum(known) / max(len(known), 1)
    return {
        (c.site.name, c.form): coherent(c, _expected(c))
        if c.decomposition.comparable
        else c.relative_errors.square() * average
        for c in candidates
    }


def coherent(candidate: Candidate, prices: Tensor) -> Tensor:
    """(k + 1,) prices at every rank with the coherence of the candidate, where that is known."""
    return prices if candidate.coherence is None else prices * candidate.coherence.to(prices)


def _expected(candidate: Candidate) -> Tensor:
    """(k + 1,) squared errors to be expected on new samples.

    Where held-out samples agree with the others about the share of the energy that each rank loses, all samples
    together know it best; where they do not, the held-out ones alone are believed.
    """
    whole, held = either(candidate)
    if candidate.forecast is None or not whole[0] > 0:
        return whole
    told, shown = held / whole[0], whole / whole[0]
    counted = shown[1:] > _TAIL
    agree = bool(counted.any()) and float((told[1:] / shown[1:].clamp_min(_TAIL))[counted].median()) < _AGREE
    return whole if agree else held


def either(candidate: Candidate) -> tuple[Tensor, Tensor]:
    """(k + 1,) squared errors twice: by all samples, and by those that were held back from a fit to the others. Both on
    the scale of the former."""
    whole = candidate.decomposition.errors.square()
    held = whole if candidate.forecast is None else candidate.forecast.errors.square()
    return whole, held / held[0] * whole[0] if held[0] > 0 else whole


def price(
    root: nn.Module,
    candidates: Sequence[Candidate],
    data: Any,
    rule: Optimal,
    progress: Progress,
    objective: Objective | None = None,
) -> Prices:
    """For each candidate what its errors do to the outputs at rank 0..k: the divergence of ``objective`` between the
    original and the network with this site alone truncated, a mean over the samples.

    Measured at ``rule.probes`` ranks spread evenly over the logarithm of the error, on ``rule.samples`` samples, on
    fewer where there are many candidates (``probe_samples``);
    between two probes its logarithm is linear in log error, beyond the last one it falls with the error squared. Never
    rising with the rank. Raises ``ValueError`` for a model whose outputs are not floating. Cost: (probes ×
    decompositions + 1) forward passes over the samples.
    """
    objective = objective or Teacher()
    count = probe_samples(rule, len(candidates))
    batches = list(batches_of(data, count, count))
    prices: Prices = {}
    with evaluating(root):
        originals = [forward(root, batch) for batch in batches]
        known: dict[int, Tensor] = {}  # forms that share one decomposition share its price
        try:
            objective.answers(originals[0], batches[0])
        except ObjectiveError as error:
            raise ValueError(
                f"{error}; or use the rule Optimal(probes=0) and a method that needs no data, such as 'truncate'"
            ) from None
        for done, candidate in enumerate(candidates):
            made = id(candidate.decomposition)
            if made not in known:
                errors, points = candidate.relative_errors.numpy(), []
                for rank in spread_ranks(errors, candidate.ranks, rule.probes):
                    lost = _divergence(root, candidate, rank, batches, originals, objective)
                    points.append((float(errors[rank]), lost))
                known[made] = torch.from_numpy(between(errors, points))
            prices[candidate.site.name, candidate.form] = known[made]
            progress("probing", done + 1, len(candidates))
    return prices


def probe_samples(rule: Optimal, candidates: int) -> int:
    """On how many samples each of so many candidates is probed, so that a deep network takes no longer than 64 layers
    of it would."""
    return min(rule.samples, max(_FEWEST, _SAMPLES // max(candidates * rule.probes, 1)))


def _divergence(
    root: nn.Module,
    candidate: Candidate,
    rank: int,
    batches: Sequence[Any],
    originals: Sequence[Any],
    objective: Objective,
) -> float:
    site = candidate.site
    old: Any = root.get_submodule(site.name)
    new = layer_of(root, candidate, rank)
    carry_hooks_(old, new)
    replace_(root, {old: new})
    try:
        lost = [
            objective.divergence(forward(root, batch), then, batch)
            for batch, then in zip(batches, originals, strict=True)
        ]
    finally:
        replace_(root, {new: old})
    value = float(torch.cat(lost).mean())
    return value if math.isfinite(value) else _HOPELESS


def change(now: Any, then: Any) -> float:
    """Between two outputs, summed over the samples: see ``Objective.divergence`` of the objective without targets."""
    return float(Teacher().divergence(now, then).sum())


def outcome(output: Any) -> Any:
    """What ``change`` compares: the output itself."""
    return output
