"""Repair after compression, without training: BatchNorm statistics measured again, relative to the original network."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rankfold.batches import arguments, as_found, batches_of, forward, mapped, tensors_in
from rankfold.costs import evaluating
from rankfold.objectives.evaluation import joined
from rankfold.observe import before, first_of
from rankfold.observe.passes import fitting_layout, laid_out
from rankfold.run.processes.memory import give_back
from rankfold.sites import unwrap

AT_ONCE = 1 << 18  # numbers that are centred together: 1 MB of float32, which stays in the cache


class Reference:
    """A trained network, and what its BatchNorms met on every batch that it was shown: measured once for each batch.

    Give the same one to ``reestimate_`` for each of several compressed copies of ``original``, which then runs on each
    batch of the data once in all, however often and in whatever order the data are read. Batches are known by their
    content. Keeps three numbers for each channel and batch. ``original`` must not change meanwhile.
    """

    def __init__(self, original: nn.Module) -> None:
        self.model = unwrap(original)
        self.norms = {
            name: module
            for name, module in self.model.named_modules()
            if isinstance(module, _BatchNorm) and module.running_mean is not None
        }
        self._known: dict[str, dict[str, list[Tensor]]] = {}
        self._layout: torch.memory_format | None = None

    def layout(self, batch: Any) -> torch.memory_format:
        """The memory layout in which the network is run; tried on the first batch."""
        if self._layout is None:
            self._layout = fitting_layout(self.model, batch)
        return self._layout

    def moments(self, batch: Any) -> dict[str, list[Tensor]]:
        """What each BatchNorm meets on ``batch``, by its name: ``moments`` for each of its calls, in their order."""
        key = _digest(batch)
        if key not in self._known:
            layout = self.layout(batch)
            met: dict[str, list[Tensor]] = {name: [] for name in self.norms}
            with evaluating(self.model), before(self.model, {name: _meeting(to) for name, to in met.items()}):
                forward(self.model, laid_out(batch, layout))
            self._known[key] = met
        return self._known[key]


def has_statistics(model: nn.Module) -> bool:
    """Whether there is a BatchNorm with running statistics, which ``reestimate_`` may correct."""
    return any(isinstance(module, _BatchNorm) and module.running_mean is not None for module in model.modules())


def _meeting(to: list[Tensor]) -> Callable[..., None]:
    return lambda module, args, kwargs: to.append(moments(first_of(args, kwargs)))


def reestimate_(
    model: nn.Module,
    original: nn.Module | Reference,
    data: Any,
    *,
    samples: int | None = 2048,
    batch_size: int = 128,
) -> tuple[str, ...]:
    """Correct the running statistics of every BatchNorm of ``model`` in place.

    Both networks run on the same batches. The variance is the original's times the ratio of the two variances over all
    batches, and the mean lies as many standard deviations from theirs as in the original, layer after layer: every
    BatchNorm already normalises with its corrected values when the later ones are measured. What the calibration data
    differ in from the training data (augmentation, a small sample) cancels, so that nothing changes where nothing was
    compressed; measuring the statistics afresh, as is usual, would take accuracy even from the original network. Modes
    are left as found, and all else where an error is raised.

    Args:
        model: compressed. BatchNorms are matched by name; those that ``original`` does not have are left alone.
        original: the network that it was made from, or a ``Reference`` to it where several copies are repaired.
        data: inputs; labels are not needed.
        samples: at most so many.
        batch_size: of the passes.

    Returns:
        The names of the changed ones.

    Raises:
        ValueError: data without a batch, or on which what a BatchNorm is given is not finite.

    Cost: one pass over the data with both networks, or with ``model`` alone where the reference knows the batches.

    Example:
        >>> net = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4)).eval()
        >>> x = torch.randn(64, 16)
        >>> small = rf.apply_(copy.deepcopy(net), rf.plan(net, "params=0.6", data=x))
        >>> rf.reestimate_(small, net, x)
        ('1',)
    """
    root = unwrap(model)
    reference = original if isinstance(original, Reference) else Reference(original)
    trackers = {
        name: _Tracker(f"{name} ({type(module).__name__})", module, reference.norms[name])
        for name, module in root.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None and name in reference.norms
    }
    if not trackers:
        return ()
    count, layout = 0, None
    meetings = {name: tracker.meet for name, tracker in trackers.items()}
    with evaluating(root), as_found(root), before(root, meetings):
        for batch in batches_of(data, batch_size, samples):
            if layout is None:  # tried while no tracker expects anything
                layout = _layout_of_both(reference, root, batch)
            expected = reference.moments(batch)
            for name, tracker in trackers.items():
                tracker.expected = deque(expected[name])
            forward(root, laid_out(batch, layout))
            count += 1
    if count == 0:
        raise ValueError("the data for the BatchNorm statistics are empty: give at least one batch")
    for tracker in trackers.values():
        tracker.correct_()
    give_back()
    return tuple(name for name, tracker in trackers.items() if tracker.moved)


def _layout_of_both(reference: Reference, root: nn.Module, batch: Any) -> torch.memory_format:
    """The reference's, so that a layer that was not compressed gives the same to the last bit; if ``root`` takes it."""
    known = reference.layout(batch)
    return known if known is torch.contiguous_format else fitting_layout(root, batch)


class _Tracker:
    """The running comparison of one BatchNorm with its twin in the original network."""

    def __init__(self, title: str, module: nn.Module, twin: _BatchNorm) -> None:
        self.title, self.module = title, module
        self.mean = twin.get_buffer("running_mean").double().clone()
        self.variance = twin.get_buffer("running_var").double().clone()
        self.expected: deque[Tensor] = deque()
        self.pooled = self.mean.new_zeros(3, 2 * len(self.mean))  # here, then in the original
        self.moved = False

    def meet(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self.expected:  # called more often than in the original: nothing to compare with
            return
        here, there = moments(first_of(args, kwargs)), self.expected.popleft()
        for found, which in ((there, "original"), (here, "compressed")):
            if not bool(found.isfinite().all()):
                raise ValueError(
                    f"{self.title}: on the calibration data its inputs in the {which} network are NaN or infinite: "
                    "look for bad samples, for weights before this layer that are NaN or infinite, or for overflow "
                    "(then convert the model to float32)"
                )
        self.pooled = joined(self.pooled, torch.cat([here, there], 1))
        self.correct_()

    def correct_(self) -> None:
        """Put into the BatchNorm what follows from all that was met; nothing where that is what the original meets."""
        count, mean, square = self.pooled.unflatten(1, (2, -1))
        (mean, mean_before), (variance, variance_before) = mean, square / count.clamp_min(1)
        ratio = variance / variance_before.clamp_min(torch.finfo(variance.dtype).tiny)
        ratio = torch.where(variance_before > 0, ratio, torch.ones_like(ratio))
        self.moved = self.moved or bool((mean != mean_before).any()) or bool((ratio != 1).any())
        if self.moved:
            self.module.get_buffer("running_mean").copy_(mean + (self.mean - mean_before) * ratio.sqrt())
            self.module.get_buffer("running_var").copy_(self.variance * ratio)


def moments(x: Tensor, at_once: int = AT_ONCE) -> Tensor:
    """(3, C) float64 for each channel of ``x`` (N, C, …): how many numbers it has, their mean and the sum of their
    squared distances from it, as ``joined`` takes them; in one pass and without a copy of ``x``.

    Samples are taken ``at_once`` numbers at a time, less the first sample's channel means, and summed in float32 over
    the places of one sample, in float64 over samples. A sample's mean lies at most √N standard deviations from that of
    all, and is as good as always within a few, so that nothing cancels: the error is that of a short float32 sum,
    about 1e-7 of the standard deviation and of the variance, however far the mean is from zero.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    shift = x[:1].to(torch.float64).flatten(2).mean((0, 2)) if x.dim() > 2 else x[0].double()
    # what is subtracted must be the same number in both precisions
    offset = shift.to(wide).reshape(-1, *(1,) * (x.dim() - 2))
    total, square = torch.zeros(2, x.shape[1], dtype=torch.float64, device=x.device)
    for part in x.split(max(1, at_once * len(x) // max(x.numel(), 1))):
        centred = (part.to(wide) - offset).reshape(len(part), x.shape[1], -1)
        total += centred.sum(2).double().sum(0)
        square += centred.square_().sum(2).double().sum(0)
    count = x.numel() // max(x.shape[1], 1)
    mean = total / count
    square = (square - count * mean.square()).clamp_min(0)
    return torch.stack([torch.full_like(mean, count), mean + offset.flatten().double(), square])


def _digest(batch: Any) -> str:
    """What a model would be called with, as a hash of every tensor's content."""
    given = arguments(batch)
    digest = hashlib.blake2b(repr(mapped(given, lambda x: (tuple(x.shape), str(x.dtype)))).encode())
    for x in tensors_in(given):
        digest.update(x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
