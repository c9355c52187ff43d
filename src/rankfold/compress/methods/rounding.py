"""What becomes of a method's factors in a form that rounds: a base taken off first, or an error added by rounding.

Methods know neither. They are given what the base leaves of the matrix, in the same statistics, so that its errors are
in the same unit; and say of their factors how much an error in an entry counts, from which follows what int8 costs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from rankfold.compress.measured import SiteStatistics
from rankfold.compress.methods.method import Decomposition, Forecast, Method
from rankfold.linalg.rounding import rounding_cost
from rankfold.sites import Factors, Form, Site


@runtime_checkable
class Weighing(Protocol):
    """A decomposition that knows what changes of a matrix cost."""

    def weighed(self, matrix: Tensor) -> float:
        """The error that is made when ``matrix`` (m, n) is left out, in the unit of ``errors``."""
        ...

    def sensitivities(self) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """(right (k, n), left (m, k), (v_i H v_iᵀ (k,), tr H), (u_iᵀ D u_i (k,), tr D)) of all k directions."""
        ...


def decomposed(
    method: Method, site: Site, form: Form, weight: Tensor, known: SiteStatistics | None, bias: Tensor | None
) -> Decomposition | None:
    """``method.decompose`` of what ``form`` stores as factors; None where the method does not offer it.

    ``ValueError`` where a form over a base was not asked for when the statistics were taken.
    """
    if form.over_base:
        return _over_base(method, site, form, weight, known, bias)
    made = method.decompose(site, form.decomposed, weight, known, bias)
    return made if made is None or form.exact else AfterRounding(made)


def _over_base(
    method: Method, site: Site, form: Form, weight: Tensor, known: SiteStatistics | None, bias: Tensor | None
) -> Decomposition | None:
    if known is not None and (known.side or site.layer.side) != "input":
        raise ValueError(
            f"form {form} needs moments of the layer's inputs, and those of its outputs were measured: name the "
            f"form when the data are measured (forms=[{str(form)!r}, …], --forms)"
        )
    geometry = site.layer.geometry(form)
    matrix = geometry.matrix(weight)
    base = form.base(matrix.double(), weight.dtype, None if known is None else known.covariance.diagonal())
    wide = torch.promote_types(weight.dtype, torch.float32)
    rest = geometry.put(weight, matrix.double() - form.based(base).to(weight.device)).to(wide)
    made = method.decompose(site, form.decomposed, rest, known, bias)
    return None if made is None else OverBase(made, form, base, matrix, known)


@dataclass(frozen=True, eq=False)
class _Of:
    """What a form that rounds makes of ``made``, and what stays as it is there."""

    made: Decomposition

    @property
    def comparable(self) -> bool:
        return self.made.comparable

    @property
    def levels(self) -> Tensor:
        return self.made.levels

    @property
    def note(self) -> str:
        return getattr(self.made, "note", "")


@dataclass(frozen=True, eq=False)
class OverBase(_Of):
    """The decomposition of what a ``base`` leaves of ``matrix``; errors are those of the base and the factors together,
    relative ones fractions of the whole matrix. Rank 0 is the base alone."""

    form: Form
    base: tuple[Tensor, ...]
    matrix: Tensor
    known: SiteStatistics | None

    @property
    def rest(self) -> Tensor:
        """What the base leaves; formed when it is asked for, as there are many of them."""
        return self.matrix.double() - self.form.based(self.base).to(self.matrix.device)

    @property
    def errors(self) -> Tensor:
        return self.made.errors

    @property
    def ranks(self) -> Any:
        return (0, *self.made.ranks)

    @cached_property
    def share(self) -> float:
        """The error at rank 0 as a fraction of what the whole matrix counts."""
        made = self.made
        if isinstance(made, Weighing):
            part, whole = float(made.errors[0]), made.weighed(self.matrix)
        else:
            part, whole = float(self.rest.norm()), float(self.matrix.double().norm())
        return part / whole if whole > 0 else 0.0

    @cached_property
    def _of_outputs(self) -> float:
        """The share of the layer's output that the base alone loses."""
        if self.known is None:
            return float(self.rest.norm() / self.matrix.double().norm().clamp_min(1e-300))
        return self._share_on(self.known.covariance)

    def _share_on(self, moment: Tensor) -> float:
        part, whole = (float(((a @ moment) * a).sum()) for a in (self.rest.to(moment), self.matrix.to(moment)))
        return (max(part, 0.0) / whole) ** 0.5 if whole > 0 else 0.0

    def relative_error(self, rank: int) -> float:
        return self._of_outputs * (self.made.relative_error(rank) if rank else 1.0)

    def forecast(self, moment: Tensor) -> Forecast:
        made: Any = self.made
        told = made.forecast(moment)
        return Forecast(told.errors, told.relative * self._share_on(moment))

    def factors(self, rank: int) -> Factors:
        found = self.made.factors(rank)
        return Factors((*found.parts, *self.base), found.shift)


@dataclass(frozen=True, eq=False)
class AfterRounding(_Of):
    """A decomposition whose factors are rounded when they are stored; each direction that is kept adds its rounding to
    the error, which so may rise with the rank."""

    @cached_property
    def _added(self) -> Tensor:
        """(k + 1,) squared error expected of the rounding of the first r directions."""
        none = self.made.errors.new_zeros(len(self.made.errors))
        if not isinstance(self.made, Weighing):
            return none
        none[1:] = rounding_cost(*self.made.sensitivities()).cumsum(0)
        return none

    @cached_property
    def errors(self) -> Tensor:
        return (self.made.errors.square() + self._added).sqrt()

    @property
    def _shares(self) -> Tensor:
        whole = float(self.made.errors[0]) ** 2
        return self._added / whole if whole > 0 else self._added

    @property
    def ranks(self) -> Any:
        return self.made.ranks

    def relative_error(self, rank: int) -> float:
        return (self.made.relative_error(rank) ** 2 + float(self._shares[rank])) ** 0.5

    def forecast(self, moment: Tensor) -> Forecast:
        made: Any = self.made
        return self.told(made.forecast(moment))

    def told(self, told: Forecast) -> Forecast:
        """What is forecast of the factors, after their rounding."""
        share = float(told.errors[0]) ** 2 / max(float(self.made.errors[0]) ** 2, 1e-300)
        errors = (told.errors.square() + self._added * share).sqrt()
        return Forecast(errors, (told.relative.square() + self._shares).sqrt())

    def factors(self, rank: int) -> Factors:
        return self.made.factors(rank)
