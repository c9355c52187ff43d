"""Repair after compression, without training: BatchNorm statistics measured again on the compressed network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rankfold.batches import batches_of, forward
from rankfold.costs import evaluating
from rankfold.sites import unwrap


def reestimate_(model: nn.Module, data: Any, *, samples: int | None = 2048, batch_size: int = 256) -> tuple[str, ...]:
    """Measure the running mean and variance of every BatchNorm again, in place; returns the names of those changed.

    Each batch is normalised by its own statistics, as in training, and the cumulative average is kept, so that later
    layers see what they will see. One pass over the data; parameters do not change, and every module's mode and
    momentum are left as found. Raises ``ValueError`` for empty data.
    """
    root = unwrap(model)
    norms = {
        name: module
        for name, module in root.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
    }
    if not norms:
        return ()
    momenta = {name: module.momentum for name, module in norms.items()}
    kept = {name: {key: t.clone() for key, t in module.named_buffers()} for name, module in norms.items()}
    count = 0
    with evaluating(root):
        try:
            for module in norms.values():
                module.reset_running_stats()
                module.momentum = None  # cumulative average
                module.training = True
            for batch in batches_of(data, batch_size, samples):
                forward(root, batch)
                count += 1
        finally:
            for name, module in norms.items():
                module.momentum = momenta[name]
                if count == 0 or int(module.num_batches_tracked or 0) == 0:
                    for key, tensor in kept[name].items():
                        getattr(module, key).copy_(tensor)
    if count == 0:
        raise ValueError("the data for the BatchNorm statistics is empty: give at least one batch")
    moved = (name for name, module in norms.items() if _moved(module, kept[name]["running_mean"]))
    return tuple(moved)


def _moved(module: nn.Module, mean: Tensor) -> bool:
    return not torch.equal(mean, module.get_buffer("running_mean"))
