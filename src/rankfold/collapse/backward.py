"""One backward pass over a set: gradients, what enters every layer, and gradients of rows put together in clusters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from rankfold.batches import forward
from rankfold.collapse.centroid import centroids
from rankfold.collapse.features import is_swapped, patches
from rankfold.collapse.losses import Loss
from rankfold.collapse.partition import Partition
from rankfold.objectives import main_tensor
from rankfold.observe import after, first_of

Rows = tuple[str, Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Whole:
    """What one pass over N samples found.

    ``gradients``: ∇ of the mean loss for each weight asked for, float64; None where the output does not depend on it.
    ``features``: what entered each layer that is called once for a batch, (N, …). ``answers``: the outputs, (N, …).
    ``local``: G_K of every layer whose rows can be taken apart (see ``local_gradients``).
    """

    gradients: list[Tensor | None]
    features: dict[str, Tensor]
    answers: Tensor
    local: dict[str, Tensor]


@dataclass
class _Seen:
    """Of one forward pass: what entered, call by call, and zeros added to the outputs, which then have gradients."""

    entered: dict[str, list[tuple[nn.Module, Tensor]]] = field(default_factory=dict)
    zeros: dict[str, list[Tensor]] = field(default_factory=dict)

    @property
    def every(self) -> list[Tensor]:
        """The zeros of all calls, layer after layer."""
        return [each for calls in self.zeros.values() for each in calls]


@contextmanager
def _watching(model: nn.Module, names: Sequence[str], slopes: bool) -> Iterator[_Seen]:
    seen = _Seen()

    def watch(name: str, swapped: bool) -> Callable[..., Tensor | None]:
        def hook(module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> Tensor | None:
            entering = first_of(args, kwargs).detach()
            seen.entered.setdefault(name, []).append((module, entering.transpose(0, 1) if swapped else entering))
            if not slopes:
                return None
            # what is added here has the gradient at the output, even if the output is overwritten in place
            zeros = torch.zeros_like(output.transpose(0, 1) if swapped else output, requires_grad=True)
            seen.zeros.setdefault(name, []).append(zeros)
            return output + (zeros.transpose(0, 1) if swapped else zeros)

        return hook

    with after(model, {name: watch(name, is_swapped(model, name)) for name in names}):
        yield seen


def whole_pass(
    model: nn.Module,
    names: Sequence[str],
    inputs: Tensor,
    targets: Tensor,
    partition: Partition,
    loss: Loss,
    weights: Sequence[Tensor] = (),
    *,
    batch_size: int = 1024,
    local: bool = True,
) -> Whole:
    """Gradients of the mean loss on ``inputs`` (N, …), ``targets`` (N, C), and what is known of the layers ``names``.

    For the model in the mode it is in. Cost: one forward and one backward pass; with ``local`` two additions for every
    number of the rows.
    """
    total: list[Tensor | None] = [None] * len(weights)
    entered: dict[str, list[Tensor]] = {}
    answers = []
    sums: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
    for start in range(0, len(inputs), batch_size):
        part = slice(start, start + batch_size)
        with _watching(model, names, local) as seen:
            answer = main_tensor(forward(model, inputs[part]))
        value = loss(answer, targets[part]).sum() / len(inputs)
        wanted = [*weights, *seen.every]
        found = torch.autograd.grad(value, wanted, allow_unused=True) if wanted else ()
        for i, slope in enumerate(found[: len(weights)]):
            if slope is not None:
                old = total[i]
                total[i] = slope.double() if old is None else old + slope.double()
        for name, calls in seen.entered.items():
            entered.setdefault(name, []).extend(value for _, value in calls)
        answers.append(answer.detach())
        index = partition.index[part]
        for name, a, delta in _rows(seen, found[len(weights) :]):
            _add(sums, name, a, delta, index.repeat_interleave(len(a) // len(index)), partition.clusters)
    return Whole(
        total,
        {name: joined for name, parts in entered.items() if (joined := _joined(parts, len(inputs))) is not None},
        torch.cat(answers),
        {
            name: (outside / counts.clamp_min(1).unsqueeze(1)).mT @ inside
            for name, (counts, inside, outside) in sums.items()
        },
    )


def _joined(parts: list[Tensor], count: int) -> Tensor | None:
    """All of a layer's features, or None: of different shapes, or not one for each sample."""
    alike = len({part.shape[1:] for part in parts}) == 1 and sum(len(part) for part in parts) == count
    return torch.cat(parts) if alike else None


def _rows(seen: _Seen, slopes: Sequence[Tensor | None]) -> Iterator[Rows]:
    """Rows of each layer, those of all of its calls, sample by sample."""
    left = iter(slopes)
    for name, zeros in seen.zeros.items():
        found = [
            _of_call(module, entering, slope)
            for (module, entering), slope in zip(seen.entered[name], [next(left) for _ in zeros], strict=True)
            if slope is not None
        ]
        calls = [call for call in found if call is not None]
        if calls and len(calls) == len(found) and len({len(a) for a, _ in calls}) == 1:
            a, delta = (torch.cat(part, 1).flatten(0, 1) for part in zip(*calls, strict=True))
            yield name, a, delta


def _of_call(module: nn.Module, entering: Tensor, slope: Tensor) -> tuple[Tensor, Tensor] | None:
    """a (n, P, k) and δ (n, P, m) of one call; None where they cannot be taken apart."""
    try:
        a = patches(module, entering).double()
    except ValueError:
        return None
    delta = slope.movedim(1, -1) if isinstance(module, nn.modules.conv._ConvNd) else slope
    delta = delta.double().reshape(len(a), -1, delta.shape[-1])
    return (a, delta) if a.shape[1] == delta.shape[1] else None


def _add(
    sums: dict[str, tuple[Tensor, Tensor, Tensor]], name: str, a: Tensor, delta: Tensor, index: Tensor, clusters: int
) -> None:
    if name not in sums:
        empty = torch.zeros(clusters, dtype=torch.float64)
        sums[name] = (empty, empty.new_zeros(clusters, a.shape[1]), empty.new_zeros(clusters, delta.shape[1]))
    counts, inside, outside = sums[name]
    counts += index.bincount(minlength=clusters)
    inside.index_add_(0, index, a)
    outside.index_add_(0, index, delta)


def layer_rows(
    model: nn.Module,
    names: Sequence[str],
    inputs: Tensor,
    targets: Tensor,
    loss: Loss,
    scale: float,
    run: Callable[[Tensor], Tensor] | None = None,
) -> list[Rows]:
    """(name, a (R, n), δ (R, m)) in float64: the rows that enter each layer's matrix and the gradients at its outputs.

    Σ_r δ_r a_rᵀ is the gradient of ``scale`` · Σ ℓ. Layers whose rows cannot be taken apart (groups) are left out, and
    those that the outputs do not depend on; of one that is called several times there are the rows of all calls.
    ``run``: outputs for ``inputs``, by default those of ``model``.
    """
    with _watching(model, names, True) as seen:
        answer = main_tensor(forward(model, inputs)) if run is None else run(inputs)
        value = loss(answer, targets).sum() * scale
    return list(_rows(seen, torch.autograd.grad(value, seen.every, allow_unused=True)))


def local_gradients(
    model: nn.Module,
    names: Sequence[str],
    inputs: Tensor,
    targets: Tensor,
    partition: Partition,
    loss: Loss,
    batch_size: int = 1024,
) -> dict[str, Tensor]:
    """G_K of every layer whose rows can be taken apart: the gradient with rows replaced by their cluster means.

    ∇_W L = Σ_r δ_r a_rᵀ over the rows r that meet the matrix (samples, patches of a convolution, tokens), δ_r the
    gradient at its output. With the rows of a sample in the sample's cluster, G_K = Σ_k N_k δ̄_k ā_kᵀ has rank ≤ K, and
    ‖∇_W L − G_K‖ = ‖Σ_k Σ_{r∈C_k} (δ_r − δ̄_k)(a_r − ā_k)ᵀ‖ ≤ √S_δ √S_a with the within-cluster sums of squares of both.
    No second derivative is needed, no chain of layers, and it holds for convolution and attention as it stands.
    """
    return whole_pass(model, names, inputs, targets, partition, loss, batch_size=batch_size).local


def product_bound(a: Tensor, delta: Tensor, partition: Partition) -> float:
    """√S_δ √S_a of rows a (R, n) and δ (R, m): bounds ‖∇_W L − G_K‖, without forming either."""
    inner, outer = (
        (rows - centroids(rows, partition)[partition.index]).square().sum().sqrt()
        for rows in (a.double(), delta.double())
    )
    return float(inner * outer)
