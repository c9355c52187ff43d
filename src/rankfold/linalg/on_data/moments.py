"""Streaming count, mean and second moment of rows, without cancellation."""

import copy
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor

from rankfold.linalg.errors import NonFiniteError, NotMaterialisedError
from rankfold.linalg.on_data.gram import add_upper_, mirror, upper_product

# rows are widened to float64 a block at a time: 32 MiB of copy at most, whatever the batch
_BLOCK_ELEMENTS = 1 << 22
_ROWS = 4096  # that are summed in float32


class Moments:
    """Count, mean and centred second moment of all the rows seen so far, in float64.

    Rows of `size` numbers arrive in batches of any leading shape; with `groups`, as (groups, …, size), one
    moment matrix per group. The *centred* sum is what is kept, and batches are merged by the pairwise rule of
    Chan, Golub and LeVeque (1979): subtracting count·mean·meanᵀ from a raw sum loses every digit when the
    mean is large. The uncentred Gram is the sum of two positive terms and loses nothing.

    Cost of a row: about `size²` multiplications and as many additions. Memory: groups · size² doubles, and
    one block. `single`: rows of no more than float32 are multiplied in float32, a third of the time, and summed
    in float64 every few thousand: to 1e-7 of the product of two deviations, as exact as the rows.
    """

    def __init__(
        self, size: int, groups: int | None = None, device: torch.device | str = "cpu", single: bool = False
    ) -> None:
        if size < 0 or (groups is not None and groups < 1):
            raise ValueError(f"size must be at least 0 and groups at least 1, got {size} and {groups}")
        self.size = size
        self.groups = groups
        self.single = single
        batch = () if groups is None else (groups,)
        self._count = 0
        self._average: tuple[int, Tensor] | None = None
        self._mean = torch.zeros(*batch, size, dtype=torch.float64, device=device)
        # only the upper triangle is kept up to date
        self._centred = torch.zeros(*batch, size, size, dtype=torch.float64, device=device)

    @property
    def count(self) -> int:
        """Rows seen (per group)."""
        return self._count

    @property
    def mean(self) -> Tensor:
        """Mean row, (size,) or (groups, size). Raises `ValueError` when no row was seen."""
        if self._count == 0:
            raise ValueError("no rows were seen, so there is no mean: the calibration data are empty")
        return self._mean.clone()

    @property
    def covariance_sum(self) -> Tensor:
        """Σ (x − mean)(x − mean)ᵀ over the rows, not divided by the count: (size, size) or (groups, size,
        size).
        """
        return mirror(self._centred)

    @property
    def average(self) -> Tensor:
        """`covariance_sum` of one row on average: the same tensor until more rows come, not to be written to."""
        if self._average is None or self._average[0] != self._count:
            self._average = self._count, self.covariance_sum.div_(max(self._count, 1))
        return self._average[1]

    @property
    def gram(self) -> Tensor:
        """Σ x xᵀ over the rows, uncentred, not divided by the count: (size, size) or (groups, size, size)."""
        return self.covariance_sum.add_(self._mean.unsqueeze(-1) * self._mean.unsqueeze(-2), alpha=self._count)

    def update(self, x: Tensor, beside: Callable[[Tensor, int], None] | None = None) -> Self:
        """Take in the rows of `x`, (…, size) or (groups, …, size), of any real dtype and device. Returns
        itself. `beside`: called with the rows less their mean, as they are multiplied, a block at a time, and the
        number of its first one.

        Raises `ValueError` (wrong shape), `NotMaterialisedError`, `NonFiniteError`; a refused batch changes
        nothing.
        """
        rows = self._rows(x)
        count = rows.shape[-2]
        if count == 0:
            return self
        total = rows.sum(-2, dtype=torch.float64).to(self._mean.device)
        # one pass over d numbers stands for a pass over all: a non-finite row makes its sum non-finite
        if not bool(torch.isfinite(total).all()):
            raise NonFiniteError(f"a batch of shape {tuple(x.shape)} ({x.dtype}) holds NaN or infinite rows")
        mean = total / count
        groups = 1 if self.groups is None else self.groups
        step = max(1, _BLOCK_ELEMENTS // max(1, self.size * groups))
        few = self.single and rows.dtype.itemsize <= 4
        dtype, step = (torch.float32, min(step, _ROWS)) if few else (torch.float64, step)
        for start in range(0, count, step):
            part = rows[..., start : start + step, :]
            block = part.to(self._mean.device, dtype)
            # a block that was widened is a copy already
            off = mean.unsqueeze(-2).to(dtype)
            centred = block - off if block is part or few else block.sub_(off)
            if few:
                self._centred += upper_product(centred.mT, centred)
            else:
                add_upper_(self._centred, centred.mT, centred)
            if beside is not None:
                beside(centred, start)
        self._shift_(count, mean)
        return self

    def merge(self, other: "Moments") -> Self:
        """Take in all the rows that `other` has seen (of the same size and groups). Returns itself."""
        if (self.size, self.groups) != (other.size, other.groups):
            raise ValueError(
                f"moments of size {other.size} in {other.groups} groups do not fit into "
                f"size {self.size} in {self.groups} groups"
            )
        if other.count:
            self._centred += other._centred.to(self._centred.device)
            self._shift_(other.count, other._mean.to(self._mean.device))
        return self

    def copy(self) -> Self:
        """One that may be added to, while this one stays."""
        part = copy.copy(self)
        part._mean, part._centred, part._average = self._mean.clone(), self._centred.clone(), None
        return part

    def about_zero_(self) -> Self:
        """The same rows with the moment about zero in place of that about the mean."""
        self._centred.addcmul_(self._mean.unsqueeze(-1), self._mean.unsqueeze(-2), value=self._count)
        self._mean, self._average = torch.zeros_like(self._mean), None
        return self

    def _shift_(self, count: int, mean: Tensor) -> None:
        total = self._count + count
        difference = mean - self._mean
        weight = self._count * (count / total)
        self._centred.addcmul_(difference.unsqueeze(-1), difference.unsqueeze(-2), value=weight)
        self._mean += difference * (count / total)
        self._count = total

    def _rows(self, x: Tensor) -> Tensor:
        expected = f"(…, {self.size})" if self.groups is None else f"({self.groups}, …, {self.size})"
        fits = x.ndim >= 1 and x.shape[-1] == self.size
        if self.groups is not None:
            fits = fits and x.ndim >= 2 and x.shape[0] == self.groups
        if not fits:
            raise ValueError(f"rows of shape {expected} were expected, got {tuple(x.shape)}")
        if x.is_meta:
            raise NotMaterialisedError(f"a batch of shape {tuple(x.shape)} is on the meta device, without values")
        if x.is_complex():
            raise TypeError(f"a batch of shape {tuple(x.shape)} is {x.dtype}: only real rows are supported")
        x = x.detach()
        if x.is_floating_point() and x.dtype.itemsize == 1:
            x = x.to(torch.float32)
        if self.groups is None:
            return x.reshape(x.shape[:-1].numel(), self.size)
        return x.reshape(self.groups, x.shape[1:-1].numel(), self.size)

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on later: `count` (int), `mean` and `covariance_sum` (float64 tensors), and `single`
        (1) of those that are."""
        known = {"count": self._count, "mean": self._mean.clone(), "covariance_sum": self.covariance_sum}
        return known | ({"single": 1} if self.single else {})

    @classmethod
    def from_state_dict(cls, state: dict[str, Any], device: torch.device | str = "cpu") -> "Moments":
        """The inverse of `state_dict`. Raises `ValueError` when the shapes do not belong together."""
        mean, centred, count = state["mean"], state["covariance_sum"], int(state["count"])
        if mean.ndim not in (1, 2) or centred.shape != (*mean.shape, mean.shape[-1]) or count < 0:
            raise ValueError(
                f"this is not the state of moments: count {count}, mean of shape {tuple(mean.shape)}, "
                f"covariance_sum of shape {tuple(centred.shape)}"
            )
        groups, single = mean.shape[0] if mean.ndim == 2 else None, bool(state.get("single", 0))
        moments = cls(mean.shape[-1], groups, device, single)
        moments._count = count
        moments._mean.copy_(mean)
        moments._centred.copy_(centred)
        return moments
