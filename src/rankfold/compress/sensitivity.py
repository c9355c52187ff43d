"""What a layer's error does to the loss: the price that makes layers comparable.

For each candidate a few truncations are tried alone in the network, and the divergence of its predictions from the
original's is measured; between them the price follows the candidate's own error, as a power law.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rankfold.batches import batches_of, forward
from rankfold.compress.planning.candidates import Candidate
from rankfold.compress.ranks.rules import Optimal
from rankfold.costs import evaluating
from rankfold.objectives import main_tensor
from rankfold.objectives.compare import assumed_rows, change
from rankfold.sites import Form, carry_hooks_, replace_

Progress = Callable[[str, int, int], None]
Prices = dict[tuple[str, Form], Tensor]

_HOPELESS = 1e6  # nats: outputs that are not finite


def relative_energy(candidates: Sequence[Candidate]) -> Prices:
    """Without data: the price is the share of the energy that is lost."""
    return {(c.site.name, c.form): c.relative_errors.square() for c in candidates}


def output_changes(candidates: Sequence[Candidate]) -> Prices:
    """From errors in the metric of the model's outputs: the expected squared change of these outputs for one sample.

    A site that the data never reached has none; it is priced as an average site of its relative energy.
    """
    known = [float(c.decomposition.errors[0]) ** 2 for c in candidates if c.decomposition.comparable]
    average = sum(known) / max(len(known), 1)
    return {
        (c.site.name, c.form): c.decomposition.errors.square()
        if c.decomposition.comparable
        else c.relative_errors.square() * average
        for c in candidates
    }


def price(root: nn.Module, candidates: Sequence[Candidate], data: Any, rule: Optimal, progress: Progress) -> Prices:
    """For each candidate the expected rise of the loss at rank 0..k: KL(original ‖ this site alone truncated), in nats;
    for a model with one output the squared change, as a fraction of the output's mean square.

    Measured at ``rule.probes`` ranks spread evenly over the logarithm of the error, on ``rule.samples`` samples;
    between two probes log KL is linear in log error, beyond the last one it falls with the error squared. Never
    rising with the rank. Raises ``ValueError`` for a model whose outputs are not floating. Cost: (probes × candidates
    + 1) forward passes over the samples.
    """
    batches = list(batches_of(data, rule.samples, rule.samples))
    prices: Prices = {}
    with evaluating(root):
        originals = [outcome(forward(root, batch)) for batch in batches]
        for done, candidate in enumerate(candidates):
            errors = candidate.relative_errors.numpy()
            points = []
            for rank in probe_ranks(errors, candidate.decomposition.ranks, rule.probes):
                points.append((float(errors[rank]), _divergence(root, candidate, rank, batches, originals)))
            prices[candidate.site.name, candidate.form] = torch.from_numpy(interpolate(errors, points))
            progress("probing", done + 1, len(candidates))
    return prices


def probe_ranks(errors: np.ndarray, ranks: Sequence[int], count: int) -> list[int]:
    """``count`` of the ranks, spread over the logarithm of their error; ranks without error are not probed."""
    worth = [rank for rank in ranks if errors[rank] > 1e-9]
    if len(worth) <= count:
        return worth
    logs = np.log([errors[rank] for rank in worth])
    targets = np.linspace(logs[0], max(logs[-1], np.log(0.02)), count)
    return sorted({worth[int(np.abs(logs - target).argmin())] for target in targets})


def interpolate(errors: np.ndarray, points: Sequence[tuple[float, float]]) -> np.ndarray:
    """Prices at every error (k + 1,) from measured (error, price) points: a power law between neighbours.

    Outside the points the price goes with the square of the error, as it does for small errors of a smooth loss.
    """
    floor = 1e-12
    if not points:
        return np.zeros_like(errors)
    known = sorted((np.log(error), np.log(max(value, floor))) for error, value in points)
    x = np.array([k for k, _ in known])
    y = np.maximum.accumulate([v for _, v in known])
    logs = np.log(np.maximum(errors, 1e-300))
    inside = np.interp(logs, x, y)
    outside = np.where(
        logs < x[0], y[0] + 2 * (logs - x[0]), np.where(logs > x[-1], y[-1] + 2 * (logs - x[-1]), inside)
    )
    return np.where(errors > 0, np.exp(outside), 0.0)


def _divergence(
    root: nn.Module, candidate: Candidate, rank: int, batches: Sequence[Any], originals: Sequence[Tensor]
) -> float:
    site = candidate.site
    old: Any = root.get_submodule(site.name)
    factors = candidate.decomposition.factors(rank)
    new: Any = site.layer.skeleton(old, candidate.form, rank, bias=True)
    site.layer.write_(new, candidate.form, factors)
    bias: Tensor = new.bias
    start = old.bias.detach().double() if site.layer.has_bias else torch.zeros_like(bias, dtype=torch.float64)
    bias.data.copy_(start if factors.shift is None else start + factors.shift.to(start))
    carry_hooks_(old, new)
    replace_(root, old, new.eval())
    try:
        outputs = [outcome(forward(root, batch)) for batch in batches]
    finally:
        replace_(root, new, old)
    total = sum(change(now, then) for now, then in zip(outputs, originals, strict=True))
    value = total / sum(then.shape[0] for then in originals)
    return value if np.isfinite(value) else _HOPELESS


def outcome(output: Any) -> Tensor:
    """Log-probabilities (R, classes) in float64, over every position; single numbers (R, 1) as they are."""
    logits = main_tensor(output)
    if not logits.is_floating_point():
        raise ValueError(
            f"the model returned {logits.dtype}: layers are compared by what they do to floating outputs; "
            "return logits, or use the rule Optimal(probes=0) with a method without data"
        )
    return assumed_rows(logits)
