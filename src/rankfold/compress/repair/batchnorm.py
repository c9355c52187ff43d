"""Repair after compression, without training: BatchNorm statistics measured again, relative to the original network."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rankfold.batches import batches_of, forward
from rankfold.costs import evaluating
from rankfold.sites import unwrap


def reestimate_(
    model: nn.Module, original: nn.Module, data: Any, *, samples: int | None = 2048, batch_size: int = 256
) -> tuple[str, ...]:
    """Correct the running statistics of every BatchNorm of ``model`` in place; returns the names of the changed ones.

    Both networks run on the same batches. The variance is the original's times the ratio of the two batch variances,
    and the mean lies as many standard deviations from the batch mean as in the original, layer after layer: every
    BatchNorm already normalises with its corrected values when the later ones are measured. What the calibration data
    differs in from the training data (augmentation, a small sample) cancels, so that nothing changes where nothing was
    compressed; measuring the statistics afresh, as is usual, would take accuracy even from the original network.

    BatchNorms are matched by name; those that ``original`` does not have are left alone. One pass over the data with
    both networks. Modes are left as found. Raises ``ValueError`` for empty data.
    """
    root, reference = unwrap(model), unwrap(original)
    theirs = dict(reference.named_modules())
    pairs = {
        name: (module, theirs[name])
        for name, module in root.named_modules()
        if isinstance(module, _BatchNorm)
        and module.running_mean is not None
        and isinstance(theirs.get(name), _BatchNorm)
    }
    if not pairs:
        return ()
    trackers = {name: _Tracker(twin) for name, (_, twin) in pairs.items()}
    count = 0
    with ExitStack() as stack:
        stack.enter_context(evaluating(root))
        stack.enter_context(evaluating(reference))
        for name, (module, twin) in pairs.items():
            stack.callback(twin.register_forward_pre_hook(trackers[name].watch).remove)
            stack.callback(module.register_forward_pre_hook(trackers[name].correct).remove)
        for batch in batches_of(data, batch_size, samples):
            for tracker in trackers.values():
                tracker.expected.clear()
            forward(reference, batch)
            forward(root, batch)
            count += 1
    if count == 0:
        raise ValueError("the data for the BatchNorm statistics is empty: give at least one batch")
    return tuple(name for name, tracker in trackers.items() if tracker.moved)


class _Tracker:
    """The running comparison of one BatchNorm with its twin in the original network."""

    def __init__(self, twin: _BatchNorm) -> None:
        self.mean = twin.get_buffer("running_mean").double().clone()
        self.variance = twin.get_buffer("running_var").double().clone()
        self.expected: list[tuple[Tensor, Tensor]] = []
        self.sums = torch.zeros(4, len(self.mean), dtype=torch.float64, device=self.mean.device)
        self.count = 0
        self.moved = False

    def watch(self, twin: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.expected.append(_moments(args[0]))

    def correct(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if not self.expected:  # called more often than in the original: nothing to compare with
            return
        mean, variance = _moments(args[0])
        mean_before, variance_before = self.expected.pop(0)
        self.sums += torch.stack([mean, mean_before, variance, variance_before])
        self.count += 1
        mean, mean_before, variance, variance_before = self.sums / self.count
        ratio = variance / variance_before.clamp_min(torch.finfo(variance.dtype).tiny)
        ratio = torch.where(variance_before > 0, ratio, torch.ones_like(ratio))
        if not self._differs(mean, mean_before, ratio):
            return
        module.get_buffer("running_mean").copy_(mean + (self.mean - mean_before) * ratio.sqrt())
        module.get_buffer("running_var").copy_(self.variance * ratio)
        self.moved = True

    def _differs(self, mean: Tensor, mean_before: Tensor, ratio: Tensor) -> bool:
        return self.moved or bool((mean != mean_before).any()) or bool((ratio != 1).any())


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel of (N, C, …), float64."""
    rows = x.movedim(1, -1).flatten(0, -2) if x.dim() > 2 else x
    variance, mean = torch.var_mean(rows.double() if rows.numel() < 1 << 22 else rows.float(), 0, unbiased=False)
    return mean.double(), variance.double()
