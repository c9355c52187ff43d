"""What each matrix of a network amplifies, whatever it is stored as: its singular values, largest over smallest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import inf
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.batches import copied
from rankfold.layers import FactoredConv, InTraining
from rankfold.sites import Form, factored_sites, opened, sites, unwrap
from rankfold.spectrum import spectrum


@dataclass(frozen=True)
class Amplification:
    """Of one layer: its ``rank``, the ``largest`` singular value, the smallest that belongs to its rank, and the
    ``condition`` number, their quotient.

    Directions that the layer drops do not count: a change of the input along them changes nothing. Of a convolution
    the matrix has a row for each output channel and a column for each entry of a kernel; its largest singular value is
    not the gain of the convolution, which is at most √(kernel positions) times as large.
    """

    name: str
    shape: tuple[int, int]
    rank: int
    largest: float
    smallest: float

    @property
    def condition(self) -> float:
        return self.largest / self.smallest if self.smallest > 0 else inf

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"shape": list(self.shape), "condition": self.condition}


@torch.no_grad()
def amplifications(model: nn.Module) -> tuple[Amplification, ...]:
    """Every linear layer and convolution of ``model``, in the order of its modules; embeddings are looked up, and left
    out. A layer of factors is measured as the one that it stands for. Cost: one SVD of each, in float64."""
    root, found = unwrap(model), []
    order = {name: place for place, (name, _) in enumerate(root.named_modules(remove_duplicate=False))}
    with opened(root):
        for name, matrix, precision in _matrices(root):
            values = spectrum(matrix)
            rank = values.numerical_rank(precision * max(values.shape))
            smallest = float(values.values[rank - 1]) if rank else 0.0
            found.append(Amplification(name, values.shape, rank, values.spectral_norm, smallest))
    return tuple(sorted(found, key=lambda each: order.get(each.name, len(order))))


def _matrices(root: nn.Module) -> Iterator[tuple[str, Tensor, float]]:
    """Name, matrix, and the relative rounding of its entries: thin factors, which say the rank, are multiplied in
    float64."""
    exact, inside = torch.finfo(torch.float64).eps, []
    for site in factored_sites(root):
        inside.append(f"{site.name}.")
        weight = site.layer.weight(copied(root.get_submodule(site.name)).double())
        yield site.name, site.layer.geometry(Form.FACTORED).matrix(weight).detach(), exact
    for name, module in root.named_modules():
        if isinstance(module, FactoredConv) and f"{name}." not in inside:  # several ranks: Tucker, CP
            inside.append(f"{name}.")
            weight = getattr(copied(module).double(), "weight")  # noqa: B009
            yield name, weight.flatten(1).detach(), exact
    for site in sites(root):
        if site.kind == "Embedding" or site.name.startswith(tuple(inside)):
            continue
        module = root.get_submodule(site.name)
        if isinstance(module, InTraining):
            weight = site.layer.weight(copied(module).double())
            yield site.name, site.layer.geometry(Form.FACTORED).matrix(weight).detach(), exact
        else:
            yield site.name, site.matrix(root), torch.finfo(site.weight(root).dtype).eps
