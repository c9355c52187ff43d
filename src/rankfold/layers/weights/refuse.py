"""Assigning to the ``weight`` or ``bias`` of a factored layer, and loading the weights of the dense one into it."""

from __future__ import annotations

import warnings
from typing import Any, NoReturn

from torch import Tensor, nn

from rankfold.layers.weights.errors import REMEDY
from rankfold.layers.weights.weight import FactoredWeight


class RefusesWeight(nn.Module):
    """A layer whose ``weight`` is computed: assigning to it is refused; its ``bias`` is that of its last stage."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight":
            self._refuse()
        if name == "bias":
            setattr(self.get_submodule("up"), name, value)
            return
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        if name == "weight":
            self._refuse()
        super().__delattr__(name)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        if name == "weight" or isinstance(param, FactoredWeight):  # as what pruning keeps of it
            self._refuse()
        if name == "bias":
            self.get_submodule("up").register_parameter(name, param)
            return
        super().register_parameter(name, param)

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        if name == "weight":
            self._refuse()
        super().register_buffer(name, tensor, persistent)

    def _refuse(self) -> NoReturn:
        raise AttributeError(f"the weight of a {type(self).__name__} {REMEDY}")

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        if f"{prefix}weight" in state_dict:  # which strict=False would pass over in silence
            warnings.warn(
                f"{prefix}weight is the weight of a dense layer, and this {type(self).__name__} stores factors: it was "
                "not loaded. Load it into the original network, and compress that",
                stacklevel=2,
            )
