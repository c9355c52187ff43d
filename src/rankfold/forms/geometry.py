"""Matricizations: how a parameter is read as a matrix (rows = outputs), and how a matrix is put back.

Every class here is geometry only, holds no tensor, and is its own inverse: ``put(w, matrix(w)) == w``.
A grouped convolution is a stack of independent matrices, so its ``matrix`` is ``(groups, m, n)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Matricization(Protocol):
    def matrix(self, weight: Tensor) -> Tensor:
        """The parameter as a matrix ``(m, n)``, or ``(groups, m, n)``; a view where possible."""
        ...

    def fold(self, shape: Sequence[int], matrix: Tensor) -> Tensor:
        """The tensor of ``shape`` whose ``matrix`` is the given one; a view where possible."""
        ...

    def put(self, weight: Tensor, matrix: Tensor) -> Tensor:
        """A new tensor shaped like ``weight`` whose ``matrix`` is the given one."""
        return self.fold(weight.shape, matrix).clone()


@dataclass(frozen=True)
class Plain(Matricization):
    """``nn.Linear`` and ``nn.Embedding``: the parameter is the matrix."""

    def matrix(self, weight: Tensor) -> Tensor:
        return weight

    def fold(self, shape: Sequence[int], matrix: Tensor) -> Tensor:
        return matrix.reshape(shape)


@dataclass(frozen=True)
class Transposed(Matricization):
    """Hugging Face ``Conv1D``: the parameter is stored as inputs × outputs."""

    def matrix(self, weight: Tensor) -> Tensor:
        return weight.T

    def fold(self, shape: Sequence[int], matrix: Tensor) -> Tensor:
        return matrix.T.reshape(shape)


@dataclass(frozen=True)
class Stacked(Matricization):
    """Independent matrices of one size below one another, as in the packed q, k, v of ``nn.MultiheadAttention``."""

    count: int

    def matrix(self, weight: Tensor) -> Tensor:
        return weight.unflatten(0, (self.count, -1))

    def fold(self, shape: Sequence[int], matrix: Tensor) -> Tensor:
        return matrix.reshape(shape)


@dataclass(frozen=True)
class Below(Matricization):
    """Matrices (k, m, n) of one size below one another, (k·m, n): what several layers make of one input."""

    def matrix(self, weight: Tensor) -> Tensor:
        return weight.flatten(0, 1)

    def fold(self, shape: Sequence[int], matrix: Tensor) -> Tensor:
        return matrix.reshape(shape)


@dataclass(frozen=True)
class Beside(Matricization):
    """Matrices (k, m, n) of one size side by side, (m, k·n): layers whose outputs are summed."""

    def matrix(self, weight: Tensor) -> Tensor:
        return weight.transpose(0, 1).flatten(1)

    def fold(self, shape: Sequence[int], matrix: Tensor) -> Tensor:
        return matrix.unflatten(1, (shape[0], -1)).transpose(0, 1).reshape(shape)


@dataclass(frozen=True)
class ChannelFolding(Matricization):
    """A convolution as ``C_out × (C_in·k)``; with groups, one such matrix for each group.

    ``transposed`` marks ``ConvTranspose``, whose parameter is ``(C_in, C_out/groups, *k)``.
    """

    groups: int = 1
    transposed: bool = False

    def matrix(self, weight: Tensor) -> Tensor:
        kernel = weight.shape[2:]
        if self.transposed:
            blocks = weight.reshape(self.groups, weight.shape[0] // self.groups, weight.shape[1], *kernel)
            blocks = blocks.transpose(1, 2)
        else:
            blocks = weight.reshape(self.groups, weight.shape[0] // self.groups, weight.shape[1], *kernel)
        stack = blocks.flatten(2)
        return stack if self.groups > 1 else stack[0]

    def fold(self, shape: Sequence[int], matrix: Tensor) -> Tensor:
        if not self.transposed:
            return matrix.reshape(shape)
        c_in, c_out, *kernel = shape
        return matrix.reshape(self.groups, c_out, c_in // self.groups, *kernel).transpose(1, 2).reshape(shape)


@dataclass(frozen=True)
class SpatialFolding(Matricization):
    """A ``Conv2d`` kernel as ``(C_out·k_w) × (C_in·k_h)``: the pair k_h×1 then 1×k_w (LoRITa, section 3)."""

    def matrix(self, weight: Tensor) -> Tensor:
        c_out, c_in, k_h, k_w = weight.shape
        return weight.permute(0, 3, 1, 2).reshape(c_out * k_w, c_in * k_h)

    def fold(self, shape: Sequence[int], matrix: Tensor) -> Tensor:
        c_out, c_in, k_h, k_w = shape
        return matrix.reshape(c_out, k_w, c_in, k_h).permute(0, 2, 3, 1).reshape(shape)
