"""Streaming second moments of inputs together with what they are to give: enough for every least-squares fit."""

from __future__ import annotations

import copy
from typing import Any, Self

import torch
from torch import Tensor

from rankfold.linalg.errors import NonFiniteError
from rankfold.linalg.on_data.moments import Moments


class CrossMoments:
    """Centred XᵀX (…, n, n), XᵀT (…, n, m) and Σ‖t‖² by output (…, m) of rows x (n) and targets t (m), in float64.

    With ``groups`` rows come as (groups, N, n) and (groups, N, m). Merged by the pairwise rule of Chan, Golub and
    LeVeque (1979), like ``Moments``. Memory: groups · n · (n + m) doubles. ``single``: as there.
    """

    def __init__(
        self,
        inputs: int,
        targets: int,
        groups: int | None = None,
        device: torch.device | str = "cpu",
        single: bool = False,
    ) -> None:
        batch = () if groups is None else (groups,)
        self.inputs = Moments(inputs, groups, device, single)
        self._target_mean = torch.zeros(*batch, targets, dtype=torch.float64, device=device)
        self._cross = torch.zeros(*batch, inputs, targets, dtype=torch.float64, device=device)
        self._energy = torch.zeros(*batch, targets, dtype=torch.float64, device=device)

    @property
    def count(self) -> int:
        """Rows seen."""
        return self.inputs.count

    @property
    def gram(self) -> Tensor:
        """Centred XᵀX of one row on average: (…, n, n). Not to be written to."""
        return self.inputs.average

    @property
    def cross(self) -> Tensor:
        """Centred XᵀT of one row on average: (…, n, m)."""
        return self._cross / max(self.count, 1)

    @property
    def energy(self) -> Tensor:
        """Variance of every target: (…, m)."""
        return self._energy / max(self.count, 1)

    @property
    def target_mean(self) -> Tensor:
        return self._target_mean.clone()

    def update(self, x: Tensor, t: Tensor) -> Self:
        """Take in rows x (…, N, n) with their targets t (…, N, m). ``NonFiniteError`` leaves everything as it was."""
        count = x.shape[-2]
        if t.shape[:-1] != x.shape[:-1] or t.shape[-1] != self._energy.shape[-1]:
            raise ValueError(f"targets of shape {tuple(t.shape)} do not belong to rows of shape {tuple(x.shape)}")
        if count == 0:
            return self
        device, single = self._cross.device, self.inputs.single and t.dtype.itemsize <= 4
        part = type(self)(x.shape[-1], t.shape[-1], self.inputs.groups, device, single)
        part._target_mean.copy_(t.sum(-2, dtype=torch.float64) / count)
        if not bool(part._target_mean.isfinite().all()):
            raise NonFiniteError(f"targets of shape {tuple(t.shape)} ({t.dtype}) hold NaN or infinity")

        def with_targets(rows: Tensor, start: int) -> None:
            targets = t[..., start : start + rows.shape[-2], :].to(rows) - part._target_mean.unsqueeze(-2).to(rows)
            part._cross += rows.mT @ targets
            part._energy += targets.square().sum(-2)

        part.inputs.update(x, with_targets)
        return self.merge(part)

    def merge(self, other: CrossMoments) -> Self:
        """Take in all the rows that ``other`` has seen."""
        if other.count:
            total = self.count + other.count
            weight = self.count * (other.count / total)
            inputs = other.inputs.mean if self.count == 0 else other.inputs.mean - self.inputs.mean
            targets = other._target_mean - self._target_mean
            self._cross += other._cross
            self._cross.addcmul_(inputs.unsqueeze(-1), targets.unsqueeze(-2), value=weight)
            self._energy += other._energy + weight * targets.square()
            self._target_mean += targets * (other.count / total)
            self.inputs.merge(other.inputs)
        return self

    def of_targets(self, chosen: slice) -> CrossMoments:
        """Those of some targets alone; the moments of the inputs are shared with this one, and must not be added to."""
        part = copy.copy(self)
        part._cross, part._energy = self._cross[..., chosen], self._energy[..., chosen]
        part._target_mean = self._target_mean[..., chosen]
        return part

    def copy(self) -> Self:
        """One that may be added to, while this one stays."""
        part = copy.copy(self)
        part.inputs, part._cross = self.inputs.copy(), self._cross.clone()
        part._target_mean, part._energy = self._target_mean.clone(), self._energy.clone()
        return part

    def about_zero_(self) -> Self:
        """The same rows with moments about zero in place of those about the mean: for a fit without a free bias."""
        if self.count:
            x, t = self.inputs.mean, self._target_mean
            self._cross.addcmul_(x.unsqueeze(-1), t.unsqueeze(-2), value=self.count)
            self._energy += self.count * t.square()
            self._target_mean = torch.zeros_like(t)
            self.inputs.about_zero_()
        return self

    def towards(self, outputs: Tensor) -> CrossMoments:
        """Those of targets P t for ``outputs`` P (k, m): in other coordinates. Their energy is not known (NaN)."""
        part = copy.copy(self)
        part._cross, part._target_mean = self._cross @ outputs.mT, self._target_mean @ outputs.mT
        part._energy = torch.full_like(part._target_mean, torch.nan)
        return part

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors and a count; ``from_state_dict`` is the inverse."""
        return self.inputs.state_dict() | {
            "cross": self._cross.clone(), "target_mean": self.target_mean, "energy": self._energy.clone(),
        }  # fmt: skip

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> CrossMoments:
        inputs = Moments.from_state_dict(state)
        found = cls(inputs.size, state["energy"].shape[-1], inputs.groups)
        found.inputs = inputs
        found._cross.copy_(state["cross"])
        found._target_mean.copy_(state["target_mean"])
        found._energy.copy_(state["energy"])
        return found
