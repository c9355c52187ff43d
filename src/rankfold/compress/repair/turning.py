"""Steps for factors: in every direction alike, and as long as the matrix itself is large."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.linalg.polar import nearly_orthogonal

RATE = 5e-3  # of a matrix's norm, at first, where everything is lost
MOMENTUM = 0.95
SMALL = 1e-3  # root mean square of a parameter below which steps become no shorter
REACH = 0.2  # of the loss, at most, that the first step promises to win back


def rate_for(lost: float) -> float:
    """The first rate of a whole network that has ``lost`` so much, in nats or in squared errors over their energy: that
    grows with the square of how far weights are off."""
    return RATE * min(max(lost, 0.0), 1.0) ** 0.5


class Turning(torch.optim.Optimizer):
    """Momentum whose singular values are made ones, so that weak directions of a gradient are followed like strong
    ones; a step has ``lr`` times the norm of the matrix that it changes.

    Inputs of trained networks have few strong directions, and so have gradients: Adam treats entries alike, not
    directions. What is no matrix (biases, norms) moves by the signs of its momentum. Matrices of more dimensions are
    read as (first, all others).

    Thousands of directions that each promise a little promise more together than there is to win, the more the wider a
    network is. The loss is known to be zero at best; so where it is given a step is shortened until what it promises,
    to first order, is ``reach`` of it, a share that falls as ``lr`` does.

    Cost: the gradient's momentum, the step, and nine products on the smaller side of each matrix. Source: K. Jordan
    et al., "Muon", 2024; steps relative to the norm: Y. You et al., "LAMB", 2020; by what is left to win: B. Polyak,
    "Introduction to Optimization", 1987, 5.3.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], lr: float, reach: float = REACH) -> None:
        super().__init__(parameters, {"lr": lr, "reach": reach})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step from the gradients that are there, or that ``closure`` makes; ``closure`` returns the loss."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for group in self.param_groups:
            steps, promised = [], 0.0
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                known = self.state[parameter]
                momentum = known.setdefault("momentum", torch.zeros_like(parameter))
                momentum.mul_(MOMENTUM).add_(parameter.grad)
                size = max(float(parameter.norm()) / max(parameter.numel(), 1) ** 0.5, SMALL)
                step = _direction(MOMENTUM * momentum + parameter.grad) * size
                steps.append((parameter, step))
                promised += float((parameter.grad * step).sum())
            rate = group["lr"]
            if loss is not None and float(loss) > 0 and promised > 0:  # below zero nothing is known of the least
                share = group["reach"] * rate / (group.get("initial_lr") or rate or 1.0)
                rate = min(rate, share * float(loss) / promised)
            for parameter, step in steps:
                parameter.add_(step, alpha=-rate)
        return loss


def _direction(gradient: Tensor) -> Tensor:
    """With entries of a mean square of one."""
    matrix = gradient.flatten(1) if gradient.dim() > 1 else gradient
    if matrix.dim() < 2 or min(matrix.shape) < 2:
        return gradient.sign()
    turned = nearly_orthogonal(matrix.float()) * max(matrix.shape) ** 0.5
    return turned.reshape(gradient.shape).to(gradient)
