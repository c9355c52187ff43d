"""Adapters made smaller, and several made one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from rankfold.adapt.extraction.alike import check_one_network, other_bases
from rankfold.adapt.extraction.budget import Asked, asked, room
from rankfold.adapt.extraction.compare import LeftOut
from rankfold.adapt.extraction.result import Extraction, extraction_of
from rankfold.adapt.extraction.spread import Update, spread
from rankfold.adapt.finite import finite_pair
from rankfold.adapt.peft_format import Adapter
from rankfold.adapt.reading import DORA, read_adapter
from rankfold.linalg.leading import Leading, leading_of_product
from rankfold.run.ordinary import ordinarily

_WITH_HEAD = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")


@ordinarily
def combine(
    adapters: Sequence[str | Path | Adapter],
    budget: str | Asked | Sequence[str],
    *,
    weights: Sequence[float] | None = None,
) -> Extraction:
    """One adapter within ``budget`` for the sum of the updates of one or several: Σ wᵢ Bᵢ Aᵢ, cut once.

    A layer that one of them lacks is updated by the others alone. Modules to save come along from a single adapter; of
    several they are left out and listed. Adapters that name different bases give a note. The error is against the whole
    sum; ``save`` of the result writes.

    Args:
        adapters: folders of PEFT's LoRA (rsLoRA, patterns, convolutions and embeddings too), or what ``read_adapter``
            gave.
        budget: as in ``rankfold.extract``; as there is no model, ``params`` is a fraction of what all adapters together
            store, or a count.
        weights: 1 each by default.

    Returns:
        An ``Extraction``.

    Raises:
        ValueError: adapters whose layers are called as those of different networks, or are of other sizes; DoRA; values
            that are not finite; a number of weights that does not fit.
        BudgetError: a budget that cannot be met.

    Cost: O((m + n) r²) for each layer, r the sum of ranks: no product is formed.

    Example:
        >>> net = rf.deep_lora_(nn.Sequential(nn.Linear(16, 8)), rank=4, epsilon=0.5)
        >>> rf.adapt.combine([rf.adapt.save_adapter(net, "adapter")], "rank=2").adapter.ranks
        {'0': 2}
    """
    wanted, read = asked(budget), [a if isinstance(a, Adapter) else read_adapter(a) for a in adapters]
    if not read:
        raise ValueError("no adapter was given: give the folder of at least one")
    scales = [1.0] * len(read) if weights is None else list(weights)
    if len(scales) != len(read) or not all(abs(scale) < float("inf") for scale in scales):
        raise ValueError(f"weights= needs one finite number for each of the {len(read)} adapters, got {scales}")
    check_one_network(read)
    scaled = next((name for adapter in read for name in adapter.magnitudes), None)
    if scaled is not None:
        raise ValueError(f"{scaled}: {DORA}")
    names = list(dict.fromkeys(name for adapter in read for name in adapter.pairs))
    stacked = {name: _stacked(name, read, scales) for name in names}
    shapes = {name: (len(left), right.shape[1]) for name, (right, left) in stacked.items()}
    updates = {
        name: Update(shapes[name], _deferred(*pair), stored=_stored(name, read)) for name, pair in stacked.items()
    }
    size = sum(adapter.params for adapter in read)
    whole = dict(read[0].whole) if len(read) == 1 else {}
    stored = sum(tensor.numel() for tensor in whole.values())
    limit = room(wanted.limit(size), stored, min((sum(shape) for shape in shapes.values()), default=0))
    parts = spread(updates, wanted, limit)
    first = read[0]
    # PEFT looks for a head of its own accord where the task has one
    headless = len(read) > 1 and first.task in _WITH_HEAD
    blank = replace(
        first, pairs={}, scaling=1.0, whole=whole, base_copies=(),
        kernels={name: shape for adapter in read for name, shape in adapter.kernels.items()},
        lookups=frozenset[str]().union(*(adapter.lookups for adapter in read)),
        stored_transposed=all(adapter.stored_transposed for adapter in read),
        base_model=_one(adapter.base_model for adapter in read), task=None if headless else first.task,
    )  # fmt: skip
    left = () if len(read) == 1 else tuple(
        LeftOut(name, "a module of which one of the adapters stores the whole weight", None)
        for name in dict.fromkeys(name for adapter in read for name in adapter.whole)
    )  # fmt: skip
    copies = dict.fromkeys(name for adapter in read for name in adapter.base_copies)
    left += tuple(
        LeftOut(name, "a copy of the base's own tensor, saved beside an update of it", None) for name in copies
    )
    found = extraction_of(parts, shapes, blank, wanted, size, left, False)
    return replace(found, notes=(*other_bases(read), *found.notes))


def _stacked(name: str, read: Sequence[Adapter], scales: Sequence[float]) -> tuple[Tensor, Tensor]:
    """(A of all below one another, B of all beside one another): their product is the weighted sum."""
    given = [
        (a.double(), scale * adapter.scaling * b.double())  # before the product, which half precision would round
        for adapter, scale in zip(read, scales, strict=True)
        if name in adapter.pairs
        for a, b in [finite_pair(name, adapter.pairs[name])]
    ]
    sizes = {(len(b), a.shape[1]) for a, b in given}
    if len(sizes) > 1:
        told = " and ".join(f"{m}×{n}" for m, n in sorted(sizes))
        raise ValueError(f"{name} has different sizes: {told}. These adapters do not belong to the same network")
    return torch.cat([a for a, _ in given]), torch.cat([b for _, b in given], 1)


def _stored(name: str, read: Sequence[Adapter]) -> Callable[[], torch.dtype]:
    """The type of the factors of a layer: float64 where one of the adapters has it in that, else float32."""
    kinds = {matrix.dtype for adapter in read if name in adapter.pairs for matrix in adapter.pairs[name]}
    return lambda: torch.float64 if torch.float64 in kinds else torch.float32


def _deferred(right: Tensor, left: Tensor) -> Callable[[int], Leading]:
    def found(rank: int) -> Leading:
        return leading_of_product(left, right)

    return found


def _one(names: Iterable[str]) -> str:
    """The one name that all have, where they have one."""
    known = {name for name in names if name}
    return known.pop() if len(known) == 1 else ""
