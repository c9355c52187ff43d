"""What the directions of several layers are worth to the loss, in one unit, where they compete for a budget."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from rankfold.linalg.manifold.tangent import shares

_KEPT = 0.8  # of an average over windows, in each of them: the gradient of one batch is noise
_REST = 1e-9  # of all that is known, by which energy decides where the loss says nothing


class Worth:
    """Without a direction σuvᵀ the loss changes by σ·uᵀgv at first order. The mean of its square over batches is σ²
    times an entry of the empirical Fisher information; for that stands the mean square of all entries of the core's
    gradient, which few batches tell already. Within a layer the order is that of σ; between layers it makes one unit of
    what energy alone does not compare: a weight that has hardly moved from a random start holds the same in each of its
    directions, and needs none of them.

    ``steep``: of each layer that mean square, averaged over windows.
    """

    def __init__(self) -> None:
        self.steep: dict[str, float] = {}

    def look(self, gradients: Mapping[str, Tensor | None]) -> None:
        """Take up the gradients of the cores at the end of a window. A layer that this step has not reached stays."""
        for name, gradient in gradients.items():
            if gradient is not None:
                now = float(gradient.double().square().mean())
                self.steep[name] = _KEPT * self.steep.get(name, now) + (1 - _KEPT) * now

    def of(self, spectra: Mapping[str, Tensor]) -> list[Tensor]:
        """Of each layer what its first direction, its second, … are worth, in float64. A layer that no step has reached
        counts as the average of others."""
        known = [self.steep[name] for name in spectra if name in self.steep]
        average = sum(known) / len(known) if known else 0.0
        worth = {n: values.double().square() * self.steep.get(n, average) for n, values in spectra.items()}
        rest = _REST * sum(float(values.sum()) for values in worth.values()) or 1.0
        return [values + rest * shares(spectra[name]) for name, values in worth.items()]
