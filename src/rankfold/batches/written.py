"""Whether a pass in evaluation mode writes into the very weights that it computes with."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from rankfold.batches.misfit import Named


class WrittenWarning(UserWarning):
    """A network writes into its own weights: whether it has done so is in no file."""


@contextmanager
def unwritten(named: Named) -> Iterator[None]:
    """Warns of weights that calls in evaluation mode inside write into, as RWKV does once after each change of mode. Of
    tables with ``max_norm`` it is meant. ``named``: as ``model.named_modules``. Costs two looks at every parameter."""
    with torch._C.DisableTorchFunction():  # nothing that those notice who record the pass
        before = _versions(named)
    yield
    with torch._C.DisableTorchFunction():
        written = [name for name, (weight, version) in before.items() if weight._version != version]
    if written:
        kind = next(type(model).__name__ for _, model in named())
        warnings.warn(
            f"{kind} writes into its own weights when it is called ({written[0]}): what is saved now and loaded into a "
            "new network would be written into again there, and compute something else. Have it leave its weights "
            "alone before anything is measured (RWKV: config.rescale_every = 0)",
            WrittenWarning,
            stacklevel=4,
        )


def _versions(named: Named) -> dict[str, tuple[Tensor, int]]:
    """How often each weight has been written into; of ordinary ones that are in memory."""
    return {
        f"{path}.{name}".lstrip("."): (weight, weight._version)
        for path, module in named()
        for name, weight in module._parameters.items()
        if type(weight) is nn.Parameter
        and not (weight.is_meta or weight.is_inference())
        and getattr(module, "max_norm", None) is None
    }
