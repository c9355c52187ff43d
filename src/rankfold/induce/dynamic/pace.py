"""How far a step moves cores: what an optimizer's own step would be of the weight, and of directions that came late."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from torch import nn

from rankfold.induce.dynamic.moments import DIVISORS, entered, lag
from rankfold.layers import DynamicLowRank
from rankfold.train.step.around import Around

Layers = Mapping[str, DynamicLowRank]


class Pace:
    """Takes the steps of ``around.inner``. ``lengthens``: steps of cores, where entries move by the rate; ``at_once``:
    directions move in the step in which they come in, else from the next one on.

    ``entering``: shapes of cores before this window's directions came in. ``rising``: whether the rate was higher at
    the last step than at the one before.
    """

    def __init__(self, around: Around, lengthens: bool, at_once: bool) -> None:
        self.around, self.lengthens, self.at_once = around, lengthens, at_once
        self.entering: dict[str, torch.Size] = {}
        self.rate, self.rising = float("inf"), False

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return {
            "rate": self.rate, "rising": self.rising, "entering": {n: list(s) for n, s in self.entering.items()},
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes what is its own out of ``state``; earlier ones lack it."""
        self.rate, self.rising = float(state.pop("rate", "inf")), bool(state.pop("rising", False))
        self.entering = {name: torch.Size(shape) for name, shape in state.pop("entering", {}).items()}

    def step(self, layers: Layers, position: int) -> None:
        """A step of the inner optimizer. Divided by the root of squares, or by the largest gradient, each entry of a
        core moves by about the rate, as of the dense weight; that has more of them, and a matrix of independent ones
        grows as the fourth root of their number in spectral norm. Without as much, training at low rank lags behind the
        dense one at its rate."""
        stepped = [(name, layer) for name, layer in layers.items() if layer.core.grad is not None]
        before = [(name, layer, layer.core.detach().clone()) for name, layer in stepped]
        self.around.inner.step()
        rate = max(float(group["lr"]) for group in self.around.param_groups)
        self.rising, self.rate = rate > self.rate, rate
        for name, layer, old in before:
            old = old * self._kept(layer.core)
            if self.lengthens and DIVISORS & self.around.state.get(layer.core, {}).keys():
                layer.core.lerp_(old, 1 - (prod(layer.shape) / old.numel()) ** 0.25)
            if (late := self._lag(layer.core, position)) != 1 and name in self.entering:
                shape = self.entering[name]
                for now, then in zip(entered(layer.core, shape), entered(old, shape), strict=True):
                    now.lerp_(then, 1 - late)

    def caught_up(self, layers: Layers, steps: int) -> None:
        """``steps`` after directions came in their means become as those of all others: nobody knows them apart any
        longer."""
        for name, shape in self.entering.items():
            core = layers[name].core
            if (late := self._lag(core, steps)) != 1:
                for part in entered(self.around.state[core]["exp_avg"], shape):
                    part.mul_(late)
        self.entering = {}

    def group(self, core: nn.Parameter) -> dict[str, Any]:
        """That of the inner optimizer which the core is in."""
        return next(group for group in self.around.param_groups if any(p is core for p in group["params"]))

    def _lag(self, core: nn.Parameter, steps: int) -> float:
        """By what directions lag behind that came in ``steps`` before."""
        return lag(self.around.state.get(core, {}), self.group(core), steps + self.at_once)

    def _kept(self, core: nn.Parameter) -> float:
        """What decoupled decay leaves of a core in a step, which is that of the weight and no longer than it."""
        group = self.group(core)
        apart = isinstance(self.around.inner, torch.optim.AdamW) or group.get("decoupled_weight_decay", False)
        return 1 - float(group["lr"]) * group["weight_decay"] if apart else 1.0
