"""Tucker-2 of a convolution kernel: both channel modes reduced, the window kept (Kim et al. 2016); no data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from rankfold.compress.measured import SiteStatistics
from rankfold.compress.methods.method import relative
from rankfold.forms.tucker import TUCKER
from rankfold.linalg import svd
from rankfold.sites import Factors, Form, Site


@dataclass(frozen=True)
class Tucker:
    """Rank r keeps r output channels and the same fraction of the input channels.

    The errors at all ranks come from one higher-order SVD; the factors from higher-order orthogonal iteration
    (tensorly), which starts there and is never worse.
    """

    name: str = "tucker"
    forms: frozenset[Form] = frozenset({Form.TUCKER})
    needs_data: bool = False

    def decompose(
        self,
        site: Site,
        form: Form,
        weight: Tensor,
        statistics: SiteStatistics | None = None,
        bias: Tensor | None = None,
    ) -> Tuckered:
        layer: Any = site.layer  # a convolution: no other layer offers this form
        return Tuckered(weight, partial(TUCKER.ranks_of, layer), layer.max_rank(form))


class Tuckered:
    comparable = False

    def __init__(self, weight: Tensor, pair: Callable[[int], tuple[int, int]], full: int) -> None:
        self.weight = weight.detach().double()
        self.pair, self.full = pair, full

    @cached_property
    def _core(self) -> Tensor:
        """The kernel in its own singular bases: energy (C_out, C_in) of each pair of channel directions."""
        w = self.weight
        out_basis = svd(w.flatten(1))[0]
        in_basis = svd(w.transpose(0, 1).flatten(1))[0]
        core = torch.einsum("op,oc...->pc...", out_basis, w)
        return torch.einsum("cq,pc...->pq...", in_basis, core).flatten(2).square().sum(2)

    @cached_property
    def errors(self) -> Tensor:
        core = self._core
        errors = [core.sum().sqrt()]
        for rank in self.ranks:
            r_out, r_in = self.pair(rank)
            errors.append((core[r_out:].sum() + core[:r_out, r_in:].sum()).sqrt())
        return torch.stack(errors)

    @property
    def levels(self) -> Tensor:
        return relative(self.errors)[:-1]

    @property
    def ranks(self) -> Sequence[int]:
        return range(1, self.full + 1)

    def relative_error(self, rank: int) -> float:
        return float(relative(self.errors)[rank])

    def factors(self, rank: int) -> Factors:
        r_out, r_in = self.pair(rank)
        from tensorly import backend, set_backend  # needed by this method alone, and slow to import
        from tensorly.decomposition import partial_tucker

        before = backend.get_backend()
        set_backend("pytorch", local_threadsafe=True)
        try:
            (core, (up, down)), _ = partial_tucker(self.weight, rank=[r_out, r_in], modes=[0, 1], init="svd")
        finally:
            set_backend(before, local_threadsafe=True)
        return Factors((down.T.contiguous(), core, up))
