"""What the directions of several layers are worth to the loss, in one unit, where they compete for a budget."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rankfold.linalg.manifold.tangent import Triple, shares, wide
from rankfold.linalg.manifold.tucker import TuckerPoint

_REST = 1e-9  # of all that is known, by which energy decides where the loss says nothing


class Worth:
    """Without a direction σuvᵀ the loss changes by ⟨g, σuvᵀ⟩ at first order; the mean of its square over batches is
    σ² times an entry of the empirical Fisher information. Of a single batch one entry is noise, so that it is the mean
    over the entries of g that share u or v. A layer's own energy says nothing of the sort: a weight that has hardly
    moved from a random start holds the same in each of its directions, and needs none of them.

    ``seen``: of each layer the mean square of its gradient's entries when one was last at hand.
    """

    def __init__(self) -> None:
        self.seen: dict[str, float] = {}

    def of(
        self,
        points: Mapping[str, Triple | TuckerPoint],
        spectra: Mapping[str, Tensor],
        grads: Mapping[str, Tensor | None],
    ) -> list[Tensor]:
        """Of each layer what its first direction, its second, … are worth, in float64. A layer that this step has not
        reached counts by what was ``seen``, one that none has reached as the average of others. Cost O(r³) a layer."""
        slopes: dict[str, Tensor | float] = {}
        for name, point in points.items():
            gradient = grads[name]
            if gradient is not None and gradient.shape == point.core.shape:
                gradient = wide(gradient).to(point.core)
                slopes[name] = point.slopes(gradient).double()
                self.seen[name] = float(gradient.double().square().mean())
        known = [self.seen[name] for name in points if name in self.seen]
        for name in points.keys() - slopes.keys():
            slopes[name] = self.seen.get(name, sum(known) / len(known) if known else 0.0)
        worth = {name: spectra[name].double().square() * slopes[name] for name in points}
        rest = _REST * float(torch.stack([values.sum().cpu() for values in worth.values()]).sum()) or 1.0
        return [values + rest * shares(spectra[name]) for name, values in worth.items()]
