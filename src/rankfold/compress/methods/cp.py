"""CP of a convolution kernel: a sum of r rank-one tensors (Lebedev et al. 2015); no data."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rankfold.compress.measured import SiteStatistics
from rankfold.compress.methods.method import relative
from rankfold.sites import Factors, Form, Site

SEED = 0
_WORK = 5e9  # multiply-adds of the search of one kernel, about: a minute of one core at most
_FEWEST = 5  # iterations below which a rank is not worth looking at


@dataclass(frozen=True)
class CP:
    """Alternating least squares (tensorly) from the singular bases.

    The best rank-r tensor has no closed form and does not contain the best rank r − 1, so the error is computed on a
    grid of about ``steps`` ranks; in between, the next smaller rank of the grid is used, whose error is reported.
    The search is bounded: of a large kernel fewer iterations are made, then smaller ranks alone looked at, which its
    ``note`` says.
    """

    steps: int = 8
    iterations: int = 60
    name: str = "cp"
    forms: frozenset[Form] = frozenset({Form.CP})
    needs_data: bool = False

    def decompose(
        self,
        site: Site,
        form: Form,
        weight: Tensor,
        statistics: SiteStatistics | None = None,
        bias: Tensor | None = None,
    ) -> Canonical:
        dense = site.layer.params(Form.KEEP, 0, False)
        gain = dense // max(site.layer.params(Form.CP, 1, False), 1)
        top = max(1, min(site.max_rank(Form.CP), gain))
        return Canonical(weight, site.max_rank(Form.CP), top, self.steps, self.iterations)


class Canonical:
    comparable = False

    def __init__(self, weight: Tensor, full: int, top: int, steps: int, iterations: int) -> None:
        self.weight, self.full, self.note = weight.detach().double(), full, ""
        step = weight.numel() * weight.dim()  # multiply-adds of one iteration for each term
        affordable, self.grid = top, _grid(top, steps)
        while affordable > 1 and _FEWEST * step * sum(self.grid) > _WORK:
            affordable //= 2
            self.grid = _grid(affordable, steps)
        self.iterations = max(_FEWEST, min(iterations, int(_WORK / (step * sum(self.grid)))))
        if affordable < top:
            self.note = f"a large kernel: CP was searched only up to rank {affordable} of {top}"
        elif self.iterations < iterations:
            self.note = f"a large kernel: CP was searched in {self.iterations} iterations instead of {iterations}"
        self._solved: dict[int, tuple[float, list[Tensor]]] = {}

    def _at(self, rank: int) -> tuple[float, list[Tensor]]:
        if rank not in self._solved:
            factors = self._solve(rank)
            error = float((self.weight - _compose(factors)).norm())
            smaller = max((r for r in self.grid if r < rank), default=0)
            if smaller and self._at(smaller)[0] < error:  # the search ended in a worse place than with fewer terms
                error, fewer = self._at(smaller)
                factors = [torch.nn.functional.pad(factor, (0, rank - smaller)) for factor in fewer]
            self._solved[rank] = error, factors
        return self._solved[rank]

    def _solve(self, rank: int) -> list[Tensor]:
        """(size, rank) for each axis; zeros where a normal equation is singular, as for a zero kernel."""
        from tensorly import backend, set_backend  # needed by this method alone, and slow to import
        from tensorly.decomposition import parafac

        before = backend.get_backend()
        set_backend("pytorch", local_threadsafe=True)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # tensorly warns where it pads singular bases at random
                weights, factors = parafac(
                    self.weight, rank=rank, n_iter_max=self.iterations, init="svd", tol=1e-7, random_state=SEED
                )
        except torch.linalg.LinAlgError:
            return [self.weight.new_zeros(size, rank) for size in self.weight.shape]
        finally:
            set_backend(before, local_threadsafe=True)
        return [factors[0] * weights, *factors[1:]]

    @property
    def errors(self) -> Tensor:
        norm = float(self.weight.norm())
        errors, best = [norm], norm
        for rank in range(1, self.full + 1):
            if rank in self.grid:
                best = min(best, self._at(rank)[0])
            errors.append(best)
        return torch.tensor(errors, dtype=torch.float64)

    @property
    def levels(self) -> Tensor:
        return relative(self.errors)[:-1]

    @property
    def ranks(self) -> Sequence[int]:
        return self.grid

    def relative_error(self, rank: int) -> float:
        return float(relative(self.errors)[rank])

    def factors(self, rank: int) -> Factors:
        """Factors at ``rank``; solved afresh where it is not on the grid."""
        _, (out, into, *lines) = self._at(rank)
        return Factors((into.T.contiguous(), *(line.T.contiguous() for line in lines), out))


def _grid(top: int, steps: int) -> list[int]:
    """About ``steps`` ranks from 1 to ``top``, evenly in their logarithm."""
    ranks = torch.logspace(0, torch.log10(torch.tensor(float(top))).item(), min(steps, top))
    return sorted({round(float(r)) for r in ranks} | {top})


def _compose(factors: list[Tensor]) -> Tensor:
    out, into, *lines = factors
    kernel = torch.einsum("or,cr->ocr", out, into)
    for line in lines:
        kernel = kernel.unsqueeze(-2) * line
    return kernel.sum(-1)
