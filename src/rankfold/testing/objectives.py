"""Laws of objectives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.batches import Listed, forward, samples_of, size_of
from rankfold.costs import evaluating
from rankfold.objectives import Evaluation, Objective
from rankfold.run.ordinary import ordinarily
from rankfold.testing.expect import expect
from rankfold.train import feed

_UNITS = ("fraction", "nats", "")


@ordinarily
def check_objective(objective: Objective, model: nn.Module, data: Any, *, tolerance: float = 1e-5) -> None:
    """``objective`` on what ``model`` answers to ``data``.

    An output does not differ from itself, and differs from another one by a number of at least 0 for each sample; the
    loss is one finite number over a counted number of positions, and its gradient reaches the outputs; every figure is
    a number with a name and a known unit, the same for the data in one batch and in halves. Targets and outputs are
    left as found.

    Args:
        objective: to be checked.
        model: whose answers are judged.
        data: at least four samples, as in ``rankfold.evaluate``; batches are put together.
        tolerance: of the comparison of one batch with halves.

    Raises:
        AssertionError: naming the objective.

    Example:
        >>> rf.testing.check_objective(rf.Regression(), nn.Linear(6, 2), (torch.randn(8, 6), torch.randn(8, 2)))
    """
    name = objective.name
    expect(isinstance(name, str) and bool(name), f"a name was expected, got {name!r}")
    batches = list(feed.ordered(data, 64))
    count = sum(map(size_of, batches))
    expect(count >= 4, f"{name}: {count} samples: at least 4 are needed here")
    batch = _together(name, batches)
    with evaluating(model):
        output = forward(model, batch)
    tensors = _tensors(objective, output, batch)
    expect(bool(tensors), f"{name}: answers gives no tensor")
    _check_divergence(objective, output, batch, count)
    before = [tensor.clone() for tensor in tensors]
    if objective.labelled:
        with torch.enable_grad():
            given = forward(model, batch)
            loss, positions = objective.losses(given, batch)
        one = isinstance(loss, Tensor) and loss.dim() == 0 and isfinite(float(loss.detach()))
        expect(one, f"{name}: losses must give one finite number as a tensor, got {loss!r}")
        expect(int(positions) > 0, f"{name}: losses counts {positions} positions, at least 1 was expected")
        trained = [p for p in model.parameters() if p.requires_grad]
        found = torch.autograd.grad(loss, trained, allow_unused=True) if loss.requires_grad and trained else ()
        reached = any(grad is not None and bool(grad.any()) for grad in found)
        expect(reached, f"{name}: no gradient of its loss reaches the outputs")
    parts = [samples_of(batch, count, part) for part in (slice((count + 1) // 2), slice((count + 1) // 2, count))]
    whole, halves = (_measured(objective, model, each) for each in ([batch], parts))
    after = _tensors(objective, output, batch)
    expect(all(torch.equal(a, b) for a, b in zip(before, after, strict=True)), f"{name}: the outputs were changed")
    _check_figures(name, whole, halves, tolerance)


def _together(name: str, batches: list[Any]) -> Any:
    """One batch of all samples."""
    try:
        return _joined(batches)
    except (RuntimeError, KeyError, ValueError) as error:
        raise ValueError(
            f"{name}: the batches do not fit together ({' '.join(str(error).split())}): give one batch of all samples"
        ) from None


def _joined(parts: Sequence[Any]) -> Any:
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(list(parts)) if first.dim() else first
    if isinstance(first, Listed):
        return Listed(sample for part in parts for sample in part)
    if isinstance(first, Mapping):
        return {key: _joined([part[key] for part in parts]) for key in first}
    if isinstance(first, tuple | list):
        return getattr(first, "_make", type(first))(map(_joined, zip(*parts, strict=True)))
    return first


def _tensors(objective: Objective, output: Any, batch: Any) -> list[Tensor]:
    return [answer.values for answer in objective.answers(output, batch)]


def _check_divergence(objective: Objective, output: Any, batch: Any, count: int) -> None:
    name, itself = objective.name, objective.divergence(output, output, batch)
    expect(tuple(itself.shape) == (count,), f"{name}: divergence must be ({count},), got {tuple(itself.shape)}")
    expect(bool((itself.abs() < 1e-9).all()), f"{name}: an output differs from itself by {float(itself.abs().max())}")
    if isinstance(output, Tensor):
        moved = output + torch.linspace(-1, 1, output.numel(), dtype=torch.float64).to(output).reshape(output.shape)
        away = objective.divergence(moved, output, batch)
        fits = bool(away.isfinite().all()) and bool((away >= 0).all()) and bool((away > 0).any())
        expect(fits, f"{name}: divergence of another output must be at least 0, and above 0 somewhere")


def _measured(objective: Objective, model: nn.Module, batches: Iterable[Any]) -> Evaluation:
    sums = objective.figures()
    with evaluating(model):
        for batch in batches:
            output = forward(model, batch)
            sums.add(output, batch, None if objective.labelled else output)
    return sums.result()


def _check_figures(name: str, whole: Evaluation, halves: Evaluation, tolerance: float) -> None:
    expect(bool(whole.figures), f"{name}: conclude gives no figure: the first one judges")
    expect(isfinite(whole.loss), f"{name}: the mean loss is {whole.loss}, a finite number was expected")
    pairs = [("loss", whole.loss, halves.loss)]
    for figure, other in zip(whole.figures, halves.figures, strict=True):
        expect(isfinite(figure.value), f"{name}: figure {figure.name!r} is {figure.value}, a number was expected")
        expect(figure.unit in _UNITS, f"{name}: unit {figure.unit!r} of {figure.name!r} is none of {_UNITS}")
        pairs.append((figure.name, figure.value, other.value))
    for what, one, two in pairs:
        same = abs(one - two) <= tolerance * max(abs(one), 1.0)
        expect(
            same, f"{name}: {what} is {one:.6g} in one batch and {two:.6g} in halves: sums must not depend on batches"
        )
