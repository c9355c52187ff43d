"""Layers of the ways to low rank that train factors by plain gradients, or the dense weight first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from rankfold.layers.training import InTraining


class Phased(InTraining):
    """``y = x·Wᵀ + bias`` with W dense, or W = left·right once ``factor_`` was called; both phases in one layer.

    ``left`` (m, r) and ``right`` (r, n) are parameters; while W is dense it is ``left`` (m, n), and ``right`` is empty.
    ``active``: only so many leading directions take part in training (ordered dropout); all of them in eval mode.
    """

    moving: ClassVar[tuple[str, ...]] = ("left", "right")

    def __init__(self, ordinary: nn.Module, matrix: Tensor, *, stored_transposed: bool = False) -> None:
        m, n = matrix.shape
        super().__init__(ordinary, (m, n), stored_transposed)
        self.left = nn.Parameter(matrix.contiguous())
        self.right = nn.Parameter(matrix.new_empty(0, n))
        self.active: int | None = None

    @property
    def dense(self) -> bool:
        return self.right.shape[0] == 0

    @property
    def rank(self) -> int:
        return min(self.shape) if self.dense else self.right.shape[0]

    @property
    def numbers(self) -> int:
        return self.left.numel() if self.dense else self.numbers_at(self.rank)

    def factors(self) -> tuple[Tensor, ...]:
        if self.dense:
            return (self.left,)
        if self.active is None or not self.training or self.active >= self.rank:
            return self.right, self.left
        return self.right[: self.active], self.left[:, : self.active]

    def matrix(self) -> Tensor:
        """W (m, n), differentiable, whatever the phase, with all of its directions."""
        return self.left if self.dense else self.left @ self.right

    @torch.no_grad()
    def factor_(self, left: Tensor, right: Tensor) -> None:
        """Other factors, of any rank; both parameters become others, without gradients."""
        trained = self.left.requires_grad
        self.left = nn.Parameter(left.to(self.left).contiguous(), trained)
        self.right = nn.Parameter(right.to(self.left).contiguous(), trained)

    def fits(self, shapes: Mapping[str, torch.Size]) -> bool:
        (m, n), rank = self.shape, shapes["right"][0] if shapes["right"] else 0
        return shapes == {"left": (m, rank or n), "right": (rank, n)}


class Scaled(Phased):
    """W = left·diag(scale)·right in training, with ``scale`` (r,) a parameter of its own."""

    moving: ClassVar[tuple[str, ...]] = ("left", "scale", "right")

    def __init__(self, ordinary: nn.Module, matrix: Tensor, *, stored_transposed: bool = False) -> None:
        super().__init__(ordinary, matrix, stored_transposed=stored_transposed)
        self.scale = nn.Parameter(matrix.new_empty(0))

    def factors(self) -> tuple[Tensor, ...]:
        return (self.left,) if self.dense else (self.right, self.left * self.scale)

    def matrix(self) -> Tensor:
        return self.left if self.dense else (self.left * self.scale) @ self.right

    @torch.no_grad()
    def factor_(self, left: Tensor, right: Tensor, scale: Tensor | None = None) -> None:
        super().factor_(left, right)
        new = torch.ones(right.shape[0]) if scale is None else scale
        self.scale = nn.Parameter(new.to(self.left).contiguous(), self.scale.requires_grad)

    def fits(self, shapes: Mapping[str, torch.Size]) -> bool:
        others = {name: shape for name, shape in shapes.items() if name != "scale"}
        return super().fits(others) and shapes["scale"] == (shapes["right"][0],)


class Approached(InTraining):
    """A dense weight in training and, in eval mode, the matrix of low rank that it is drawn to: ``left``·``right``.

    ``dense`` (m, n) is the parameter; ``left`` (m, r) and ``right`` (r, n) are buffers, which are what remains.
    """

    moving = ("left", "right")
    left: Tensor
    right: Tensor

    def __init__(self, ordinary: nn.Module, matrix: Tensor, *, stored_transposed: bool = False) -> None:
        m, n = matrix.shape
        super().__init__(ordinary, (m, n), stored_transposed)
        self.dense = nn.Parameter(matrix.contiguous())
        self.register_buffer("left", matrix.new_zeros(m, 1))
        self.register_buffer("right", matrix.new_zeros(1, n))

    @property
    def rank(self) -> int:
        return self.right.shape[0]

    def factors(self) -> tuple[Tensor, ...]:
        return (self.dense,) if self.training else (self.right, self.left)

    @torch.no_grad()
    def draw_to_(self, left: Tensor, right: Tensor) -> None:
        """Another matrix of low rank, of any rank, to be drawn to."""
        self.left, self.right = left.to(self.dense).contiguous(), right.to(self.dense).contiguous()

    def fits(self, shapes: Mapping[str, torch.Size]) -> bool:
        (m, n), rank = self.shape, shapes["right"][0] if shapes["right"] else 0
        return shapes == {"left": (m, rank), "right": (rank, n)}
