"""Assigning to the ``weight`` or ``bias`` of a factored layer."""

from __future__ import annotations

from typing import Any

from torch import nn

from rankfold.layers.weights.weight import REMEDY


class RefusesWeight(nn.Module):
    """A layer whose ``weight`` is computed: assigning to it is refused; its ``bias`` is that of its last stage."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight":
            raise AttributeError(f"the weight of a {type(self).__name__} {REMEDY}")
        if name == "bias":
            setattr(self.get_submodule("up"), name, value)
            return
        super().__setattr__(name, value)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        if name == "weight":
            raise AttributeError(f"the weight of a {type(self).__name__} {REMEDY}")
        if name == "bias":
            self.get_submodule("up").register_parameter(name, param)
            return
        super().register_parameter(name, param)
