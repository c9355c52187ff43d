"""How far the outputs of two networks are from each other, answer by answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rankfold.objectives.answer import Answer
from rankfold.objectives.evaluation import ObjectiveError

_TINY = 1e-30
CHUNK = 1 << 20  # numbers that are computed with at a time, in single or double precision, however many there are


def paired(now: Sequence[Answer], then: Sequence[Answer]) -> list[tuple[Answer, Answer]]:
    """Answers of two networks side by side; ``ObjectiveError`` where their shapes differ. What only one of them masks
    is infinitely far."""
    if [a.values.shape for a in now] != [a.values.shape for a in then]:
        raise ObjectiveError(
            f"the outputs of two networks differ in shape, {_shapes(now)} and {_shapes(then)}: give the network "
            "that this one was made from (where it is that, the length of its outputs depends on its weights, so that "
            "they cannot be compared: give targets and an objective that reads them)"
        )
    return [(_where_masked(a, b), b) for a, b in zip(now, then, strict=True)]


def _where_masked(now: Answer, then: Answer) -> Answer:
    if now.classes or now.masked is None or then.masked is None:
        return now
    return replace(now, values=now.values.masked_fill(now.masked ^ then.masked.to(now.masked.device), torch.inf))


def _shapes(answers: Sequence[Answer]) -> str:
    return ", ".join("×".join(map(str, a.values.shape)) for a in answers)


def scored(answer: Answer) -> bool:
    """Whether it holds scores of several classes, which are compared as distributions."""
    return answer.classes and answer.values.shape[-1] > 1


def divergences(now: Answer, then: Answer) -> Tensor:
    """(N,) float64: of class scores KL(then ‖ now) in nats, of numbers the squared change over their deviation."""
    apart = _by_row(_kl if scored(now) else _square, now.values, then.values)
    if scored(now):
        return _counted_mean(apart, then.counted).clamp_min(0)
    return _counted_mean(apart, then.counted) / deviation(then).clamp_min(_TINY)


def deviation(then: Answer) -> Tensor:
    """Mean squared deviation of a position from the mean over the samples; of constants or one sample their energy."""
    values = then.values.reshape(len(then.values), -1, then.values.shape[-1])
    parts = (part.double() for (part,) in in_parts(values.transpose(0, 1)))  # some positions of all samples
    apart = torch.cat([_square(part, part.mean(1, keepdim=True)) for part in parts]).T
    energy = _counted_mean(apart, then.counted).mean()
    return energy if float(energy) > 0 else _counted_mean(_by_row(_energy, values), then.counted).mean()


def _by_row(change: Callable[..., Tensor], *tables: Tensor) -> Tensor:
    """(…, C) → (…): ``change`` of the rows of tables in float64."""
    shape = tables[0].shape
    parts = in_parts(*(table.reshape(-1, shape[-1]) for table in tables))
    return torch.cat([change(*(part.double() for part in each)) for each in parts]).reshape(shape[:-1])


def in_parts(*tables: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tables (R, …) some rows at a time, together: copies of all rows of scores over a large vocabulary, in double
    precision too, would take several times the memory of the scores. ``CHUNK`` numbers of the first."""
    size = max(1, CHUNK // max(1, tables[0][:1].numel()))
    return zip(*(table.split(size) for table in tables), strict=True)


def _kl(now: Tensor, then: Tensor) -> Tensor:
    return F.kl_div(now.log_softmax(-1), then.log_softmax(-1), reduction="none", log_target=True).sum(-1)


def _square(now: Tensor, then: Tensor) -> Tensor:
    return (now - then).square().sum(-1)


def _energy(then: Tensor) -> Tensor:
    return then.square().sum(-1)


def distance(now: Answer, then: Answer, temperature: float, scale: float | None) -> tuple[Tensor, int]:
    """The mean over the positions that count, with gradients, and how many those are; ``scale`` (None: taken from
    ``then``) divides squared changes."""
    a, b = now.rows, then.rows.to(now.rows)
    if not len(a):
        return a.sum() * 0, 0
    if scored(now):
        t = temperature
        if a.numel() > CHUNK:
            return _InChunks.apply(a / t, b / t) * t * t, len(a)
        soft = F.kl_div((a / t).log_softmax(-1), (b / t).log_softmax(-1), reduction="batchmean", log_target=True)
        return soft * t * t, len(a)
    energy = float(deviation(then)) if scale is None else scale
    return (a - b).square().sum(-1).mean() / max(energy, _TINY), len(a)


class _InChunks(torch.autograd.Function):
    """Mean KL(softmax b ‖ softmax a) of rows (R, C), some rows at a time.

    Beside its inputs it keeps one table of their size, the gradient, where the plain expression keeps four.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        total, slope = a.new_zeros((), dtype=torch.float64), torch.empty_like(a)
        for now, then, at in in_parts(a, b, slope):
            q, p = now.log_softmax(-1), then.log_softmax(-1)
            total += F.kl_div(q, p, reduction="sum", log_target=True).double()
            torch.sub(q.exp_(), p.exp_(), out=at)
        ctx.save_for_backward(slope.div_(len(a)))
        return (total / len(a)).to(a.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (slope,) = ctx.saved_tensors
        return slope * grads[0], None


def _counted_mean(values: Tensor, counted: Tensor | None) -> Tensor:
    """(N, …) → (N,): the mean over the positions that count."""
    values = values.reshape(len(values), -1)
    if counted is None:
        return values.mean(1)
    kept = counted.reshape(len(values), -1).to(values)
    return (values * kept).sum(1) / kept.sum(1).clamp_min(1)


def assumed_axis(values: Tensor) -> int:
    """The axis of classes where no objective says: the second of (N, C) and of images (N, C, …), the last of sequences
    (N, T, C)."""
    return -1 if values.dim() in (1, 3) else 1


def assumed_rows(values: Tensor) -> Tensor:
    """Outputs of an unknown objective as float64 rows: log-probabilities (R, C) along ``assumed_axis``, or single
    numbers (R, 1)."""
    wide = values.double()
    wide = wide.unsqueeze(-1) if wide.dim() == 1 else wide.movedim(assumed_axis(values), -1)
    rows = wide.reshape(-1, wide.shape[-1])
    return rows if rows.shape[1] == 1 else rows.log_softmax(-1)


def change(now: Tensor, then: Tensor) -> float:
    """Between two ``assumed_rows``, summed over the rows: KL divergence, or the squared change over the mean square."""
    if then.shape[1] == 1:
        return float((now - then).square().sum() / then.square().mean().clamp_min(torch.finfo(then.dtype).tiny))
    return max(float(F.kl_div(now, then, reduction="sum", log_target=True)), 0.0)  # rounding leaves -1e-17
