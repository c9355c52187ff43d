"""The loss of centroids at any layer, its gradients, and how far they are from those of the data (lemma 3.3)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rankfold.batches import forward
from rankfold.collapse.features import is_swapped, watched
from rankfold.collapse.losses import Loss
from rankfold.collapse.partition import Partition
from rankfold.objectives import main_tensor
from rankfold.observe import before, with_first

INPUT = ""  # the cut before the first layer: the model's own input


class NotAChainError(ValueError):
    """The output depends on more than the features at this module: a residual branch passes it by."""


@contextmanager
def _entering(model: nn.Module, name: str, value: Tensor) -> Iterator[None]:
    """Within the block ``value`` enters the module ``name`` instead of whatever is given to it."""
    value = value.transpose(0, 1) if is_swapped(model, name) else value
    with before(model, {name: lambda module, args, kwargs: with_first(value, args, kwargs)}):
        yield


class Tail:
    """f_{l:L}: the part of ``model`` behind the features that enter the module ``name`` ("": the whole model).

    ``carrier``: any batch of inputs of the model; the part before the module computes on them in vain. Raises
    ``NotAChainError`` if the output depends on them, and ``ValueError`` for a module that is not called once.
    """

    def __init__(self, model: nn.Module, name: str, carrier: Tensor) -> None:
        self.model, self.name, self.carrier = model, name, carrier
        if name != INPUT:
            self._check()

    def __call__(self, features: Tensor) -> Tensor:
        """Outputs for ``features`` (n, …) as they enter the module. Gradients reach the parameters behind it."""
        if self.name == INPUT:
            return main_tensor(forward(self.model, features))
        count = len(features)
        index = torch.arange(count) % len(self.carrier)
        with _entering(self.model, self.name, features):
            return main_tensor(forward(self.model, self.carrier[index]))

    def features(self, inputs: Tensor) -> Tensor:
        """What enters the module for ``inputs`` (n, …): z^l, detached."""
        if self.name == INPUT:
            return inputs
        found: list[Tensor] = []
        with watched(self.model, [self.name], "input", lambda *given: found.append(given[2])), torch.no_grad():
            forward(self.model, inputs)
        if len(found) != 1:
            raise ValueError(
                f"{self.name} is called {len(found)} times, and the network can be cut only at a layer that is "
                "called once"
            )
        return found[0].detach()

    def _check(self) -> None:
        with torch.no_grad():
            if any(len(self.features(self.carrier[:count])) != count for count in (1, len(self.carrier))):
                raise ValueError(
                    f"the first axis of what enters {self.name} is not that of the samples (is batch_first=True "
                    "needed?)"
                )
            found = self.features(self.carrier[:1])
            one = self.carrier[:1]
            # other numbers, and other ids of tokens within their range
            other = 1.7 * one + 0.3 if one.is_floating_point() else self.carrier.min() + self.carrier.max() - one
            answers = []
            for carrier in (one, other):
                with _entering(self.model, self.name, found):
                    answers.append(main_tensor(forward(self.model, carrier)))
        if not torch.equal(*answers):
            raise NotAChainError(
                f"{self.name}: the output depends on more than what enters this layer (a residual or skip connection)"
            )


def centroids(values: Tensor, partition: Partition) -> Tensor:
    """Means of ``values`` (N, …) over the clusters: (K, …), in their dtype, summed in float64."""
    sums = torch.zeros(partition.clusters, *values.shape[1:], dtype=torch.float64)
    sums.index_add_(0, partition.index, values.detach().cpu().double())
    counts = partition.counts.view(-1, *(1,) * (values.ndim - 1))
    return (sums / counts).to(values.dtype)


def mean_loss(tail: Tail, features: Tensor, targets: Tensor, loss: Loss, weights: Tensor | None = None) -> Tensor:
    """Σ_i w_i ℓ(f_{l:L}(z_i), y_i), w = 1/N by default."""
    values = loss(tail(features), targets)
    return values.mean() if weights is None else (weights.to(values) * values).sum()


def gradients(
    tail: Tail,
    features: Tensor,
    targets: Tensor,
    loss: Loss,
    parameters: Sequence[Tensor],
    weights: Tensor | None = None,
    batch_size: int = 1024,
) -> list[Tensor | None]:
    """∇ of the mean loss with respect to each of ``parameters`` in float64; None for those before the cut."""
    if not parameters:
        return []
    count = len(features)
    shares = torch.full((count,), 1 / count, dtype=torch.float64) if weights is None else weights.double()
    total: list[Tensor | None] = [None] * len(parameters)
    for start in range(0, count, batch_size):
        part = slice(start, start + batch_size)
        value = mean_loss(tail, features[part], targets[part], loss, shares[part])
        for i, found in enumerate(torch.autograd.grad(value, list(parameters), allow_unused=True)):
            if found is not None:
                old = total[i]
                total[i] = found.double() if old is None else old + found.double()
    return total


def centroid_gradients(
    tail: Tail, features: Tensor, targets: Tensor, partition: Partition, loss: Loss, parameters: Sequence[Tensor]
) -> list[Tensor | None]:
    """∇L_C^l (equation 8): of (1/N) Σ_k N_k ℓ(f_{l:L}(z̄_k), ȳ_k), centroids as constants. Rank of each at most K."""
    weights = partition.counts.double() / len(partition.index)
    points = centroids(features, partition)
    return gradients(tail, points, centroids(targets, partition), loss, parameters, weights)


def exact_remainder(
    tail: Tail,
    features: Tensor,
    targets: Tensor,
    partition: Partition,
    loss: Loss,
    parameter: Tensor,
    *,
    nodes: int = 12,
    step: float = 1e-3,
) -> Tensor:
    """∇L − ∇L_C^l as lemma 3.3 has it, with the integral remainder (the printed one point ξ exists for numbers only).

    (1/N) Σ_k Σ_{i∈C_k} ∫₀¹ (1 − s) D²g(p̄_k + s δ_i)[δ_i, δ_i] ds with g(p) = ∇ℓ, p = (z, y), δ_i = p_i − p̄_k; by
    ``nodes`` Gauss points and a central second difference of relative size ``step``. Needs float64. For small sets:
    3 · nodes gradients of the whole batch.
    """
    s, w = np.polynomial.legendre.leggauss(nodes)
    z, y = centroids(features, partition)[partition.index], centroids(targets, partition)[partition.index]
    dz, dy = features - z, targets - y

    def gradient(position: float) -> Tensor:
        found = gradients(tail, z + position * dz, y + position * dy, loss, [parameter])[0]
        if found is None:
            raise ValueError(
                "the parameter lies before the cut, so that its gradient does not depend on the centroids: choose a "
                "cut before it"
            )
        return found

    total = torch.zeros_like(parameter, dtype=torch.float64)
    for node, weight in zip((s + 1) / 2, w / 2, strict=True):
        curvature = gradient(node + step) - 2 * gradient(node) + gradient(node - step)
        total += weight * (1 - node) * curvature / step**2
    return total


def without_grad_mode(model: nn.Module) -> Any:
    """A context in which every parameter takes part in gradients, as found afterwards."""
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    if not frozen:
        return nullcontext()

    @contextmanager
    def thawed() -> Iterator[None]:
        for parameter in frozen:
            parameter.requires_grad_(True)
        try:
            yield
        finally:
            for parameter in frozen:
                parameter.requires_grad_(False)

    return thawed()
