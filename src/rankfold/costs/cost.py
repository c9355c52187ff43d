"""The three numbers of a cost."""

from __future__ import annotations

from dataclasses import dataclass

CALLED = {"flops": "FLOPs", "params": "parameters", "bytes": "bytes"}  # the three, as a reader calls them


@dataclass(frozen=True)
class Cost:
    """What a network costs.

    Attributes:
        params: number of parameters.
        flops: for one sample, two for each multiply-add.
        bytes: of parameters and buffers.

    Example:
        >>> rf.model_cost(nn.Linear(4, 3), torch.zeros(1, 4))
        Cost(params=15, flops=24, bytes=60)
    """

    params: int
    flops: int
    bytes: int

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.params + other.params, self.flops + other.flops, self.bytes + other.bytes)

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.params - other.params, self.flops - other.flops, self.bytes - other.bytes)
