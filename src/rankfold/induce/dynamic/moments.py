"""What an optimizer remembers of a core, when the bases around the core change."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor

from rankfold.linalg.manifold.tangent import Turn, wide

_MEANS = frozenset({"exp_avg", "momentum_buffer", "grad_avg", "prev", "ax"})  # of gradients, or of the core itself
_SQUARED = frozenset({"exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum", "acc_delta"})  # means of squared gradients
_SIZES = frozenset({"exp_inf", "step_size"})  # the largest |gradient| of Adamax, the steps of Rprop
DIVISORS = _SQUARED | {"exp_inf"}  # what steps are divided by, or by its root


def turn_(state: MutableMapping[str, Any], before: torch.Size, turn: Turn) -> None:
    """Moments of a core that had the shape ``before`` turn with its bases; of squares, those of new directions begin
    at the mean. What is kept by rows and columns (Adafactor) cannot turn, and begins anew; so does what is unknown."""
    kept = {key: value for key, value in state.items() if isinstance(value, Tensor) and value.dim()}
    if not kept.keys() <= _MEANS | _SQUARED | _SIZES or any(value.shape != before for value in kept.values()):
        state.clear()
        return
    mean = state.get("grad_avg")  # of RMSprop, centered: squares must stay above those of the mean, whose root is taken
    if mean is not None:
        state["square_avg"] = (state["square_avg"] - mean.square()).clamp_min(0)
    for key, value in kept.items():
        state[key] = _turned(turn, key, state[key]).to(value)
    if mean is not None:
        least = 1 + 4 * torch.finfo(mean.dtype).eps
        state["square_avg"] = state["square_avg"] + least * state["grad_avg"].square()


def lag(state: Mapping[str, Any], group: Mapping[str, Any], age: int) -> float:
    """How many times too short steps are in directions whose mean of gradients began at zero ``age`` steps ago.

    Adam divides by 1 − β^t for its own beginning, and once that is long ago by nothing: a direction that comes in later
    would move at 1 − β of the rate at first, and have left before it has arrived. 1 where there is no such mean: SGD's
    momentum is a sum, in which the first gradients, noise and all, would be counted many times; NAdam's steps are half
    of the gradient itself.
    """
    if age < 1 or "exp_avg" not in state or "betas" not in group or "mu_product" in state:
        return 1.0
    beta = float(group["betas"][0])
    return (1 - beta ** float(state["step"])) / (1 - beta**age)


def entered(core: Tensor, before: torch.Size) -> tuple[Tensor, Tensor]:
    """The entries of a core that have come in beside those of the shape ``before``."""
    return core[before[0] :], core[: before[0], before[1] :]


def _turned(turn: Turn, key: str, value: Tensor) -> Tensor:
    if key in _MEANS:
        return turn.linear(wide(value))
    return _squared(turn, value) if key in _SQUARED else _squared(turn, wide(value).square()).sqrt()


def _squared(turn: Turn, value: Tensor) -> Tensor:
    turned, before = turn.squared(wide(value)), value.shape
    if turned.shape == before:
        return turned
    new = torch.ones_like(turned, dtype=torch.bool)
    new[: before[0], : before[1]] = False
    return torch.where(new, value.mean().to(turned), turned)
