"""Experts of transformers, whose matrices are two parameters of three dimensions: taken apart, and read as sites."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from rankfold.forms import Call, Layer, Side
from rankfold.forms.geometry import Below, Beside, Matricization
from rankfold.layers.experts import Enter, Leave, SplitExperts
from rankfold.sites.opener import Opener, carry_

_FORWARD = ("gate_up_proj", "up_proj")  # with a gate, and without


def _takes(module: nn.Module) -> bool:
    """Whether these are experts as transformers keeps them, told without importing it."""
    return type(module).__module__.startswith("transformers.") and hasattr(module, "_apply_gate")


def _held(module: Any) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in module._parameters.items() if parameter is not None}


def _entering(module: Any) -> str:
    return _FORWARD[not getattr(module, "has_gate", True)]


def _why_not(module: Any) -> str | None:
    """Why these experts cannot be taken apart, or None if they can."""
    held, matrices = _held(module), {_entering(module), "down_proj"}
    biases = {f"{name}_bias" for name in matrices} if getattr(module, "has_bias", False) else set()
    if set(held) != matrices | biases or any(held[name].dim() != 3 for name in matrices):
        return f"its experts hold {', '.join(held)}, and rankfold knows no layout with these parameters"
    if getattr(module, "has_post_expert_norm", False) or getattr(module, "_is_expert_parallel", False):
        return "experts with a norm of their own behind them, or over several devices, are not taken apart"
    return None


def _split(module: Any) -> SplitExperts:
    entering, held = _entering(module), _held(module)
    gate = type(module)._apply_gate if entering == _FORWARD[0] else _activated
    stored = {entering: "enter", "down_proj": "leave"}
    stored |= {f"{name}_bias": f"{inside}_bias" for name, inside in stored.items()}
    first, last = (held.get(f"{name}_bias") for name in (entering, "down_proj"))
    new = SplitExperts(gate, len(held["down_proj"]), first, last, stored)
    for name, child in module.named_children():
        setattr(new, name, child)
    turned = getattr(module, "is_transposed", False)
    new.enter, new.leave = Enter(held[entering], turned), Leave(held["down_proj"], turned)
    carry_(module, new)  # the gate reads settings of its own: limits, scales, functions
    return new


def _activated(module: Any, x: Tensor) -> Tensor:
    return module.act_fn(x)


@dataclass(frozen=True)
class ExpertsLayer(Layer):
    """The matrices of all experts as one: below one another where tokens enter, side by side where they leave.

    Statistics are those of the tokens that come, each by the experts that it is sent to.
    """

    kind: str
    size: tuple[int, int]
    experts: int
    entering: bool
    has_bias: bool = False
    takes_bias: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        return self.size

    @property
    def side(self) -> Side:
        return "input" if self.entering else "output"

    @property
    def tapped(self) -> Side:
        return self.side

    @property
    def matricization(self) -> Matricization:
        return Below() if self.entering else Beside()

    def weight(self, module: Any) -> Tensor:
        return module.matrices if isinstance(module, Enter | Leave) else module.weight

    def rows(self, module: Any, inputs: Tensor, output: Tensor) -> Tensor:
        return inputs.reshape(-1, self.size[1]) if self.entering else output.reshape(-1, self.size[0])

    def paired_rows(self, module: Any, inputs: Tensor, *outputs: Tensor) -> None:
        return None  # a token's row belongs to some experts only

    def output_rows(self, output: Tensor) -> Tensor:
        return output.reshape(-1, self.size[1] if self.entering else self.size[0])

    def dense_flops(self, calls: Sequence[Call]) -> int:
        m, n = self.size
        return 2 * sum(map(self.slots, calls)) * m * n // self.experts

    def slots(self, call: Call) -> int:
        """As many for each token as it is sent to experts."""
        wide = call.output if self.entering else call.input
        return wide[0] * wide[1]


def read_experts(module: Any) -> ExpertsLayer | None:
    """The layer object of either side of experts that were taken apart; None for any other module."""
    if isinstance(module, Enter):
        experts, width, n = module.matrices.shape
        return ExpertsLayer("Experts", (experts * width, n), experts, True)
    if isinstance(module, Leave):
        experts, m, inner = module.matrices.shape
        return ExpertsLayer("Experts", (m, experts * inner), experts, False)
    return None


OPENER = Opener(_takes, _why_not, _split)
