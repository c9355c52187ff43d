"""Gradients of an objective's loss with respect to chosen weights, frozen ones too."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.batches import batches_of, forward
from rankfold.costs import evaluating
from rankfold.objectives import Objective
from rankfold.train.errors import TrainingError
from rankfold.train.evaluation import choose, named


def weight_gradients(
    model: nn.Module,
    weights: Sequence[nn.Parameter],
    data: Any,
    *,
    samples: int = 2048,
    batch_size: int = 128,
    objective: Objective | str | None = None,
) -> list[Tensor]:
    """Mean gradient of the loss over the first `samples` of `data` with targets, of each of `weights`, on the CPU.

    `objective` as in `rankfold.train.evaluate`. In eval mode; modes, gradients and `requires_grad` are left as found.
    Zero for a weight that the loss does not reach. Raises TrainingError for data without targets or without samples,
    and for gradients that are not finite.
    """
    chosen = choose(model, data, objective).objective
    if not chosen.labelled:
        raise TrainingError("the data have no labels, from which the start is computed: give labelled batches")
    sums = [torch.zeros_like(weight, device="cpu", dtype=torch.float64) for weight in weights]
    seen = 0
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        stack.enter_context(torch.enable_grad())
        for weight in weights:
            stack.callback(weight.requires_grad_, weight.requires_grad)
            weight.requires_grad_(True)
        for batch in batches_of(data, batch_size, samples):
            with named("train"):
                loss, count = chosen.losses(forward(model, batch), batch)
            found = torch.autograd.grad(loss * count, list(weights), allow_unused=True)
            seen += count
            for total, gradient in zip(sums, found, strict=True):
                if gradient is not None:
                    total += gradient.cpu()
    if not seen:
        raise TrainingError("the data are empty: give at least one labelled batch")
    if not all(bool(total.isfinite().all()) for total in sums):
        raise TrainingError("a gradient is NaN or infinite: look for bad samples, or convert the model to float32")
    return [total / seen for total in sums]
