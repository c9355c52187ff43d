"""What a method is: how one matrix is factored, at any rank. Orthogonal to how ranks are chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeGuard, runtime_checkable

import torch
from torch import Tensor

from rankfold.compress.layerwise.pairs import Pairs
from rankfold.compress.measured import SiteStatistics
from rankfold.sites import Factors, Form, Site


class Decomposition(Protocol):
    """One site factored by one method: the error at every rank at once, and the factors at the rank asked for."""

    @property
    def errors(self) -> Tensor:
        """(k + 1,) float64: the absolute error this method makes at rank 0 (the norm), 1, …, k; never rising."""
        ...

    @property
    def comparable(self) -> bool:
        """Whether squared errors are changes of the model's outputs, so that they compare between sites."""
        ...

    @property
    def levels(self) -> Tensor:
        """(k,) in [0, 1]: how large the r-th direction is beside the first; what the global rule ranks together."""
        ...

    @property
    def ranks(self) -> Sequence[int]:
        """The ranks worth considering, ascending; usually 1 to k."""
        ...

    def relative_error(self, rank: int) -> float:
        """Error of the layer's output (of its weight without data) at ``rank``, as a fraction of its norm."""
        ...

    def factors(self, rank: int) -> Factors: ...


@dataclass(frozen=True)
class Forecast:
    """The errors of one decomposition on samples that it has not seen, at rank 0, 1, …, k.

    ``errors`` in the units of ``Decomposition.errors``; ``relative``: of the layer's output, as a fraction of its
    deviation there. Both may rise with the rank, where directions were fitted to chance.
    """

    errors: Tensor
    relative: Tensor


@runtime_checkable
class Forecasting(Protocol):
    """A decomposition that can be checked on other data of the same site."""

    def forecast(self, moment: Tensor) -> Forecast:
        """``moment``: the second moment of one row there, at the layer's ``side``."""
        ...


class Method(Protocol):
    """``decompose`` sees a parameter, the site's geometry and statistics; never a module, never a budget.

    ``bias`` is the layer's own, where it has one.
    """

    @property
    def name(self) -> str: ...
    @property
    def forms(self) -> frozenset[Form]: ...
    @property
    def needs_data(self) -> bool: ...

    def decompose(
        self,
        site: Site,
        form: Form,
        weight: Tensor,
        statistics: SiteStatistics | None,
        bias: Tensor | None = None,
    ) -> Decomposition | None:
        """None where the method does not offer this form for this site."""
        ...


@dataclass(frozen=True)
class Solution:
    """One site fitted to the original, given what the compressed network feeds it.

    ``error``: of the layer's output against its target, as a fraction of the target's deviation, on the calibration
    data. ``losses``: for every form that was tried the price of rank 0, 1, …, k there. ``certificate``: how well the
    program was solved, in words; ``note``: what a person should know. ``alone``: the factors that the original alone
    gives, from the same samples, where they were weighed. ``few``: the samples are too few for this layer.
    """

    factors: Factors
    error: float
    losses: dict[Form, Tensor]
    certificate: str = ""
    note: str = ""
    alone: Factors | None = None
    few: bool = False

    def with_note(self, note: str) -> Solution:
        return replace(self, note="; ".join(filter(None, (self.note, note))))

    def held(self, free: bool) -> Solution:
        """The same; ``ValueError`` for a shift where no bias of the new layer is ``free``: nothing would hold it."""
        if self.factors.shift is not None and not free:
            raise ValueError("the method fitted a bias, and this layer is to have none of its own")
        return self


class LayerwiseMethod(Method, Protocol):
    """A method that fits each layer to the original's output, given what the compressed network feeds it.

    Ranks are chosen as for any method; factors come from ``solve``, layer after layer (``fit_layers``).
    ``rows``: how many rows of each site it needs to see; 0 if moments are enough.
    """

    @property
    def rows(self) -> int: ...
    @property
    def kept(self) -> bool:
        """Whether layers that stay dense are fitted anew."""
        ...

    @property
    def rounds(self) -> int:
        """Fits of all layers; before each but the first, ranks are chosen anew."""
        ...

    def solve(
        self, site: Site, form: Form, rank: int, weight: Tensor, bias: Tensor | None, known: Pairs,
        metric: Tensor | None,
    ) -> Solution:  # fmt: skip
        """``form`` DENSE asks for the best full matrix, in place of a layer that is kept."""
        ...


def fits_layers(method: Method) -> TypeGuard[LayerwiseMethod]:
    """Whether the factors of ``method`` come from fitting layer after layer."""
    return hasattr(method, "solve")


def relative(values: Tensor) -> Tensor:
    """Values divided by the first; zeros where the first is zero."""
    return values / values[0] if values.numel() and values[0] > 0 else torch.zeros_like(values)


def balanced(right: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
    """(right, left) with row i of the one and column i of the other of equal norm; the product does not change.

    Gradient steps and weight decay then treat both factors alike.
    """
    rows, columns = right.norm(dim=-1), left.norm(dim=-2)
    scale = (columns / rows.clamp_min(torch.finfo(right.dtype).tiny)).sqrt()
    scale = torch.where((rows > 0) & (columns > 0), scale, torch.ones_like(scale))
    return right * scale.unsqueeze(-1), left / scale.unsqueeze(-2)
