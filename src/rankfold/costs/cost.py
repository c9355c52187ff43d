"""The three numbers of a cost."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """Parameters (count), FLOPs (for one sample, two per multiply-add), bytes (parameters and buffers)."""

    params: int
    flops: int
    bytes: int

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.params + other.params, self.flops + other.flops, self.bytes + other.bytes)

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.params - other.params, self.flops - other.flops, self.bytes - other.bytes)
