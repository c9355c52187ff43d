"""What the directions of several layers are worth to the loss, in one unit, where they compete for a budget."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_KEPT = 0.98  # of an average over steps, in each of them: the gradient of one batch is noise
_REST = 1e-9  # of all that is known, by which shares of energy decide where the loss says nothing


class Worth:
    """What layers in a row pass on is a product of what each of them keeps. Of a layer that keeps r directions this is
    the share S_r/S of its energy S = Σσ², and what the next one is worth is c·S·log(S_{r+1}/S_r).

    c makes one unit of all layers: without a direction σuvᵀ the loss changes by σ·uᵀgv at first order, and the mean of
    its square over batches is σ² times an entry of the empirical Fisher information. For that stands the mean square of
    all entries of the core's gradient, which few batches tell already. Where little is missing the worth is c·σ²; where
    little is kept each further direction counts for more, so that layers of flat spectra share what there is and none
    gives way to another. Energy alone does not compare layers: a weight that has hardly moved from a random start holds
    the same in each of its directions, and needs none of them.

    ``steep``: of each layer that mean square, averaged over steps, a number in float64.
    """

    def __init__(self) -> None:
        self.steep: dict[str, Tensor] = {}

    def look(self, gradients: Mapping[str, Tensor | None]) -> None:
        """Take up the gradients of the cores in a step. A layer that it has not reached, whose gradient is None or
        zero, stays as it was."""
        for name, gradient in gradients.items():
            if gradient is not None:
                now = gradient.double().square().mean()
                before = self.steep.get(name, now)
                before = torch.where(before > 0, before, now)
                self.steep[name] = torch.where(now > 0, torch.lerp(now, before, _KEPT), before)

    def of(self, spectra: Mapping[str, Tensor]) -> list[Tensor]:
        """Of each layer what its second direction, its third, … are worth, in float64; before them a zero, for the
        first always stays. A layer that no step has reached counts as the average of others."""
        steep = {name: float(value) for name, value in self.steep.items()}
        known = [steep[name] for name in spectra if name in steep]
        average = sum(known) / len(known) if known else 0.0
        kept = {name: values.double().square().cumsum(0).clamp_min(1e-300) for name, values in spectra.items()}
        weights = {name: steep.get(name, average) * float(sums[-1]) for name, sums in kept.items()}
        rest = _REST * sum(weights.values()) or 1.0
        return [(weights[name] + rest) * sums.log().diff(prepend=sums[:1].log()) for name, sums in kept.items()]
