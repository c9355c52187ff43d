"""What every law is said with."""

from __future__ import annotations

from torch import Tensor


def expect(holds: bool, what: str) -> None:
    if not holds:
        raise AssertionError(what)


def near(a: Tensor, b: Tensor, tolerance: float) -> bool:
    a, b = a.detach().double(), b.detach().double()
    return a.shape == b.shape and bool((a - b).norm() <= tolerance * b.norm().clamp_min(1e-12))
