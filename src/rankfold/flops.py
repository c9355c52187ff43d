"""FLOPs counted with torch's own formulas, without importing torch's compiler (two seconds and 200 MB)."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class FlopCount(TorchDispatchMode):
    """Inside, ``total`` grows by the FLOPs of every operation that runs, two for each multiply-add.

    The formulas are those of ``torch.utils.flop_counter.FlopCounterMode``. That one also takes normalisations and
    activations apart in search of products, for which torch imports its compiler; here only operations that are made
    of others by torch's definition are taken apart.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # torch would wrap the method below, and import the compiler for the wrapping

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        formula = flop_registry.get(func._overloadpacket)
        if formula is None and _composite(func):
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        out = func(*args, **kwargs)
        if formula is not None:
            self.total += formula(*args, **kwargs, out_val=out)
        return out


def _composite(func: Any) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")
