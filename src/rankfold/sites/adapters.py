"""Layers with an adapter beside an ordinary layer, of PEFT and of rankfold.adapt, told without importing either."""

from __future__ import annotations

from torch import nn

from rankfold.sites.find import is_peft


def _is_own(module: nn.Module) -> bool:
    return any(
        f"{kind.__module__}.{kind.__name__}" == "rankfold.adapt.layer.AdaptedLayer" for kind in type(module).__mro__
    )


def why_adapted(root: nn.Module) -> str:
    """The first layer of ``root`` that an adapter hangs on, with what to do, in one line; "" where there is none."""
    for name, module in root.named_modules():
        if is_peft(module):
            return (
                f"{name} is a layer of PEFT: take merge_and_unload() of the PEFT model, or unload() without the adapter"
            )
        if _is_own(module):
            return (
                f"{name} has an update beside it: call rankfold.adapt.merge_ on the model first, or remove_ without it"
            )
    return ""
