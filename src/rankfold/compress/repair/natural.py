"""Steps for few numbers that matter very differently: each as long as its own curvature allows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

SHARE = 0.02  # of what is lost, that the first step promises to win back
SLOW, FAST = 0.95, 0.9  # of the squares' and the gradients' averages, what a step leaves
LOOKS = 4  # steps that only look
DAMPING = 0.1  # of a parameter's mean square


class Natural(torch.optim.Optimizer):
    """The mean gradient over its mean square, entry by entry, as long as the loss allows.

    The divergence from a network near by is curved as the squares of its samples' gradients are (its Fisher
    information), so that the mean over the mean square is the best step for each entry: one into which the few large
    channels of a language model lead is moved a millionth as far as others. Adam divides by the root, which still
    moves it a thousandth as far, and that is too far. How long the step is for all entries together is not known from
    gradients of one batch, which are noise for the most part; a step promises, to first order, to win back ``lr`` of
    the loss that ``closure`` returns, which is zero at best. No entry moves by more than ``lr``, in the unit that it
    has: where its gradient is mere rounding, mean over mean square is anything. The first steps only look.

    Cost: three numbers beside each. Source: S. Amari, "Natural gradient works efficiently in learning", 1998; the
    length: B. Polyak, "Introduction to Optimization", 1987, 5.3.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float = SHARE) -> None:
        super().__init__(list(parameters), {"lr": lr})
        self.looked = 0

    @torch.no_grad()
    def step(self, closure: Callable[[], Any]) -> Any:  # type: ignore[override] # without a loss no length is known
        """One step from the gradients that are there, or that ``closure`` makes; ``closure`` returns the loss."""
        with torch.enable_grad():
            loss = closure()
        self.looked += 1
        for group in self.param_groups:
            steps, promised = [], 0.0
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                known = self.state[parameter]
                mean = known.setdefault("mean", torch.zeros_like(parameter))
                square = known.setdefault("square", torch.zeros_like(parameter))
                mean.lerp_(parameter.grad, 1 - FAST)
                square.lerp_(parameter.grad.square(), 1 - SLOW)
                step = mean / (square + DAMPING * square.mean()).clamp_min(torch.finfo(square.dtype).tiny)
                steps.append((parameter, step))
                promised += float((step * mean).sum())
            if self.looked <= LOOKS or not (promised > 0 and float(loss) > 0):
                continue
            most = group["lr"]
            for parameter, step in steps:
                parameter.sub_((step * (most * float(loss) / promised)).clamp(-most, most))
        return loss
