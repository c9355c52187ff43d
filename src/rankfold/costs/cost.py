"""The three numbers of a cost, and what a model stores."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.nn.parameter import UninitializedParameter

from rankfold.sites import unwrap


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


def storage(model: nn.Module) -> tuple[int, int]:
    """(parameters, bytes of parameters and buffers) of a model; shared tensors count once.

    Raises ``ValueError`` for a parameter that has no shape yet.
    """
    model = unwrap(model)
    for name, parameter in model.named_parameters():
        if isinstance(parameter, UninitializedParameter):
            raise ValueError(f"{name} has no shape yet: run the model once first (lazy module)")
    params = sum(p.numel() for p in model.parameters())
    return params, sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
