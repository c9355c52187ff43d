"""A network in which layers are truncated on trial: the loss with one layer changed, for less than a forward pass.

What precedes the layer is replayed from a record, and the samples go through in chunks, those of highest loss first,
until the sum exceeds the bound that it has to stay under.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rankfold.batches import arguments, labels_of, moved, place_of
from rankfold.compress.planning.candidates import Candidate
from rankfold.compress.ranks.options import Option
from rankfold.compress.ranks.replay import Replay, ReplayError, Tape
from rankfold.compress.ranks.sampling import alike, join
from rankfold.objectives import Classification, ObjectiveError, infer, main_tensor
from rankfold.objectives.answer import of_classes
from rankfold.objectives.compare import assumed_axis as _classes
from rankfold.sites import Form

CHUNK = 32  # samples that go through at once on a processor: more do not stay in its caches
MEMORY = 2 << 30  # bytes of recorded outputs in all


@dataclass
class Chunk:
    """Samples that go through together: their indices, what the model is called with, what the loss compares with."""

    indices: list[int]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    target: Tensor
    tape: Tape | None = None


class Trial:
    """The network inside a ``with`` block, in eval mode without gradients; on leaving it is as it was found.

    ``samples``: batches of one sample. The loss of a sample is the cross-entropy where it carries a class label,
    otherwise the Kullback-Leibler divergence from the network's predictions on entering (the squared difference for a
    single output); averaged over its positions. Never negative.

    Weights are multiplied out: the dense kernels are as fast at small ranks of narrow layers as two thin ones.
    """

    def __init__(self, root: nn.Module, candidates: Mapping[str, Sequence[Candidate]], samples: Sequence[Any]) -> None:
        place = place_of(root.modules())
        self.device = torch.device("cpu") if place is None else place.device
        self.samples = [moved(sample, self.device, None if place is None else place.dtype) for sample in samples]
        self.root, self.candidates = root, candidates
        self.replay, self.replaying = Replay(root), True
        self.channels_last = self.device.type == "cpu"
        self.losses = torch.zeros(len(samples), dtype=torch.float64)
        self._checked: set[str] = set()
        self._own: dict[str, tuple[Any, Any]] = {}
        self._ready: dict[str, tuple[Option, Tensor, Tensor | None]] = {}

    def __enter__(self) -> Trial:
        with self.replay:  # taken off again if anything fails here
            self._targets, self._losses = self._originals()
            self.chunks = self._chunks(range(len(self.samples)))
            self._evaluate(None)
        self.replay.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.replay.__exit__()
        for site, (weight, bias) in self._own.items():
            self._place(site, weight, bias)

    def sort(self) -> None:
        """Form the chunks anew, samples of highest loss first. Cost: one forward pass."""
        self.chunks = self._chunks(self.losses.argsort(descending=True, stable=True).tolist())
        self._evaluate(None)

    def loss(self, site: str, option: Option, bound: float = math.inf) -> float:
        """Sum of the losses with ``site`` as ``option``; a part of the sum as soon as it is above ``bound``."""
        module = self.root.get_submodule(site)
        now = self._held(site)
        self._place(site, *self._prepare(site, option))
        total = 0.0
        try:
            for chunk in self.chunks:
                total += float(self._losses(self._changed(site, module, chunk), chunk.target).sum())
                if not total <= bound:
                    break
        finally:
            self._place(site, *now)
        return math.inf if math.isnan(total) else total

    def commit(self, site: str, option: Option) -> None:
        """Leave ``site`` as ``option``. Cost: a forward pass from there on."""
        module = self.root.get_submodule(site)
        self._own.setdefault(site, self._held(site))
        self._place(site, *self._prepare(site, option))
        self._evaluate(module)

    def _changed(self, site: str, module: nn.Module, chunk: Chunk) -> Tensor:
        """Logits of a chunk. The first of each site are computed both ways: models that cannot be replayed show."""
        if not self.replaying or chunk.tape is None:
            return self._logits(chunk)
        try:
            logits = main_tensor(self.replay.play(self._run(chunk), chunk.tape, module))
        except ReplayError:
            self.replaying = False
            return self._logits(chunk)
        if site not in self._checked:
            self._checked.add(site)
            whole = self._logits(chunk)
            self.replaying = torch.allclose(logits, whole, rtol=1e-4, atol=1e-6, equal_nan=True)
            return whole
        return logits

    def _run(self, chunk: Chunk) -> Callable[[], Any]:
        return lambda: self.root(*chunk.args, **chunk.kwargs)

    def _logits(self, chunk: Chunk) -> Tensor:
        return main_tensor(self._run(chunk)())

    def _evaluate(self, changed: nn.Module | None) -> None:
        """Losses and tapes of all chunks after a change of one module (None: of any)."""
        for chunk in self.chunks:
            if self.replaying:
                try:
                    chunk.tape, output = self.replay.record(self._run(chunk), chunk.tape, changed)
                except ReplayError:
                    self.replaying, output = False, self._run(chunk)()
            else:
                chunk.tape, output = None, self._run(chunk)()
            self.losses[chunk.indices] = self._losses(main_tensor(output), chunk.target).cpu()

    def _chunks(self, order: Sequence[int]) -> list[Chunk]:
        ordered = [self.samples[index] for index in order]
        chunks = []
        for group in alike(ordered, CHUNK if self.device.type == "cpu" else len(ordered)):
            indices = [order[position] for position in group]
            args, kwargs = arguments(join([ordered[position] for position in group]), self.root)
            target = torch.cat([self._targets[index] for index in indices])
            chunks.append(Chunk(indices, *self._laid_out(args, kwargs), target))
        self.replay.memory = MEMORY // len(chunks)
        return chunks

    def _laid_out(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Images with their channels last, which convolutions on a processor prefer."""

        def lay(value: Any) -> Any:
            image = isinstance(value, Tensor) and value.dim() == 4 and value.is_floating_point()
            return value.contiguous(memory_format=torch.channels_last) if image and self.channels_last else value

        return tuple(map(lay, args)), {key: lay(value) for key, value in kwargs.items()}

    def _originals(self) -> tuple[list[Tensor], Callable[[Tensor, Tensor], Tensor]]:
        """For every sample what its loss compares with, and the loss."""
        targets: list[Tensor] = [torch.empty(0)] * len(self.samples)
        losses: Callable[[Tensor, Tensor], Tensor] = _divergence
        for group in alike(self.samples, CHUNK):
            batch = join([self.samples[index] for index in group])
            args, kwargs = arguments(batch, self.root)
            logits, labels = main_tensor(self.root(*args, **kwargs)), labels_of(batch)
            self._try_layout(args, kwargs, logits)
            if _class_indices(logits, batch):
                _check_range(labels, logits.shape[1])
                losses, target = _cross_entropy, labels
            elif logits.shape[_classes(logits)] == 1:
                losses, target = _squared, logits.double()
            else:
                target = _shares(logits)
            for index, part in zip(group, target.chunk(len(group)), strict=True):
                targets[index] = part
        return targets, losses

    def _try_layout(self, args: tuple[Any, ...], kwargs: dict[str, Any], logits: Tensor) -> None:
        if not self.channels_last:
            return
        args, kwargs = self._laid_out(args, kwargs)
        try:
            same = torch.allclose(main_tensor(self.root(*args, **kwargs)), logits, rtol=1e-3, atol=1e-4, equal_nan=True)
        except RuntimeError:  # a model that takes views of its images
            same = False
        self.channels_last = same

    def _prepare(self, site: str, option: Option) -> tuple[Tensor, Tensor | None]:
        known = self._ready.get(site)
        if known is None or known[0] != option:
            candidate = next(c for c in self.candidates[site] if c.form is option.form)
            module = self.root.get_submodule(site)
            weight, bias = self._own.get(site, self._held(site))
            known = self._ready[site] = (option, *multiplied_out(module, candidate, option.rank, weight, bias))
        return known[1:]

    def _held(self, site: str) -> tuple[Any, Any]:
        parameters = self.root.get_submodule(site)._parameters
        return parameters[self._weight(site)], parameters.get("bias")

    def _place(self, site: str, weight: Any, bias: Any) -> None:
        parameters = self.root.get_submodule(site)._parameters
        parameters[self._weight(site)] = weight
        if bias is not None or "bias" in parameters:
            parameters["bias"] = bias

    def _weight(self, site: str) -> str:
        return self.candidates[site][0].site.layer.parameter


def multiplied_out(
    module: nn.Module, candidate: Candidate, rank: int, weight: Tensor, bias: Tensor | None
) -> tuple[nn.Parameter, nn.Parameter | None]:
    """The dense weight and bias with which ``module`` computes what its truncation to ``rank`` computes."""
    factors, layer, form = candidate.decomposition.factors(rank), candidate.site.layer, candidate.form
    if form.decomposed in (Form.FACTORED, Form.SPATIAL):
        right, left = factors.parts
        product = layer.geometry(form).put(weight, left @ right)
    else:
        skeleton: Any = layer.skeleton(module, form, rank, False).double()
        layer.write_(skeleton, form, factors)
        product = skeleton.weight
    if factors.shift is not None:
        shift = factors.shift.to(weight)
        bias = shift if bias is None else bias.detach() + shift
    new_bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
    return nn.Parameter(product.clone().to(weight), requires_grad=False), new_bias


def _class_indices(logits: Tensor, batch: Any) -> bool:
    """Whether the batch holds one class index for each position, with the classes along the second axis."""
    labels = labels_of(batch)
    try:
        told = None if labels is None else infer(logits, batch).objective
    except ObjectiveError:
        return False
    fits = isinstance(labels, Tensor) and labels.shape == (*logits.shape[:1], *logits.shape[2:])
    return fits and isinstance(told, Classification) and told.axis == 1 and not labels.is_floating_point()


def _check_range(labels: Tensor, classes: int) -> None:
    """``ValueError`` for labels outside 0 … classes − 1; −100 marks positions to leave out."""
    wrong = labels[(labels != -100) & ((labels < 0) | (labels >= classes))]
    if wrong.numel():
        raise ValueError(
            f"the calibration data hold the label {int(wrong[0])}, and the model has outputs for labels from 0 to "
            f"{classes - 1}"
        )


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return _by_sample(F.cross_entropy(logits.double(), labels.long(), reduction="none"), len(labels))


def _divergence(logits: Tensor, original: Tensor) -> Tensor:
    rows = F.kl_div(_shares(logits), original, reduction="none", log_target=True).sum(_classes(logits))
    return _by_sample(rows, len(original)).clamp_min(0)


def _shares(logits: Tensor) -> Tensor:
    """Logarithms of the classes' shares; those that the network rules out count as if they were not there."""
    axis = _classes(logits)
    return of_classes(logits.double().movedim(axis, -1), None).values.log_softmax(-1).movedim(-1, axis)


def _squared(output: Tensor, original: Tensor) -> Tensor:
    return _by_sample((output.double() - original).square(), len(original))


def _by_sample(values: Tensor, samples: int) -> Tensor:
    return values.reshape(samples, -1).mean(1)
