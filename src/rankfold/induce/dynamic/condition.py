"""Well-conditioned low rank: a bound on the condition number of each layer, and a penalty on its spread.

Of a core in Tucker's form (p, q, …) both look at its unfolding along the outputs, (p, q·…).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

from torch import Tensor

from rankfold.linalg.manifold.tangent import clamped, spread


@dataclass(frozen=True)
class Condition:
    """After each truncation singular values are drawn together until the condition number is at most ``bound``.

    Ranks are chosen first, on values as training left them.

    Args:
        bound: at least 1.

    Raises:
        ValueError: a bound below 1.

    Source: CondLR, Savostianova, Zangrando, Ceruti, Tudisco 2023.

    Example:
        >>> rf.Condition(2.0).bound
        2.0
    """

    bound: float = 2.0

    def __post_init__(self) -> None:
        if not 1 <= self.bound < float("inf"):
            raise ValueError(
                f"Condition: bound, the largest condition number, must be finite and at least 1, got {self.bound!r}"
            )

    def gradient(self, core: Tensor) -> Tensor | None:
        return None

    def after(self, core: Tensor) -> Tensor:
        return clamped(core.flatten(1), self.bound).reshape(core.shape)


@dataclass(frozen=True)
class Spread:
    """A penalty ``weight``·‖SᵀS − α²I‖, α² = ‖S‖²/r, on the core S of each layer.

    It draws singular values towards one another at whatever size they are.

    Args:
        weight: of the penalty, at least 0.

    Raises:
        ValueError: a weight that is negative.

    Source: RobustDLRT, Schotthöfer, Yang, Schnake 2025.

    Example:
        >>> rf.Spread(0.1).weight
        0.1
    """

    weight: float = 0.05

    def __post_init__(self) -> None:
        if not (isfinite(self.weight) and self.weight >= 0):
            raise ValueError(f"Spread: weight must be finite and at least 0, got {self.weight!r}")

    def gradient(self, core: Tensor) -> Tensor | None:
        return self.weight * spread(core.flatten(1).mT)[1].mT.reshape(core.shape)

    def after(self, core: Tensor) -> Tensor:
        return core


Conditioning = Condition | Spread
