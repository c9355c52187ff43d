"""An adapter of a compressed network that wins back what was lost, and merges into its factors at their own ranks."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.adapt.beside import read_through
from rankfold.batches import check_rereadable, forward
from rankfold.batches.parts import parts_of
from rankfold.compress.repair.natural import SHARE, Natural
from rankfold.compress.repair.whole import Steps, check_steps, gradients_of, trainable, tune_whole_
from rankfold.costs import evaluating
from rankfold.linalg import svd
from rankfold.linalg.brief import brief
from rankfold.linalg.levels import levels
from rankfold.objectives import Objective, objective_named
from rankfold.observe import Samples
from rankfold.run.ordinary import ordinarily
from rankfold.run.progress import Progress, showing
from rankfold.sites import factored_layers, unwrap, without_fused_attention

LOOKED = 16  # batches whose gradient chooses where the adapter is
_WEIGHT = "weight"


@dataclass(frozen=True)
class Restored:
    """``ranks`` of the adapter by matrix (``layer.down``, ``layer.up`` of a factored layer, the name of a dense one),
    and its ``params``. Divergence from the original on held-out samples: ``before``, and ``after`` ``step`` steps, the
    best of those that were looked at."""

    ranks: Mapping[str, int]
    params: int
    before: float
    after: float
    step: int

    __repr__ = brief


@showing
@ordinarily
def restore_(
    model: nn.Module,
    original: nn.Module,
    data: Any,
    *,
    objective: Objective | str = "teacher",
    params: float = 0.01,
    steps: int = 200,
    learning_rate: float = SHARE,
    samples: int | None = 2048,
    batch_size: int = 2,
    progress: Progress | None = None,
) -> Restored:
    """Win back what ``model`` lost when it was compressed, by an adapter that merges: ranks and size stay.

    The adapter is beside the factors, not beside their product: each factor F (and each matrix that was left dense) may
    have F + B A, whose shape is that of F, so that merging is exact. Rows and columns are counted each in units of its
    own (`levels`), so that a network that is rescaled exactly, as by a neuron's inputs times 300 and its outputs over
    300, is adapted exactly as before. Where an adapter is worth most is told by the gradient of the divergence in these
    units: its singular directions, those with the largest values for their numbers. A begins with them, B with zero.
    Tables and tied weights have none, nor have matrices that you froze (``requires_grad``), unless all are frozen; all
    else stays as it is, also rows and columns of zeros, and the whole model where the work is interrupted. Labels are
    never looked at.

    Args:
        model: with factored layers, changed in place.
        original: that it was made from.
        data: inputs, with or without labels.
        objective: what the outputs mean.
        params: numbers of the adapter at most, up to 1 as a share of the model's.
        steps: of the natural gradient, entry by entry. The first four only look.
        learning_rate: the share of what is lost that the first step promises to win back; it falls to zero.
        samples: of ``data`` that are used.
        batch_size: of a step.
        progress: called as ``progress(what, done, total)`` as the work goes on.

    Returns:
        Where the adapter was, and what it gave: the best of six looks at samples that are held back is kept, the start
        among them.

    Raises:
        ValueError: nothing is factored, empty data, less than one step or sample, a divergence that is not finite, or
            fewer ``params`` than one direction takes.

    Cost: one backward pass over 16 batches, the singular values of each matrix, ``steps`` steps and as many forward
    passes of the original.

    Example:
        >>> net, x = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)), torch.randn(64, 16)
        >>> small = rf.apply_(copy.deepcopy(net), rf.plan(net, "params=0.6", data=x))
        >>> found = rf.restore_(small, net, x, params=60, steps=20, batch_size=16)
        >>> found.params <= 60 and found.after <= found.before
        True
    """
    root, reference, asked = unwrap(model), unwrap(original), objective_named(objective)
    check_rereadable(data)
    if not factored_layers(root):
        raise ValueError("nothing in this model is factored: compress it first (rankfold.apply_)")
    if not 0 < params < float("inf"):
        raise ValueError(f"params must be a share of the model, above 0, or a count above 1, got {params!r}")
    check_steps(steps, batch_size, samples, learning_rate, what="restore_")
    whole = sum(parameter.numel() for parameter in root.parameters())
    places = _places(root)
    taught = Samples(data, samples, batch_size).without_judges().data
    gradients = _gradients(root, reference, places, parts_of(taught, batch_size), asked)
    scales = {name: levels(places[name].detach().flatten(1)) for name in gradients}
    starts = _starts(scales, gradients, int(params * whole if params <= 1 else params))
    added = {name: Added(start, *scales[name]) for name, start in starts.items()}
    trained = [part for one in added.values() for part in (one.left, one.right)]
    how = Steps(steps, learning_rate, samples, batch_size, Natural)
    with ExitStack() as stack:
        for name, one in added.items():
            stack.enter_context(read_through(root.get_submodule(name), _WEIGHT, one))
        way = tune_whole_(root, reference, trained, data, asked, how, progress)
    with torch.no_grad():
        for name, one in added.items():
            places[name].copy_(one(places[name]))
    ranks = {name: len(one.right) for name, one in added.items()}
    return Restored(ranks, sum(part.numel() for part in trained), way.before, way.after, way.step)


class Added(nn.Module):
    """W ↦ W + diag(r) B A diag(c) in the shape of W, r and c its `levels`: B zero at first, A of entries about one, in
    float32."""

    def __init__(self, right: Tensor, rows: Tensor, columns: Tensor) -> None:
        super().__init__()
        self.rows, self.columns = rows.float().unsqueeze(1), columns.float()
        self.right = nn.Parameter(right.to(self.columns) * len(columns) ** 0.5)
        self.left = nn.Parameter(self.columns.new_zeros(len(rows), len(right)))

    def forward(self, weight: Tensor) -> Tensor:
        update = (self.rows * self.left) @ (self.right * self.columns)
        return weight + update.reshape(weight.shape).to(weight)


def _places(root: nn.Module) -> dict[str, nn.Parameter]:
    """By name of its module every weight that is a matrix, alone in its place, no table, and `trainable`."""
    owners: dict[int, list[str]] = {}
    for name, module in root.named_modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append(name)
    found = {}
    for name, module in root.named_modules():
        weight = module._parameters.get(_WEIGHT)
        if weight is None or weight.dim() < 2 or not weight.is_floating_point() or isinstance(module, nn.Embedding):
            continue
        if len(owners[id(weight)]) == 1 and min(weight.flatten(1).shape) > 1:
            found[name] = weight
    free = {id(weight) for weight in trainable(found.values())}
    return {name: weight for name, weight in found.items() if id(weight) in free}


def _gradients(
    root: nn.Module, original: nn.Module, places: Mapping[str, nn.Parameter], batches: Any, objective: Objective
) -> dict[str, Tensor]:
    """Of the divergence from the original, over a few batches; of those that it depends on."""
    with evaluating(root), evaluating(original), without_fused_attention(), gradients_of(root, list(places.values())):
        for number, batch in enumerate(islice(batches, LOOKED), 1):
            with torch.no_grad():
                wanted = forward(original, batch)
            with torch.enable_grad():
                distance = objective.distance(forward(root, batch), wanted, batch)
            if not bool(distance.isfinite()):
                raise ValueError(
                    f"batch {number} of the data: the model's answers are {distance.item()} away from the original's: "
                    "take NaN and infinite values out of the data, or out of the weights of the two networks"
                )
            if distance.requires_grad:  # else all that leads to it is whole numbers
                distance.backward()
        return {
            name: weight.grad.detach().flatten(1).float() for name, weight in places.items() if weight.grad is not None
        }


def _starts(
    scales: Mapping[str, tuple[Tensor, Tensor]], gradients: Mapping[str, Tensor], numbers: int
) -> dict[str, Tensor]:
    """Right directions (r, n) of the adapter by matrix, in units of its rows and columns (``scales``): those that are
    worth most for their numbers, together at most ``numbers``."""
    atoms: list[tuple[float, int, str]] = []
    rights = {}
    for name, gradient in gradients.items():
        rows, columns = (scale.to(gradient) for scale in scales[name])
        _, values, rights[name] = svd(rows.unsqueeze(1) * gradient * columns)
        price, norm = sum(gradient.shape), gradient.numel() ** 0.5  # of the matrix in these units
        atoms += [(float(value) * norm / price, price, name) for value in values if float(value) > 0]
    taken: dict[str, int] = {}
    left = numbers
    for _, price, name in sorted(atoms, key=lambda atom: -atom[0]):
        if price <= left:
            taken[name], left = taken.get(name, 0) + 1, left - price
    if not taken:
        least = min((price for _, price, _ in atoms), default=0)
        raise ValueError(
            (
                f"{numbers:,} numbers are too few for an adapter: one direction takes at least {least:,}; allow that "
                "many (params=)"
            )
            if atoms
            else (
                "there is nothing to train: either the answers are already those of the original, or they depend "
                "only on matrices stored as whole numbers (int8), which cannot be trained"
            )
        )
    return {name: rights[name][:rank] for name, rank in taken.items()}
