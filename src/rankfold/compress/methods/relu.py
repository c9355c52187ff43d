"""ReLU-aware compression: what the activation behind a layer hides does not count.

"Theoretical Guarantees for Low-Rank Compression of Deep Neural Networks", theorem 4.9, in its hard-rank form: impute
what the activation hides from the present fit, project, and again (majorise–minimise). For the activation that follows
the layer in the network, through BatchNorm and residual connections; what is exact is said in
``rankfold.linalg.programs.activation_aware``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rankfold.compress.layerwise.pairs import Pairs
from rankfold.compress.methods.method import Solution, balanced
from rankfold.compress.methods.project import DAMPING, Project
from rankfold.compress.methods.refit import Refit, multiplied, refit
from rankfold.compress.methods.sampled_rows import pre_activation_rows, scale_of
from rankfold.compress.methods.sequential import projected
from rankfold.linalg import project
from rankfold.linalg.programs.activation_aware import activation_aware
from rankfold.linalg.programs.activation_loss import activation_loss
from rankfold.linalg.programs.maxnorm import nuclear_max_norm
from rankfold.linalg.programs.nuclear import nuclear_radius
from rankfold.sites import Factors, Form, Site

_CONVEX_ROWS = 4096
_SHOWN = 0.05  # a channel counts as shown at least this often, so that no weight becomes infinite


@dataclass(frozen=True)
class ActivationAware(Project):
    """Fits layer after layer like ``Sequential`` and goes on to what comes out of the ReLU behind each layer.

    Layers with no activation behind them are projected.

    Args:
        damping: of the second moments, as a part of their mean.
        ridge: weight of the anchor at the layer's own weight.
        name: of the method.
        forms: that it makes.
        needs_data: True.
        rounds: fits of all layers.
        kept: layers that stay dense are fitted anew too.
        iterations: of each layer's descent, at most; it starts from the solution of ``Sequential``.
        convex: where a ReLU is behind a factored matrix, solve the convex program instead (log Φ, nuclear norm, largest
            entry), with its certified gap, and cut its solution to the rank.
        sigma: of that program, as a part of the pre-activations' root mean square.
        rows: of each layer that are used.

    Source: "Theoretical Guarantees for Low-Rank Compression of Deep Neural Networks", theorem 3.

    Example:
        >>> rf.ActivationAware(iterations=4).name
        'relu'
    """

    damping: float = DAMPING
    rounds: int = 3
    kept: bool = True
    iterations: int = 12
    convex: bool = False
    sigma: float = 0.2
    rows: int = 32768
    name: str = "relu"
    forms: frozenset[Form] = frozenset({Form.FACTORED, Form.SPATIAL})
    needs_data: bool = True

    def solve(
        self, site: Site, form: Form, rank: int, weight: Tensor, bias: Tensor | None, known: Pairs,
        metric: Tensor | None,
    ) -> Solution:  # fmt: skip
        full = refit(site, weight, known, metric)
        start = projected(full, form, rank, bias, self.damping, self.forms)
        found = pre_activation_rows(known)
        if form is Form.DENSE or not known.activation or found is None:
            return start
        if self.convex and form is Form.FACTORED and known.activation == "relu":
            return _convex(full, rank, known, found, bias, start, self.sigma)
        task = _Task(full, form, rank, known, *found, _weights(known, found[1], full.diagonal()))
        descend = task.factored if form is Form.FACTORED else task.imputed
        parts, own, before, after, steps = descend(start, bias, self.iterations, self.damping)
        matrix = multiplied(site, form, weight, parts)
        gain = 1 - after / before if before > 0 else 0.0
        certificate = _told(known.activation, gain, steps)
        factors = Factors(parts, _shift(full, own, bias))
        return replace(start, factors=factors, error=full.error(matrix, own), certificate=certificate)


def _shift(full: Refit, own: Tensor, bias: Tensor | None) -> Tensor | None:
    """What the new layer's ``own`` bias is above that of the layer; None where it has to be that."""
    if not full.statistics.free:
        return None
    return own if bias is None else own - bias.double()


_BEHIND = "loss behind"


def _told(activation: str, gain: float, steps: int) -> str:
    """What the descent gained, in a sentence that ``gain_told`` reads."""
    if not steps:
        return f"{_BEHIND} {activation}: no step descends from the projection"
    return f"{_BEHIND} {activation} {-gain:+.1%} in {steps} iterations"


def gain_told(certificate: str) -> float | None:
    """The share of the loss behind the activation that went; None of a layer that was not fitted to it."""
    if not certificate.startswith(_BEHIND):
        return None
    found = re.search(r" ([-+]\S+)% in ", certificate)
    return -float(found[1]) / 100 if found else 0.0


Descent = tuple[tuple[Tensor, ...], Tensor, float, float, int]  # parts, bias, losses before and after, steps


@dataclass(frozen=True)
class _Task:
    full: Refit
    form: Form
    rank: int
    known: Pairs
    inputs: Tensor
    targets: Tensor
    offsets: Tensor
    weights: Tensor

    def factored(self, start: Solution, bias: Tensor | None, iterations: int, damping: float) -> Descent:
        """Exact majorisation, with the diagonal of the output metric."""
        scale = scale_of(self.known, self.targets.shape[1])
        right, left = (part.double() for part in start.factors.parts)
        anchor = self.full.anchor
        # there it is the same for all inputs
        ridge = self.full.ridge.value * float(self.full.moments.gram.diagonal(dim1=-2, dim2=-1).mean())
        fit = activation_aware(
            self.inputs, self.targets, self.rank, offset=self.offsets, weights=self.weights,
            activation=self.known.activation, slope=self.known.slope or 0.01,
            start=(scale.unsqueeze(1) * left, right, scale * self._own(start, bias)), free=self.full.statistics.free,
            anchor=scale.unsqueeze(1) * anchor, ridge=ridge * len(self.inputs), iterations=iterations,
        )  # fmt: skip
        parts = balanced(fit.right, fit.left / scale.unsqueeze(1))
        return parts, fit.bias / scale, fit.activation_losses[0], fit.activation_losses[fit.best], fit.best

    def imputed(self, start: Solution, bias: Tensor | None, iterations: int, damping: float) -> Descent:
        """The same imputation for a spatial pair, fitted to it as to any target; ends when a step does not descend."""
        site, weight = self.full.site, self.full.weight
        scale, loss = (
            scale_of(self.known, self.targets.shape[1]),
            activation_loss(self.targets, self.known.activation, self.known.slope or 0.01),
        )
        x = self.inputs.double() - self.full.moments.inputs.mean
        parts, own = start.factors.parts, self._own(start, bias)
        kept: tuple[tuple[Tensor, ...], Tensor] = parts, own
        losses: list[float] = []
        for _ in range(iterations + 1):
            matrix = multiplied(site, self.form, weight, parts)
            level = own + matrix @ self.full.moments.inputs.mean
            u = (x @ matrix.mT + level) * scale + self.offsets
            entries, step = loss(u.to(self.targets))
            losses.append(float((entries.double().mean(0) * self.weights).sum()))
            if losses[-1] > min(losses):
                break
            kept = parts, own
            wanted = (u + step - self.offsets) / scale
            mean = wanted.mean(0) if self.full.statistics.free else own
            change = self.full.retargeted(x.mT @ (wanted - mean) / len(x))
            parts = change.decomposition(self.form, damping).factors(self.rank).parts
            own = mean - multiplied(site, self.form, weight, parts) @ self.full.moments.inputs.mean
        best = min(range(len(losses)), key=losses.__getitem__)
        return *kept, losses[0], losses[best], best

    def _own(self, start: Solution, bias: Tensor | None) -> Tensor:
        shift = start.factors.shift
        if shift is None:  # no bias is fitted
            shift = torch.zeros_like(self.full.moments.target_mean).flatten()
        return shift if bias is None else shift + bias.double()


def _convex(
    full: Refit,
    rank: int,
    known: Pairs,
    found: tuple[Tensor, Tensor, Tensor],
    bias: Tensor | None,
    start: Solution,
    sigma: float,
) -> Solution:
    """Theorem 4.9 as printed: no output is larger than the largest that is to be imitated, and the program knows no
    offset, so that a bias is fitted with the weight, where it is free: rows [x 1]."""
    every = max(1, len(found[0]) // _CONVEX_ROWS)
    x, target, offset = (part[::every].double() for part in found)
    scale = scale_of(known, target.shape[1])
    level = offset.mean(0) if full.statistics.free else torch.zeros_like(offset[0])
    spread = (offset - level).square().mean().sqrt()
    size = target.square().mean().sqrt()
    if float(spread) > 1e-3 * float(size):
        return start.with_note("another branch is added behind this layer, which the convex program does not know")
    centred = x - full.moments.inputs.mean
    ones = centred.square().mean().sqrt() * torch.ones(len(x), int(full.statistics.free), dtype=x.dtype)
    rows = torch.cat([centred, ones], 1)
    linear = project((torch.linalg.lstsq(rows, target).solution).mT, inputs=rows.mT @ rows)
    radius = nuclear_radius(linear.singular_values, min(rank, len(linear.singular_values)))
    bound = float(target.abs().max())
    fit = nuclear_max_norm(rows, target.clamp_min(0), radius=radius, bound=bound, sigma=sigma * float(size))
    weight, constant = fit.weight[:, : x.shape[1]] / scale.unsqueeze(1), fit.weight[:, x.shape[1] :]
    left, right = project(weight, inputs=full.statistics.covariance).factors(rank)
    matrix = left @ right
    own = (constant @ ones[0] - level) / scale - matrix @ full.moments.inputs.mean
    said = f"{fit.message}; rank {fit.rank} cut to {rank}" if fit.rank > rank else fit.message
    factors = Factors(balanced(right, left), _shift(full, own, bias))
    return replace(start, factors=factors, error=full.error(matrix, own), certificate=said)


def _weights(known: Pairs, targets: Tensor, counts: Tensor | None) -> Tensor:
    """(m,) how much an output behind the activation counts; ``counts`` (m,): how much each output of the layer does.

    The metric counts the layer's own output, on average over what the activation shows and hides; behind it, it is
    that over the square of the scale and over the part that is shown.
    """
    m = targets.shape[1]
    diagonal = torch.ones(m, dtype=torch.float64)
    if counts is not None:
        diagonal = counts.double().cpu()
        diagonal = diagonal + DAMPING * diagonal.mean()
    if not bool((diagonal > 0).all()):
        diagonal = torch.ones(m, dtype=torch.float64)
    shown = (targets > 0).double().mean(0).clamp_min(_SHOWN) if known.activation == "relu" else torch.ones(m)
    return diagonal / scale_of(known, m).square() / shown.double()
