"""How good a model is on data, by whatever objective they belong to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from math import isfinite
from typing import Any

import torch
from torch import nn

from rankfold.batches import as_found, forward, size_of, tensors_in
from rankfold.costs import evaluating
from rankfold.objectives import Evaluation, Figures, Inferred, Objective, ObjectiveError, infer, objective_named
from rankfold.observe.passes import fitting_layout, laid_out
from rankfold.train import feed
from rankfold.train.errors import TrainingError
from rankfold.train.randomness import same_draws, seeded
from rankfold.train.targets import known_targets

_ENOUGH = 64  # samples from which an objective is told


def evaluate(
    model: nn.Module,
    data: Any,
    batch_size: int = 64,
    *,
    role: str = "evaluation",
    objective: Objective | str | None = None,
    teacher: nn.Module | None = None,
) -> Evaluation:
    """Evaluate ``model``, in eval mode and without gradients, on every sample of ``data``. Modes are left as found.

    Args:
        model: any module.
        data: an object with ``inputs``, ``labels`` and ``normalize`` (``rankfold.zoo.Split``), a tensor or a pair of
            them, a torch Dataset, a DataLoader, batches in a list or from an iterator; with targets or, where outputs
            are compared with those of the ``teacher``, without.
        batch_size: of the passes. Larger ones are slower on a CPU: what one layer writes is no longer in the cache when
            the next one reads it.
        role: names the data in errors.
        objective: what outputs and targets mean, as an object or by name; by default told from the first batch and all
            targets that are in memory.
        teacher: the original, where outputs are to be compared with its own. Objectives of targets leave it unused,
            and data with targets are judged by one of these unless another is asked for: ``objective="teacher"``.

    Returns:
        An ``Evaluation``, whose first figure judges.

    Raises:
        TrainingError: no samples, targets that do not fit the outputs or none where they are needed, a sample that is
            not finite and makes the figure so, weights on the meta device.

    Cost: one forward pass, and one of ``teacher`` where the objective needs it.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> _ = net.weight.data.copy_(torch.eye(2)), net.bias.data.zero_()
        >>> rf.evaluate(net, (torch.eye(2), torch.tensor([0, 1]))).accuracy
        1.0
    """
    sums = counted(model, data, batch_size, role=role, objective=objective, teacher=teacher)
    with named(role):
        found = sums[0].result()
    lost = next((figure.name for figure in found.figures if not isfinite(figure.value)), None)
    if lost is not None and (number := _not_finite(data, batch_size)) is not None:
        raise TrainingError(
            f"{role} data: sample {number} holds a value that is not a finite number, so that {lost} is none either: "
            "leave this sample out, or mend it"
        )
    return found


def _not_finite(data: Any, batch_size: int) -> int | None:
    """The number of the first sample in which a value is not finite; None without one, or where data come once."""
    before = 0
    for batch in feed.ordered(data, batch_size):
        count = size_of(batch)
        for tensor in tensors_in(batch):
            if tensor.is_floating_point() and tensor.dim() and len(tensor) == count:
                finite = tensor.isfinite().flatten(1).all(1) if tensor.dim() > 1 else tensor.isfinite()
                if not finite.all():
                    return before + int(finite.to(torch.uint8).argmin())
        before += count
    return None


def counted(
    model: nn.Module,
    data: Any,
    batch_size: int = 128,
    *,
    role: str = "evaluation",
    objective: Objective | str | None = None,
    teacher: nn.Module | None = None,
    apart: bool = False,
) -> list[Figures]:
    """The sums from which `evaluate` concludes, as one, or with `apart` one for each batch, without whole rows."""
    feed.check(data, role)
    materialised(model)
    layout, sums = None, list[Figures]()
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        stack.enter_context(as_found(model))
        if teacher is not None:
            stack.enter_context(evaluating(teacher))
        stack.enter_context(named(role))
        chosen = None if objective is None else objective_named(objective)
        for number, batch in enumerate(feed.ordered(data, batch_size)):
            layout = fitting_layout(model, batch) if layout is None else layout
            alike = nullcontext() if teacher is None else same_draws(model, number)
            with alike:
                output = forward(model, laid_out(batch, layout))
            if chosen is None:
                chosen = infer(output, batch, known_targets(data)).objective
                if teacher is None and not chosen.labelled and (said := feed.misread(data)):
                    raise TrainingError(said)
            if apart or not sums:
                sums.append(chosen.figures())
            taught = None
            if teacher is not None and chosen.compares:
                with same_draws(teacher, number):
                    taught = output if teacher is model else forward(teacher, laid_out(batch, layout))
            sums[-1].add(output, batch, taught, rows=not apart)
        if not sums:
            raise TrainingError("it is empty; give at least one batch")
    return sums


def choose(
    model: nn.Module, data: Any, objective: Objective | str | None, *, said: Objective | str | None = None,
    role: str = "train", answer: Callable[[nn.Module, Any], Any] = forward,
) -> Inferred:  # fmt: skip
    """The objective that was asked for, or else what the data `said` of themselves, or else the one that `model` and a
    first batch of `data`, with all targets that are in memory, tell. Of its `answer` no values are read.

    Random states are left as found. Raises TrainingError where they do not tell, or where `data` are empty.
    """
    if objective is not None:
        return Inferred(objective_named(objective), "as asked")
    if said is not None:
        return Inferred(objective_named(said), "as the data say")
    feed.check(data, role)
    generators = feed.Feed(data, _ENOUGH, None).generators()
    with seeded(0, torch.device("cpu"), generators), evaluating(model), named(role):
        for batch in feed.ordered(data, _ENOUGH):
            return infer(answer(model, batch), batch, known_targets(data))
    raise TrainingError(f"{role} data: it is empty; give at least one batch")


@contextmanager
def named(role: str) -> Iterator[None]:
    """What an objective refuses as a TrainingError that names the data."""
    try:
        yield
    except ObjectiveError as error:
        raise TrainingError(f"{role} data: {error}") from error
    except TrainingError as error:
        raise (error if str(error).startswith(f"{role} data") else TrainingError(f"{role} data: {error}")) from error


def materialised(model: nn.Module) -> None:
    """TrainingError for a model whose weights have no values."""
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise TrainingError(f"{name} is on the meta device, without values: load its weights first")
