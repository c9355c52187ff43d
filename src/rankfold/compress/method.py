"""What a method is: how one matrix is factored, at any rank. Orthogonal to how ranks are chosen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from rankfold.compress.statistics import SiteStatistics
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
