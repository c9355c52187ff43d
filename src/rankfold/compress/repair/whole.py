"""A compressed network tuned as a whole towards the original's answers: no labels, factors only, the best step kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.batches import forward, tensors_in, two_halves
from rankfold.batches.parts import parts_of
from rankfold.compress.ranks.numbers import whole
from rankfold.compress.repair.blocks import blocks_of_both, blocks_off, differentiate, noted
from rankfold.compress.repair.turning import Turning, rate_for
from rankfold.costs import evaluating
from rankfold.objectives import Objective
from rankfold.observe import Samples
from rankfold.observe.halves import WHOLE, halves
from rankfold.run.processes.memory import available
from rankfold.run.progress import Progress
from rankfold.sites import without_fused_attention

LOOKS = 6  # at held-out samples, spread over the steps
JUDGES = 8, 64  # samples that judge, at least and at most
CLIP = 1.0  # norm of a gradient
BESIDE = 1.0  # what the blocks' own errors weigh at the start, as a share of the divergence of the answers
SHARE = 0.25  # of the memory that is free: what answers of the original may take


@dataclass(frozen=True)
class Steps:
    """How a network is tuned. ``batch_size``: samples of one step. ``optimizer``: made of parameters and ``lr``."""

    count: int
    learning_rate: float | None
    samples: int | None
    batch_size: int
    optimizer: Callable[..., torch.optim.Optimizer] = Turning


@dataclass(frozen=True)
class Way:
    """Divergence from the original on held-out samples: ``before``, and ``after`` ``step`` steps, the best of those
    that were looked at."""

    before: float
    after: float
    step: int


def tune_whole_(
    root: nn.Module,
    original: nn.Module,
    trained: Sequence[nn.Parameter],
    data: Any,
    objective: Objective,
    how: Steps,
    progress: Progress | None = None,
) -> Way:
    """Train ``trained`` to the answers that ``original`` gives, and to what its blocks give; see ``rankfold.tune_``.

    The answers of a step's few samples say little about thousands of directions; what every block gives says much more.
    """
    seen = Samples(data, how.samples, how.batch_size)
    judges = list(parts_of(list(seen.judges(original)), how.batch_size, judging(how, objective)))
    if not judges:
        raise ValueError("tuning is judged on samples that are held back: give at least two batches")
    taught = list(parts_of(seen.without_judges().data, how.batch_size))
    if not taught:
        raise ValueError("no data are left to tune on: give more samples")
    with ExitStack() as stack:
        for network in (root, original):
            stack.enter_context(evaluating(network))
        stack.enter_context(without_fused_attention())
        stack.enter_context(gradients_of(root, trained))
        inside = blocks_of_both(root, original)
        parted = halves(original, taught[0], inside) if two_halves(taught[0], original) else WHOLE
        judged = _Judged(original, judges, objective)
        best = before = judged.divergence(root)
        kept, at = [parameter.detach().clone() for parameter in trained], 0
        rate = rate_for(before) if how.learning_rate is None else how.learning_rate
        optimizer = how.optimizer(trained, lr=rate)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, max(how.count, 1))
        weight: float | None = None
        looks = {round(how.count * (i + 1) / LOOKS) for i in range(LOOKS)}
        for step, batch in enumerate(islice(_forever(taught), how.count), 1):
            with torch.no_grad(), noted(original, inside) as asked:
                wanted = forward(original, batch)
            with torch.enable_grad(), noted(root, inside) as given:
                loss = objective.distance(forward(root, batch), wanted, batch)
                optimizer.zero_grad()
                beside = blocks_off(given, asked, batch, parted)
                weight = _balance(loss, beside) if weight is None else weight
                loss = loss + weight * beside
                differentiate(loss, "whole")
            norm = float(torch.nn.utils.clip_grad_norm_(trained, CLIP))
            optimizer.step(partial(_shortened, loss.item(), norm))  # differentiated already
            schedule.step()
            if step in looks and (now := judged.divergence(root)) < best:
                best, at = now, step
                kept = [parameter.detach().clone() for parameter in trained]
            if progress is not None:
                progress("tuning", step, how.count)
        with torch.no_grad():
            for parameter, value in zip(trained, kept, strict=True):
                parameter.copy_(value)
    return Way(before, best, at)


def _shortened(loss: float, norm: float) -> float:
    """What there is to win, in the unit that gradients of this ``norm`` have once they are clipped."""
    return loss * min(1.0, CLIP / norm) if norm > 0 else loss


def _balance(loss: Tensor, beside: Tensor) -> float:
    """By what the errors of blocks are multiplied: divergences have units of their own."""
    now, error = loss.item(), beside.item()
    return BESIDE * now / error if now > 0 and 0 < error < float("inf") else 0.0


def judging(how: Steps, objective: Objective) -> int:
    """How many samples judge: of texts, each of many tokens, as many as take half the time of the steps.

    A step takes four forward passes of each of its samples, counting backward as two; a look one of each that judges
    (two where the original's answers are not kept).
    """
    least, most = JUDGES
    return min(most, max(least, how.count * how.batch_size // (LOOKS + 1))) if objective.by_token else most


def _forever(parts: Sequence[Any]) -> Iterator[Any]:
    """The parts in a random order, again and again in others; the same each time."""
    generator = torch.Generator().manual_seed(0)
    for _ in cycle((None,)):
        for index in torch.randperm(len(parts), generator=generator).tolist():
            yield parts[index]


class _Judged:
    """Divergence from the original on the ``judges``; what that gives for them is kept where ``SHARE`` of the memory
    that is free has room for it."""

    def __init__(self, original: nn.Module, judges: Sequence[Any], objective: Objective) -> None:
        self.original, self.judges, self.objective = original, judges, objective
        self.wanted: dict[int, Any] = {}

    @torch.no_grad()
    def divergence(self, root: nn.Module) -> float:
        total, counted = 0.0, 0
        for number, batch in enumerate(self.judges):
            value, count = self.objective.distances(forward(root, batch), self._asked(number, batch), batch)
            total, counted = total + float(value) * count, counted + count
        found = total / max(counted, 1)
        return found if found == found else float("inf")

    def _asked(self, number: int, batch: Any) -> Any:
        if number in self.wanted:
            return self.wanted[number]
        wanted = forward(self.original, batch)
        free, size = available(), sum(x.nbytes for x in tensors_in(wanted))
        if free is None or size * (len(self.judges) - number) <= SHARE * free:
            self.wanted[number] = wanted
        return wanted


@contextmanager
def gradients_of(root: nn.Module, trained: Sequence[nn.Parameter]) -> Iterator[None]:
    """Within the block gradients are taken of some parameters and of no others, from nothing; those that were there
    come back behind it."""
    found = [(parameter, parameter.requires_grad, parameter.grad) for parameter in root.parameters()]
    chosen = {id(parameter) for parameter in trained}
    for parameter, _, _ in found:
        parameter.requires_grad_(id(parameter) in chosen)
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, flag, gradient in found:
            parameter.requires_grad_(flag)
            parameter.grad = gradient


def check_steps(
    steps: int, batch_size: int | None, samples: int | None, learning_rate: float | None, what: str = "tune_"
) -> None:
    """``ValueError`` for numbers that ``what`` cannot train with."""
    try:
        whole("steps", steps)
    except ValueError as error:
        raise ValueError(f"{error}: to leave the factors as they are, leave {what} out") from None
    for name, value in (("batch_size", batch_size), ("samples", samples)):
        if value is not None:
            whole(name, value)
    if learning_rate is not None and not 0 < learning_rate < float("inf"):
        raise ValueError(f"learning_rate must be above 0 and finite, or None for the default, got {learning_rate}")


def trainable(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """Those that nobody has frozen; all where every one is: a network that is only used is frozen as a whole, and who
    asks for its tuning means that."""
    every = list(parameters)
    return [parameter for parameter in every if parameter.requires_grad] or every
